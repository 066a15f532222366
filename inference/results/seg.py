"""What a model marked, as a DICOM Segmentation on the slices of its source series.

References
----------
DICOM PS3.3 A.51 (Segmentation IOD), C.8.20; PS3.16 CID 7150, 7162.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept

from inference.deviations import NO_FINDING
from inference.errors import ResultError
from inference.results.colors import color_of
from inference.results.context import DEVICE, MANUFACTURER, RESEARCH_USE
from inference.results.identity import check_same_patient, copy_identity, settle_time
from inference.results.loss import is_lossy
from inference.results.report import evidence_of
from inference.results.uids import result_uid

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.results.context import Marked, SegmentContext
    from inference.segments import Category, Segment

KIND: Final = "seg"
SERIES_NUMBER: Final = 9003
_FAMILY: Final = CodedConcept("123110", "DCM", "Artificial Intelligence")
_GEOMETRY: Final = (
    "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)  # fmt: skip
_LOSS: Final = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")


def build_segmentation(context: SegmentContext, marked: Marked) -> Dataset:
    """Make the segmentation of one series by one model for one study revision.

    Parameters
    ----------
    context : SegmentContext
        The model, and all that it marked in the study.
    marked : Marked
        What it marked in this series: one of the context's. Slices in which nothing is marked have no frame;
        where nothing is marked at all, the middle slice has an empty one for each segment.

    Returns
    -------
    Dataset
        With file meta information; the same for the same context.

    Raises
    ------
    ResultError
        ``identity.mismatch``, or ``result.source`` if a source cannot be referenced.
    """
    check_same_patient(marked.sources)
    middle = len(marked.sources) // 2
    shown = slice(None) if marked.labels.any() else slice(middle, middle + 1)
    sources = [_reduced(source, marked.sources[0]) for source in marked.sources[shown]]
    made = context.made_at.astimezone()
    try:
        segmentation: Dataset = Segmentation(
            source_images=sources,
            pixel_array=marked.labels[shown],
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(context, marked, segment) for segment in context.segments],
            series_instance_uid=_uid(context, f"{KIND}.series.{marked.series_instance_uid}"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=_uid(context, f"{KIND}.{marked.sources[0].SOPInstanceUID}"),
            instance_number=_instance_number(context, marked),
            manufacturer=MANUFACTURER,
            manufacturer_model_name=DEVICE,
            software_versions=context.software_version,
            device_serial_number=context.package_sha256,
            content_label="RESEARCH_USE",
            content_description=_what_it_is(context),
            series_description=f"{RESEARCH_USE}: {context.card.name}"[:64],
            content_date=made.date(),
            content_time=made.time(),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(
            "result.source", f"a segmentation cannot be made of these instances ({type(error).__name__})"
        ) from error
    _settle(segmentation, context, marked)
    texts = [context.card.name, context.card.version, *(one.label for one in context.segments)]
    copy_identity(marked.sources[0], segmentation, [*texts, *(one.meaning for one in context.segments)])
    return segmentation


def tracking_uid(context: SegmentContext, marked: Marked, segment: Segment) -> str:
    """Return by which UID a segment is known in the segmentation and in the report that measures it."""
    return _uid(context, f"{KIND}.{marked.sources[0].SOPInstanceUID}.{segment.number}")


def _description(context: SegmentContext, marked: Marked, segment: Segment) -> SegmentDescription:
    algorithm = AlgorithmIdentificationSequence(
        name=context.card.name,
        family=_FAMILY,
        version=context.card.version,
        source=MANUFACTURER,
        parameters={"package_sha256": context.package_sha256, **_threshold(context)},
    )
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=tracking_uid(context, marked, segment),
        tracking_id=segment.label,
        display_color=CIELabColor.from_rgb(*color_of(segment)),
    )
    if context.card.threshold is not None:
        description.SegmentDescription = f"{RESEARCH_USE}: {NO_FINDING}"
    return description


def _what_it_is(context: SegmentContext) -> str:
    if context.card.threshold is None:
        return f"{RESEARCH_USE}: not for diagnosis"
    return f"{RESEARCH_USE}: differs from learnt normal, no finding"


def _threshold(context: SegmentContext) -> dict[str, str]:
    threshold = context.card.threshold
    return {} if threshold is None else threshold.parameters


def _reduced(source: Dataset, first: Dataset) -> Dataset:
    """Return what the library needs of a source; the orientation, alike but for rounding, of the first."""
    item = evidence_of(source)
    for keyword in _GEOMETRY:
        if source.get(keyword) not in (None, ""):
            item.add(source[keyword])
    if "ImagePositionPatient" in item:
        item.ImageOrientationPatient = first.ImageOrientationPatient
    if is_lossy(source):
        item.LossyImageCompression = "01"
        for keyword in _LOSS:
            if source.get(keyword):
                item.add(source[keyword])
    return item


def _settle(segmentation: Dataset, context: SegmentContext, marked: Marked) -> None:
    """Put a derived UID where the library draws one, so that a retry makes the same bytes."""
    settle_time(segmentation)
    source = marked.sources[0]
    if "ImagePositionPatient" not in source:  # PS3.3 C.7.6.1.1.1: rows and columns are those of the source
        segmentation.PatientOrientation = source.get("PatientOrientation")
    dimensions = _uid(context, f"{KIND}.dimensions.{source.SOPInstanceUID}")
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in segmentation[name].value:
            item.DimensionOrganizationUID = dimensions


def _instance_number(context: SegmentContext, marked: Marked) -> int:
    """Count within the results of one source series, which make one series."""
    same = [one for one in context.marked if one.series_instance_uid == marked.series_instance_uid]
    return 1 + next(number for number, one in enumerate(same) if one is marked)


def _coded(code: Segment | Category) -> CodedConcept:
    return CodedConcept(code.code, code.scheme, code.meaning)


def _uid(context: SegmentContext, kind: str) -> str:
    return result_uid(context.revision_id, context.package_sha256, kind)
