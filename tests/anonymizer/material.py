"""Instances with planted marks, and what a reader other than ours makes of the outcome."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from pydicom import DataElement, Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from anonymizer.engine import Context, Quarantined, Released, deidentify
from anonymizer.keys import ProjectKeys
from anonymizer.options import Option
from anonymizer.profiles import load_profile

if TYPE_CHECKING:
    from pydicom import FileDataset

PLAIN: Final = load_profile("modified-dates")
CONTEXT: Final = Context(ProjectKeys.derive(b"\x07" * 32, "trial"), "trial", profile=PLAIN)
_RESEARCH: Final = load_profile()
DEFAULT: Final = Context(CONTEXT.keys, "trial")
UNSEEN: Final = Context(
    CONTEXT.keys, "trial", profile=replace(_RESEARCH, options=_RESEARCH.options - {Option.CLEAN_PIXELS})
)
"""The default without a look at the pixels, which takes seconds for each picture."""
OTHER: Final = Context(ProjectKeys.derive(b"\x08" * 32, "trial"), "trial", profile=PLAIN)
STUDY_UID: Final = "1.3.6.1.4.1.99999.7.1"
SERIES_UID: Final = "1.3.6.1.4.1.99999.7.2"
SOP_UID: Final = "1.3.6.1.4.1.99999.7.3"
FRAME_UID: Final = "1.3.6.1.4.1.99999.7.4"


class Marks:
    """Hands out marks that occur nowhere else, and remembers where each was planted."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        """Return the mark of a place."""
        mark = f"ZQMARK{len(self.where):03d}"
        self.where[mark] = place
        return mark

    def survivors(self, content: bytes) -> list[str]:
        """Return the places whose mark is in the bytes, in whatever encoding."""
        lowered = content.lower()
        return [
            place
            for mark, place in self.where.items()
            if mark.lower().encode() in lowered or mark.lower().encode("utf-16-le") in lowered
        ]


def ct(patient_id: str = "MRN-4711-X", *, rows: int = 8, columns: int = 8) -> Dataset:
    """Return a small CT Image, complete enough for dciodvfy."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, SOP_UID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY_UID, SERIES_UID, FRAME_UID
    ds.StudyDate, ds.StudyTime = "20240229", "101112.5"
    ds.SeriesDate, ds.SeriesTime = "20240229", "101200"
    ds.AcquisitionDate, ds.ContentDate = "20240229", "20240301"
    ds.AcquisitionTime, ds.ContentTime = "101201", "000102"
    ds.AccessionNumber, ds.StudyID = "ACC-998877", "55"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "Maker", "Model 1"
    ds.ReferringPhysicianName = "Überweiser^Hans"
    ds.PatientName, ds.PatientID = "Müstermann^Jörg", patient_id
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19560708", "M", "067Y"
    ds.BodyPartExamined, ds.PatientPosition, ds.PositionReferenceIndicator = "CHEST", "HFS", ""
    ds.KVP, ds.SliceThickness, ds.Laterality = "120", "1.5", ""
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = "3", "1", "17"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.PixelSpacing = rows, columns, [0.5, 0.5]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.PixelData = np.arange(rows * columns, dtype="<u2").tobytes()
    return ds


