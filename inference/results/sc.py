"""The result as a Secondary Capture that any viewer shows.

References
----------
DICOM PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6, C.7.6.1 (General Image).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.multival import MultiValue

from inference.errors import ResultError
from inference.results.context import DEVICE, MANUFACTURER, RESEARCH_USE
from inference.results.identity import check_same_patient, copy_identity, settle_time
from inference.results.loss import is_lossy
from inference.results.marked_picture import render_marked
from inference.results.picture import render
from inference.results.uids import result_uid

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from inference.results.context import Making, ResultContext, SegmentContext

KIND: Final = "sc"
_SERIES_NUMBER: Final = 9002
_PLACEHOLDER: Final = ("L", "F")


def build_capture(context: ResultContext) -> Dataset:
    """Make the Secondary Capture of one model for one study revision.

    Parameters
    ----------
    context : ResultContext
        The model's answers and their sources.

    Returns
    -------
    Dataset
        With file meta information; the same for the same context.

    Raises
    ------
    ResultError
        ``identity.mismatch``, or ``result.source`` if a source cannot be referenced.
    PreprocessingError
        If the picture cannot be shown.
    """
    sources = [answer.source for answer in context.answers]
    check_same_patient(sources)
    return _capture(context, context.leading.source, sources, render(context))


def build_marked_capture(context: SegmentContext, shown: Dataset) -> Dataset:
    """Make the Secondary Capture of what a model marked in a study revision.

    Parameters
    ----------
    context : SegmentContext
        What was marked.
    shown : Dataset
        The slice of :func:`inference.results.marked_picture.most_marked`, with its pixels.

    Returns
    -------
    Dataset
        With file meta information; the same for the same context.

    Raises
    ------
    ResultError
        ``identity.mismatch``, or ``result.source`` if a source cannot be referenced.
    PreprocessingError
        If the picture cannot be shown.
    """
    check_same_patient(context.sources)
    return _capture(context, shown, [shown], render_marked(context, shown))


def _capture(
    making: Making, source: Dataset, sources: Sequence[Dataset], pixels: npt.NDArray[np.uint8]
) -> Dataset:
    made = making.made_at.astimezone()
    try:
        capture: Dataset = SCImage(
            pixel_array=pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=_PLACEHOLDER,
            study_instance_uid=str(source.StudyInstanceUID),
            series_instance_uid=result_uid(making.revision_id, making.package_sha256, f"{KIND}.series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=result_uid(making.revision_id, making.package_sha256, KIND),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=DEVICE,
            software_versions=making.software_version,
            series_description=f"{RESEARCH_USE}: {making.card.name}"[:64],
            content_date=made.date(),
            content_time=made.time(),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(
            "result.source", f"a capture cannot be made of these instances ({type(error).__name__})"
        ) from error
    _describe(capture, making, source, sources)
    settle_time(capture)
    copy_identity(source, capture, [making.card.name, making.card.version])
    return capture


def _describe(capture: Dataset, making: Making, source: Dataset, sources: Sequence[Dataset]) -> None:
    capture.ConversionType = "SYN"  # PS3.3 C.8.6.1.1: synthetic image
    capture.BurnedInAnnotation = "NO"
    capture.DerivationDescription = (
        f"{RESEARCH_USE}. {making.card.name} {making.card.version}, package_sha256={making.package_sha256}"
    )
    capture.SourceImageSequence = [_reference(one) for one in sources]
    orientation = source.get("PatientOrientation")
    good = isinstance(orientation, MultiValue) and len(orientation) == 2 and all(orientation)
    capture.PatientOrientation = list(orientation) if good else None
    capture.Laterality = source.get("Laterality") or None
    _tell_of_loss(capture, source)


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    purpose = Dataset()
    purpose.CodeValue = "121322"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _tell_of_loss(capture: Dataset, source: Dataset) -> None:
    if not is_lossy(source):
        return
    capture.LossyImageCompression = "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if source.get(keyword):
            capture.add(source[keyword])
