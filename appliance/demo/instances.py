"""Digital X-ray instances with invented identities in all the places where real ones carry theirs.

References
----------
DICOM PS3.3 A.26 (Digital X-Ray Image IOD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from appliance.demo.identities import Person

STUDY_COMPONENT: Final = "1.2.840.10008.3.1.2.3.3"  # Modality Performed Procedure Step SOP Class
_PIXEL_MM: Final = 1.6


@dataclass(frozen=True)
class Picture:
    """Stored values and what they mean."""

    pixels: NDArray[np.uint16]
    bits_stored: int
    photometric: str


@dataclass(frozen=True)
class Place:
    """Where a study was made; ``planted`` are its identifying values."""

    institution: str
    address: str
    station: str
    serial_number: str
    manufacturer: str
    character_set: str
    transfer_syntax: str

    @property
    def planted(self) -> frozenset[str]:
        """Identifying values."""
        return frozenset({self.institution, self.address, self.station, self.serial_number})


@dataclass(frozen=True)
class Visit:
    """One study: its UIDs, numbers and moment."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    step_uid: str
    accession_number: str
    study_id: str
    date: str
    time: str

    @property
    def planted(self) -> frozenset[str]:
        """Identifying values; shifted dates may meet another patient's, so dates are not among them."""
        uids = {self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid, self.step_uid}
        return frozenset(uids | {self.accession_number, self.study_id})


def write_instance(path: Path, picture: Picture, person: Person, place: Place, visit: Visit) -> None:
    """Write one DX instance as a Part 10 file."""
    ds = Dataset()
    ds.SpecificCharacterSet = place.character_set
    _patient(ds, person)
    _study(ds, person, place, visit)
    _series_and_equipment(ds, person, place, visit)
    _image(ds, picture)
    _acquisition(ds, person)
    _private(ds, person, visit)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = UID(visit.sop_instance_uid)
    ds.file_meta.TransferSyntaxUID = UID(place.transfer_syntax)
    ds.save_as(path, enforce_file_format=True)


def _patient(ds: Dataset, person: Person) -> None:
    ds.PatientName = person.name
    ds.PatientID = person.patient_id.split("\\") if "\\" in person.patient_id else person.patient_id
    if person.issuer:
        ds.IssuerOfPatientID = person.issuer
    ds.PatientBirthDate, ds.PatientSex = person.birth_date, person.sex
    ds.PatientAge = f"{person.age_years:03d}Y"
    ds.PatientAddress, ds.PatientTelephoneNumbers = person.address, person.telephone
    ds.PatientMotherBirthName = person.mother_birth_name
    ds.PatientComments = f"{person.name.replace('^', ', ')} asks for a call at {person.telephone}"
    ds.AdditionalPatientHistory = f"Insured as {person.insurance_number}"
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = person.other_patient_id, "TEXT"
    ds.OtherPatientIDsSequence = Sequence([other])


def _study(ds: Dataset, person: Person, place: Place, visit: Visit) -> None:
    ds.StudyInstanceUID, ds.SeriesInstanceUID = visit.study_instance_uid, visit.series_instance_uid
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, visit.sop_instance_uid
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = visit.date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = visit.time
    ds.AccessionNumber, ds.StudyID = visit.accession_number, visit.study_id
    ds.StudyDescription = f"Thorax PA for {person.referring.split('^')[0]}"
    ds.ReferringPhysicianName = person.referring
    who = Dataset()
    code = _code(person.insurance_number, "99LOCAL", person.referring.split("^")[0])
    who.PersonIdentificationCodeSequence = Sequence([code])
    who.InstitutionName, who.InstitutionAddress = place.institution, place.address
    ds.ReferringPhysicianIdentificationSequence = Sequence([who])
    ds.ReferencedStudySequence = Sequence([_reference("1.2.840.10008.3.1.2.3.1", visit.step_uid)])