def item(**values: object) -> Dataset:
    """Return a sequence item."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def planted(marks: Marks) -> Dataset:
    """Return a CT with a mark wherever identity has been seen to hide, kept places excepted."""
    ds = ct()
    keywords = (
        "PatientComments AdditionalPatientHistory Occupation InstitutionName InstitutionAddress StationName"
        " InstitutionalDepartmentName DeviceSerialNumber StudyDescription SeriesDescription ProtocolName"
        " ImageComments RequestedProcedureDescription PerformedProcedureStepDescription DerivationDescription"
        " ContrastBolusAgent OtherPatientNames PatientAddress PatientTelephoneNumbers DetectorID CassetteID"
        " PlateID GantryID AdmissionID ServiceEpisodeID MedicalRecordLocator CurrentPatientLocation"
        " RespiratoryMotionCompensationTechniqueDescription OperatorsName PhysiciansOfRecord"
        " RequestingService RequestingPhysician InsurancePlanIdentification MilitaryRank BranchOfService"
        " PatientReligiousPreference"
        " EthnicGroup RegionOfResidence CountryOfResidence TimezoneOffsetFromUTC AcquisitionComments"
        " StructureSetLabel StructureSetName ROIName ROIDescription ROIInterpreter DocumentTitle TextValue"
    )
    for keyword in keywords.split():
        setattr(ds, keyword, marks(keyword))
    _plant_in_sequences(ds, marks)
    _plant_outside_the_tables(ds, marks)
    return ds


def _plant_in_sequences(ds: Dataset, marks: Marks) -> None:
    code = item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning=marks("physician code meaning"))
    person = item(
        PersonIdentificationCodeSequence=Sequence([code]),
        InstitutionName=marks("nested institution"),
        PersonAddress=marks("nested address"),
    )
    ds.ReferringPhysicianIdentificationSequence = Sequence([person])
    ds.RequestAttributesSequence = Sequence(
        [
            item(
                ScheduledProcedureStepDescription=marks("request attributes"),
                RequestedProcedureID=marks("request id"),
            )
        ]
    )
    ds.OriginalAttributesSequence = Sequence(
        [
            item(
                ModifyingSystem=marks("modifying system"),
                SourceOfPreviousValues=marks("source of previous values"),
                ModifiedAttributesSequence=Sequence([item(PatientName=marks("modified name"))]),
            )
        ]
    )
    ds.ContributingEquipmentSequence = Sequence(
        [
            item(
                Manufacturer="Maker",
                InstitutionName=marks("equipment institution"),
                OperatorsName=marks("equipment operator"),
                ContributionDescription=marks("contribution"),
                DeviceSerialNumber=marks("equipment serial"),
            )
        ]
    )
    _plant_in_content(ds, marks)


def _plant_in_content(ds: Dataset, marks: Marks) -> None:
    icon = ct()
    icon.PixelData = (marks("icon pixels") * 20).encode()[:128]
    ds.IconImageSequence = Sequence([item(Rows=8, Columns=8, BitsAllocated=16, PixelData=icon.PixelData)])
    ds["IconImageSequence"].value[0]["PixelData"].VR = "OW"
    ds.ContentSequence = Sequence([item(ValueType="TEXT", TextValue=marks("content text"))])
    text = item(UnformattedTextValue=marks("unformatted text"))
    ds.GraphicAnnotationSequence = Sequence([item(TextObjectSequence=Sequence([text]))])
    ds.DigitalSignaturesSequence = Sequence([item(CertificateOfSigner=marks("certificate").encode() + b"\0")])
    ds.OtherPatientIDsSequence = Sequence([item(PatientID=marks("other id"), IssuerOfPatientID="X")])


def _plant_outside_the_tables(ds: Dataset, marks: Marks) -> None:
    for tag, vr in (
        (0x00100012, "LO"),  # Name to Use, newer than the dictionary
        (0x0040B03B, "LO"),  # Montage Name, newer than the dictionary
        (0x0018FF77, "LO"),  # no such attribute
        (0x0020FF01, "PN"),
        (0x50000022, "LO"),  # curve description
        (0x60000022, "LO"),  # overlay description, no row in E.1-1
        (0x60004000, "LT"),  # overlay comments
        (0xFFFCFFFC, "OB"),  # data set trailing padding
    ):
        mark = marks(f"({tag >> 16:04X},{tag & 0xFFFF:04X})")
        ds.add(DataElement(tag, vr, mark.encode() + b"\0" if vr == "OB" else mark))
    ds.add(DataElement(0x50003000, "OW", (marks("curve data") + " ").encode()))
    ds.add(DataElement(0x60023000, "OW", (marks("overlay data") + " ").encode()))
    block = ds.private_block(0x0029, marks("private creator"), create=True)
    block.add_new(0x10, "LO", marks("private LO"))
    block.add_new(0x11, "PN", marks("private PN"))
    block.add_new(0x12, "UN", marks("private UN").encode() + b"\0")
    block.add_new(0x13, "SQ", Sequence([item(PatientName=marks("private SQ name"))]))
    nested = item(Manufacturer="Maker")
    nested.private_block(0x0031, marks("nested creator"), create=True).add_new(
        1, "LO", marks("nested private")
    )
    ds.DeviceSequence = Sequence([nested])


def encode(
    ds: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian, *, marks: Marks | None = None
) -> bytes:
    """Return the bytes of a Part 10 file; with ``marks`` in preamble and file meta information too."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "")
    meta.TransferSyntaxUID = transfer_syntax
    out = Dataset()
    out.update(ds)
    out.file_meta = meta
    buffer = io.BytesIO()
    if marks is not None:
        meta.SourceApplicationEntityTitle = marks("meta source AE title")
        meta.SendingApplicationEntityTitle = marks("meta sending AE title")
        meta.PrivateInformationCreatorUID = UID("1.3.6.1.4.1.99999.9")
        meta.PrivateInformation = marks("meta private information").encode() + b"\0"
        out.preamble = marks("preamble").encode().ljust(128, b"\0")
    out.save_as(
        buffer,
        implicit_vr=transfer_syntax == ImplicitVRLittleEndian,
        little_endian=transfer_syntax.is_little_endian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


@dataclass(frozen=True)
class Outcome:
    """A released instance: what the engine says of it, its bytes, and what pydicom reads in them."""

    released: Released
    content: bytes

    @property
    def ds(self) -> FileDataset:
        """The instance as pydicom reads it."""
        return dcmread(io.BytesIO(self.content))


def release(content: bytes | Dataset, context: Context = CONTEXT) -> Outcome:
    """De-identify what must be released."""
    outcome = deidentify(content if isinstance(content, bytes) else encode(content), context)
    assert not isinstance(outcome, Quarantined), outcome
    return Outcome(outcome[0], b"".join(outcome[1]))


def stop(content: bytes | Dataset) -> Quarantined:
    """De-identify what must be stopped."""
    outcome = deidentify(content if isinstance(content, bytes) else encode(content), CONTEXT)
    assert isinstance(outcome, Quarantined), "released"
    return outcome
