"""What reports of findings and of segments have in common.

References
----------
DICOM PS3.16 TID 1500, 1204, 4019; PS3.3 A.35.3.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
)
from pydicom import Dataset

from inference.errors import ResultError
from inference.results.context import DEVICE, MANUFACTURER, RESEARCH_USE
from inference.results.identity import copy_identity, settle_time
from inference.results.uids import result_uid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inference.results.context import Making, Predecessor

KIND: Final = "sr"
SERIES_NUMBER: Final = 9001
_DEVICE: Final = CodedConcept("121007", "DCM", "Device")
_IMAGING: Final = CodedConcept("363679005", "SCT", "Imaging procedure")
_RADIOGRAPHY: Final = CodedConcept("363680008", "SCT", "Radiographic imaging procedure")
_PROCEDURES: Final[Mapping[str, CodedConcept]] = MappingProxyType({
    "CR": _RADIOGRAPHY,
    "DX": _RADIOGRAPHY,
    "RG": _RADIOGRAPHY,
    "MG": CodedConcept("71651007", "SCT", "Mammography"),
    "CT": CodedConcept("77477000", "SCT", "Computed tomography"),
    "MR": CodedConcept("113091000", "SCT", "Magnetic resonance imaging"),
})  # fmt: skip


def write_report(
    making: Making, content: MeasurementReport, evidence: Sequence[Dataset], source: Dataset, texts: list[str]
) -> Dataset:
    """Wrap a measurement report as an instance with the patient and study of a source.

    Parameters
    ----------
    making : Making
        Whose report it is.
    content : MeasurementReport
        What it says.
    evidence : sequence of Dataset
        All that it refers to, from :func:`evidence_of`.
    source : Dataset
        Whose identity is copied.
    texts : list of str
        Our own texts in it.

    Raises
    ------
    ResultError
        ``result.source`` if a source cannot be referenced.
    """
    made = making.made_at.astimezone()
    try:
        report: Dataset = ComprehensiveSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=result_uid(making.revision_id, making.package_sha256, f"{KIND}.series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=result_uid(making.revision_id, making.package_sha256, KIND),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=DEVICE,
            software_versions=making.software_version,
            series_description=f"{RESEARCH_USE}: {making.card.name}"[:64],
            is_complete=True,
            content_date=made.date(),
            content_time=made.time(),
            previous_versions=[_previous(item) for item in making.predecessors] or None,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(
            "result.source", f"a report cannot be made of these instances ({type(error).__name__})"
        ) from error
    settle_time(report)
    copy_identity(source, report, [making.card.name, making.card.version, *texts])
    return report


def observer(making: Making) -> ObservationContext:
    """Say which device observed: this product with the model."""
    device = DeviceObserverIdentifyingAttributes(
        uid=result_uid("", making.package_sha256, "device"),
        name=DEVICE,
        manufacturer_name=MANUFACTURER,
        model_name=making.card.name,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=_DEVICE, observer_identifying_attributes=device)
    )


def algorithm(making: Making, *parameters: str) -> AlgorithmIdentification:
    """Name model, version and package (TID 4019)."""
    return AlgorithmIdentification(
        name=making.card.name,
        version=making.card.version,
        manufacturer=MANUFACTURER,
        parameters=[f"package_sha256={making.package_sha256}", *parameters, RESEARCH_USE],
    )


def procedure_of(source: Dataset) -> CodedConcept:
    """Return what was done, by modality."""
    return _PROCEDURES.get(str(source.get("Modality", "")), _IMAGING)


def evidence_of(source: Dataset) -> Dataset:
    """Return only what the library needs of a source; identity is copied afterwards, unchanged.

    Raises
    ------
    ResultError
        ``result.source``, naming the attribute that a source lacks.
    """
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


def _previous(item: Predecessor) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID = item.study_instance_uid
    ds.SeriesInstanceUID = item.series_instance_uid
    ds.SOPClassUID = item.sop_class_uid
    ds.SOPInstanceUID = item.sop_instance_uid
    return ds