def _series_and_equipment(ds: Dataset, person: Person, place: Place, visit: Visit) -> None:
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "DX", 1, 1
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.SeriesDescription, ds.BodyPartExamined = "Chest PA", "CHEST"
    ds.OperatorsName = ds.PerformingPhysicianName = person.operator
    ds.ProtocolName = f"Chest PA by {person.operator.split('^')[0]}"
    request = Dataset()
    request.RequestedProcedureID = visit.accession_number
    request.ScheduledProcedureStepID = visit.study_id
    request.ScheduledProcedureStepDescription = f"{person.name.split('^')[0]}: chest"
    ds.RequestAttributesSequence = Sequence([request])
    ds.ReferencedPerformedProcedureStepSequence = Sequence([_reference(STUDY_COMPONENT, visit.step_uid)])
    ds.Manufacturer, ds.ManufacturerModelName = place.manufacturer, "Invented DX"
    ds.InstitutionName, ds.InstitutionAddress = place.institution, place.address
    ds.StationName, ds.DeviceSerialNumber = place.station, place.serial_number
    ds.SoftwareVersions = "1.0"
    before = Dataset()
    before.PatientName, before.PatientID = person.mother_birth_name, person.other_patient_id
    change = Dataset()
    change.ModifiedAttributesSequence = Sequence([before])
    change.AttributeModificationDateTime = visit.date + "080000"
    change.ModifyingSystem, change.SourceOfPreviousValues = place.station, ""
    change.ReasonForTheAttributeModification = "CORRECT"
    ds.OriginalAttributesSequence = Sequence([change])


def _image(ds: Dataset, picture: Picture) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.ImageComments = ""
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, picture.photometric
    ds.Rows, ds.Columns = picture.pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, picture.bits_stored, picture.bits_stored - 1
    ds.PixelRepresentation = 0
    ds.PixelData = picture.pixels.astype("<u2").tobytes()
    inverse = picture.photometric == "MONOCHROME1"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    full = 1 << picture.bits_stored
    ds.WindowCenter, ds.WindowWidth = str(full // 2), str(full)
    ds.PatientOrientation, ds.ImageLaterality = ["L", "F"], "U"
    ds.AnatomicRegionSequence = Sequence([_code("816094009", "SCT", "Chest")])


def _acquisition(ds: Dataset, person: Person) -> None:
    ds.ImagerPixelSpacing = ds.PixelSpacing = [str(_PIXEL_MM), str(_PIXEL_MM)]
    ds.PixelSpacingCalibrationType = "GEOMETRY"
    ds.PixelSpacingCalibrationDescription = "Source to image distance 1800 mm"
    ds.DetectorType, ds.DetectorConfiguration = "SCINTILLATOR", "AREA"
    ds.FieldOfViewShape, ds.PositionerType, ds.ViewPosition = "RECTANGLE", "NONE", "PA"
    ds.ViewCodeSequence = Sequence([_code("272479007", "SCT", "Postero-anterior")])
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([])
    note = Dataset()
    note.ValueType = "TEXT"
    note.ConceptNameCodeSequence = Sequence([_code("121106", "DCM", "Comment")])
    note.TextValue = f"{person.name.split('^')[0]} was held by {person.operator.split('^')[0]}"
    ds.AcquisitionContextSequence = Sequence([note])


def _private(ds: Dataset, person: Person, visit: Visit) -> None:
    block = ds.private_block(0x0009, "INVENTED RIS 1.0", create=True)
    block.add_new(0x10, "PN", person.name)
    raw = f"{person.patient_id}|{person.birth_date}".encode()
    block.add_new(0x11, "UN", raw + b" " * (len(raw) % 2))
    inner = Dataset()
    inner.PatientID, inner.AccessionNumber = person.patient_id, visit.accession_number
    nested = inner.private_block(0x0011, "INVENTED RIS 1.0", create=True)
    nested.add_new(0x01, "LT", f"{person.name.split('^')[0]}, {person.address}, {person.insurance_number}")
    block.add_new(0x12, "SQ", Sequence([inner]))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return ds
