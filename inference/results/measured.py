"""How large what a model marked is, as a Structured Report: TID 1500 with a group for each segment.

References
----------
DICOM PS3.16 TID 1500, 1411 (Volumetric ROI Measurements), 1501, 4019; CID 7464 (modifiers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from highdicom.sr import (
    CodedConcept,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceImageForMeasurementGroup,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)

from inference.deviations import NO_FINDING
from inference.results.identity import check_same_patient
from inference.results.report import algorithm, evidence_of, observer, procedure_of, write_report
from inference.results.seg import tracking_uid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from inference.results.context import Marked, SegmentContext
    from inference.segments import Segment

_VOLUME: Final = CodedConcept("118565006", "SCT", "Volume")
CUT_OFF: Final = CodedConcept("CUT-OFF", "99CLOISTER", "Cut off at the edge of what the model sees")
_YES: Final = CodedConcept("373066001", "SCT", "Yes")
_DIFFERENCE: Final = CodedConcept(
    "DIFFERENCE", "99CLOISTER", "Difference from what the model makes of it, of black to white"
)
_MAXIMUM: Final = CodedConcept("56851009", "SCT", "Maximum")
_MEAN: Final = CodedConcept("373098007", "SCT", "Mean")
_PERCENT: Final = CodedConcept("%", "UCUM", "Percent")
MEANING: Final = CodedConcept("MEANING", "99CLOISTER", "What the mark means")
DIFFERS: Final = CodedConcept("NO-FINDING", "99CLOISTER", NO_FINDING.capitalize())
_MILLILITRE: Final = CodedConcept("mL", "UCUM", "milliliter")


def build_measurements(context: SegmentContext, segmentations: Sequence[Dataset]) -> Dataset:
    """Make the report of the volumes that a model marked in one study revision.

    Parameters
    ----------
    context : SegmentContext
        The model and what it marked, in volumes, or in pictures that it gives a score.
    segmentations : sequence of Dataset
        What was made of each, in its order: each group refers to its segment.

    Returns
    -------
    Dataset
        With file meta information; the same for the same context.

    Raises
    ------
    ResultError
        ``identity.mismatch``, or ``result.source`` if a source cannot be referenced.
    """
    check_same_patient(context.sources)
    groups = [
        _group(context, marked, segmentation, segment)
        for marked, segmentation in zip(context.marked, segmentations, strict=True)
        for segment in context.segments
    ]
    content = MeasurementReport(
        observation_context=observer(context),
        procedure_reported=procedure_of(context.sources[0]),
        imaging_measurements=groups,
    )
    evidence = [evidence_of(ds) for ds in (*segmentations, *context.sources)]
    texts = [text for segment in context.segments for text in (segment.meaning, segment.label)]
    return write_report(context, content, evidence, context.sources[0], texts)


def _group(
    context: SegmentContext, marked: Marked, segmentation: Dataset, segment: Segment
) -> MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations:
    alike = {
        "tracking_identifier": TrackingIdentifier(
            uid=tracking_uid(context, marked, segment), identifier=segment.label
        ),
        "finding_type": CodedConcept(segment.code, segment.scheme, segment.meaning),
        "finding_category": CodedConcept(
            segment.category.code, segment.category.scheme, segment.category.meaning
        ),
        "algorithm_id": algorithm(context, *_parameters(context)),
        "qualitative_evaluations": _said(context, marked, segment) or None,
    }
    if not marked.voxel_mm3:  # a picture, or slices that are no volume: TID 1501
        return MeasurementsAndQualitativeEvaluations(
            **alike,
            measurements=_scores(marked) or None,
            source_images=[
                SourceImageForMeasurementGroup(str(one.SOPClassUID), str(one.SOPInstanceUID))
                for one in marked.sources
            ],
        )
    volume = Measurement(name=_VOLUME, value=round(marked.volume_ml(segment), 3), unit=_MILLILITRE)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        **alike,
        referenced_segment=ReferencedSegment(
            sop_class_uid=str(segmentation.SOPClassUID),
            sop_instance_uid=str(segmentation.SOPInstanceUID),
            segment_number=segment.number,
            source_series=SourceSeriesForSegmentation(marked.series_instance_uid),
        ),
        measurements=[volume, *_scores(marked)],
    )


def _parameters(context: SegmentContext) -> list[str]:
    threshold = context.card.threshold
    return [] if threshold is None else [f"{name}={value}" for name, value in threshold.parameters.items()]


def _said(context: SegmentContext, marked: Marked, segment: Segment) -> list[QualitativeEvaluation]:
    said = [QualitativeEvaluation(CUT_OFF, _YES)] if segment.number in marked.cut_off else []
    if context.card.threshold is not None:
        said.append(QualitativeEvaluation(MEANING, DIFFERS))
    return said


def _scores(marked: Marked) -> list[Measurement]:
    """Say how far the marked pixels are from what the model makes of them; nothing where none is."""
    if marked.score is None:
        return []
    return [
        Measurement(name=_DIFFERENCE, value=round(100 * value, 2), unit=_PERCENT, derivation=how)
        for value, how in ((marked.score.highest, _MAXIMUM), (marked.score.mean, _MEAN))
    ]
