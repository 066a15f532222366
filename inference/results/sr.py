"""The result as a Structured Report: TID 1500 Measurement Report in a Comprehensive SR.

References
----------
DICOM PS3.16 TID 1500, 1501, 1600, 4019; PS3.3 A.35.3.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.multival import MultiValue

from inference.errors import ResultError
from inference.results.context import DEVICE, MANUFACTURER, RESEARCH_USE
from inference.results.identity import check_same_patient, copy_identity, settle_time
from inference.results.uids import result_uid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.card import Finding
    from inference.results.context import Answer, Predecessor, ResultContext

KIND: Final = "sr"
_CERTAINTY: Final = CodedConcept("111012", "DCM", "Certainty of Finding")
_PERCENT: Final = CodedConcept("%", "UCUM", "Percent")
_DEVICE: Final = CodedConcept("121007", "DCM", "Device")
_PRESENCE: Final = CodedConcept("705057003", "SCT", "Presence")
_PRESENT: Final = CodedConcept("52101004", "SCT", "Present")
_ABSENT: Final = CodedConcept("272519000", "SCT", "Absent")
_IMAGING: Final = CodedConcept("363679005", "SCT", "Imaging procedure")
_RADIOGRAPHY: Final = CodedConcept("363680008", "SCT", "Radiographic imaging procedure")
_PROCEDURES: Final[Mapping[str, CodedConcept]] = MappingProxyType({
    "CR": _RADIOGRAPHY,
    "DX": _RADIOGRAPHY,
    "RG": _RADIOGRAPHY,
    "MG": CodedConcept("71651007", "SCT", "Mammography"),
})  # fmt: skip
_SERIES_NUMBER: Final = 9001


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
    evidence = [_evidence(source) for source in sources]
    made = context.made_at.astimezone()
    try:
        report: Dataset = ComprehensiveSR(
            evidence=evidence,
            content=_content(context, evidence)[0],
            series_instance_uid=result_uid(context.revision_id, context.package_sha256, f"{KIND}.series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=result_uid(context.revision_id, context.package_sha256, KIND),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=DEVICE,
            software_versions=context.software_version,
            series_description=f"{RESEARCH_USE}: {context.card.name}"[:64],
            is_complete=True,
            content_date=made.date(),
            content_time=made.time(),
            previous_versions=[_previous(item) for item in context.predecessors] or None,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(
            "result.source", f"a report cannot be made of these instances ({type(error).__name__})"
        ) from error
    settle_time(report)
    copy_identity(sources[0], report, _texts(context))
    return report


def _content(context: ResultContext, evidence: list[Dataset]) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=result_uid("", context.package_sha256, "device"),
        name=DEVICE,
        manufacturer_name=MANUFACTURER,
        model_name=context.card.name,
    )
    groups = [
        _group(context, answer, finding, probability)
        for answer in context.answers
        for finding, probability in zip(context.findings, answer.probabilities, strict=True)
    ]
    modality = str(context.answers[0].source.get("Modality", ""))
    return MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=_DEVICE, observer_identifying_attributes=device
            )
        ),
        procedure_reported=_PROCEDURES.get(modality, _IMAGING),
        imaging_measurements=groups,
        referenced_images=evidence if all(_describable(item) for item in evidence) else None,
    )


def _group(
    context: ResultContext, answer: Answer, finding: Finding, probability: float
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501: the finding, how certain the model is, and on which side of its threshold that lies."""
    source = answer.source
    tracking = f"{KIND}.{source.SOPInstanceUID}.{finding.scheme}.{finding.code}"
    algorithm = AlgorithmIdentification(
        name=context.card.name,
        version=context.card.version,
        manufacturer=MANUFACTURER,
        parameters=[
            f"package_sha256={context.package_sha256}",
            f"threshold={finding.threshold:g}",
            RESEARCH_USE,
        ],
    )
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=result_uid(context.revision_id, context.package_sha256, tracking), identifier=finding.meaning
        ),
        finding_type=CodedConcept(finding.code, finding.scheme, finding.meaning),
        algorithm_id=algorithm,
        measurements=[Measurement(name=_CERTAINTY, value=round(100 * probability, 2), unit=_PERCENT)],
        qualitative_evaluations=[
            QualitativeEvaluation(_PRESENCE, _PRESENT if probability >= finding.threshold else _ABSENT)
        ],
        source_images=[SourceImageForMeasurementGroup(str(source.SOPClassUID), str(source.SOPInstanceUID))],
    )


def _evidence(source: Dataset) -> Dataset:
    """Return only what the library needs of a source; identity is copied afterwards, unchanged."""
    item = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"):
        value = str(source.get(keyword) or "")
        if not value:
            raise ResultError("result.source", f"a source instance has no {keyword}")
        setattr(item, keyword, value)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(item, keyword, "")
    for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(item, keyword, "")
    for keyword in ("Rows", "Columns", "PatientOrientation", "ImagerPixelSpacing"):
        if keyword in source:
            item.add(source[keyword])
    return item


def _describable(item: Dataset) -> bool:
    """Whether TID 1603 can be filled: it demands orientation and spacing, which many radiographs lack."""
    if item.Modality not in ("CR", "DX", "MG", "RG") or "Rows" not in item or "Columns" not in item:
        return False
    values = (item.get("PatientOrientation"), item.get("ImagerPixelSpacing"))
    return all(isinstance(value, MultiValue) and len(value) == 2 for value in values)


def _previous(item: Predecessor) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID = item.study_instance_uid
    ds.SeriesInstanceUID = item.series_instance_uid
    ds.SOPClassUID = item.sop_class_uid
    ds.SOPInstanceUID = item.sop_instance_uid
    return ds


def _texts(context: ResultContext) -> list[str]:
    return [context.card.name, context.card.version, *(finding.meaning for finding in context.findings)]
