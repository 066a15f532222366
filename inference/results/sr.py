"""The result as a Structured Report: TID 1500 Measurement Report in a Comprehensive SR.

References
----------
DICOM PS3.16 TID 1500, 1501, 1600, 4019; PS3.3 A.35.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from highdicom.sr import (
    CodedConcept,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.multival import MultiValue

from inference.results.identity import check_same_patient
from inference.results.report import KIND, algorithm, evidence_of, observer, procedure_of, write_report
from inference.results.uids import result_uid

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.card import Finding
    from inference.results.context import Answer, ResultContext

_CERTAINTY: Final = CodedConcept("111012", "DCM", "Certainty of Finding")
_PERCENT: Final = CodedConcept("%", "UCUM", "Percent")
_PRESENCE: Final = CodedConcept("705057003", "SCT", "Presence")
_PRESENT: Final = CodedConcept("52101004", "SCT", "Present")
_ABSENT: Final = CodedConcept("272519000", "SCT", "Absent")


def build_report(context: ResultContext) -> Dataset:
    """Make the Structured Report of one model for one study revision.

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
    """
    sources = [answer.source for answer in context.answers]
    check_same_patient(sources)
    evidence = [evidence_of(source) for source in sources]
    content = _content(context, evidence)
    texts = [finding.meaning for finding in context.findings]
    return write_report(context, content, evidence, sources[0], texts)


def _content(context: ResultContext, evidence: list[Dataset]) -> MeasurementReport:
    groups = [
        _group(context, answer, finding, probability)
        for answer in context.answers
        for finding, probability in zip(context.findings, answer.probabilities, strict=True)
    ]
    return MeasurementReport(
        observation_context=observer(context),
        procedure_reported=procedure_of(context.answers[0].source),
        imaging_measurements=groups,
        referenced_images=evidence if all(_describable(item) for item in evidence) else None,
    )


def _group(
    context: ResultContext, answer: Answer, finding: Finding, probability: float
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501: the finding, how certain the model is, and on which side of its threshold that lies."""
    source = answer.source
    tracking = f"{KIND}.{source.SOPInstanceUID}.{finding.scheme}.{finding.code}"
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=result_uid(context.revision_id, context.package_sha256, tracking), identifier=finding.meaning
        ),
        finding_type=CodedConcept(finding.code, finding.scheme, finding.meaning),
        algorithm_id=algorithm(context, f"threshold={finding.threshold:g}"),
        measurements=[Measurement(name=_CERTAINTY, value=round(100 * probability, 2), unit=_PERCENT)],
        qualitative_evaluations=[
            QualitativeEvaluation(_PRESENCE, _PRESENT if probability >= finding.threshold else _ABSENT)
        ],
        source_images=[SourceImageForMeasurementGroup(str(source.SOPClassUID), str(source.SOPInstanceUID))],
    )


def _describable(item: Dataset) -> bool:
    """Whether TID 1603 can be filled: it demands orientation and spacing, which many radiographs lack."""
    if item.Modality not in ("CR", "DX", "MG", "RG") or "Rows" not in item or "Columns" not in item:
        return False
    values = (item.get("PatientOrientation"), item.get("ImagerPixelSpacing"))
    return all(isinstance(value, MultiValue) and len(value) == 2 for value in values)
