"""How large what a model marked is, as a Structured Report: TID 1500 with a group for each segment.

References
----------
DICOM PS3.16 TID 1500, 1411 (Volumetric ROI Measurements), 4019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from highdicom.sr import (
    CodedConcept,
    Measurement,
    MeasurementReport,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)

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
_MILLILITRE: Final = CodedConcept("mL", "UCUM", "milliliter")


def build_measurements(context: SegmentContext, segmentations: Sequence[Dataset]) -> Dataset:
    """Make the report of the volumes that a model marked in one study revision.

    Parameters
    ----------
    context : SegmentContext
        The model and what it marked, in volumes.
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
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(context, marked, segment), identifier=segment.label
        ),
        referenced_segment=ReferencedSegment(
            sop_class_uid=str(segmentation.SOPClassUID),
            sop_instance_uid=str(segmentation.SOPInstanceUID),
            segment_number=segment.number,
            source_series=SourceSeriesForSegmentation(marked.series_instance_uid),
        ),
        finding_type=CodedConcept(segment.code, segment.scheme, segment.meaning),
        finding_category=CodedConcept(
            segment.category.code, segment.category.scheme, segment.category.meaning
        ),
        algorithm_id=algorithm(context),
        measurements=[Measurement(name=_VOLUME, value=round(marked.volume_ml(segment), 3), unit=_MILLILITRE)],
        qualitative_evaluations=(
            [QualitativeEvaluation(CUT_OFF, _YES)] if segment.number in marked.cut_off else None
        ),
    )
