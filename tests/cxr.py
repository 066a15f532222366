"""Real chest X-rays of two hospitals as DX and CR instances with invented identities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from appliance.demo.identities import Person, invent
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Hospital = Literal["guangzhou", "nih"]
_PIXEL_MM: Final = {"guangzhou": 12.0, "nih": 5.6}


@dataclass(frozen=True)
class CXRStudy:
    """One study of one instance; ``planted`` are values that may appear nowhere outside the clinical zone."""

    path: Path
    patient_id: str
    patient_name: str
    study_instance_uid: str
    sop_instance_uid: str
    label: int
    planted: frozenset[str]


@dataclass(frozen=True)
class _Source:
    """One picture: ``owner`` groups pictures of one person."""

    pixels: NDArray[np.uint8]
    owner: str
    label: int


def write_studies(hospital: Hospital, folder: Path, count: int, seed: int = 0) -> list[CXRStudy]:
    """Write ``count`` studies, half of them with pneumonia, as valid DICOM files.

    ``guangzhou`` (children, 28 x 28) becomes Computed Radiography in implicit VR, ``nih`` (adults, 64 x 64)
    Digital X-Ray in explicit VR. Pictures of one person keep one invented identity.
    """
    rng = np.random.default_rng([seed, len(hospital)])
    folder.mkdir(parents=True, exist_ok=True)
    people: dict[str, Person] = {}
    studies = []
    for number, source in enumerate(_choose(rng, _sources(hospital), count)):
        person = people.setdefault(source.owner, invent(rng, hospital[:3].upper(), number))
        studies.append(_write(rng, hospital, source, person, folder / f"{number:04d}.dcm"))
    return studies


def write_labels(path: Path, studies: list[CXRStudy], label: str) -> None:
    """Write a labels file with original identifiers, as a hospital would hold it."""
    rows = [f"{study.patient_id},{study.study_instance_uid},{label},{study.label}" for study in studies]
    path.write_text("\n".join(["patient_id,study_instance_uid,label,value", *rows]) + "\n", encoding="utf-8")


def _sources(hospital: Hospital) -> list[_Source]:
    folder = shared_data_dir() / "cxr_pneumonia"
    if hospital == "guangzhou":
        with np.load(folder / "site_guangzhou_pneumoniamnist28.npz") as content:
            pixels, labels = content["train_images"], content["train_labels"]
        return [_Source(p, f"g{i}", int(y)) for i, (p, y) in enumerate(zip(pixels, labels, strict=True))]
    with np.load(folder / "site_nih_covid_talo.npz") as content:
        pixels, labels, names = content["images64"], content["labels"], content["names"]
    kept = [i for i in range(len(labels)) if labels[i] in (0, 1)]
    return [_Source(pixels[i], _owner(str(names[i])), int(labels[i])) for i in kept]


def _owner(name: str) -> str:
    """Return the patient's number, which stands before the underscore in the file's name."""
    found = re.search(r"(\d+)_\d+\.\w+$", name)
    return found.group(1) if found else name


def _choose(rng: np.random.Generator, sources: list[_Source], count: int) -> list[_Source]:
    chosen = []
    for label, wanted in ((0, count - count // 2), (1, count // 2)):
        having = [source for source in sources if source.label == label]
        chosen += [having[i] for i in rng.choice(len(having), wanted, replace=False)]
    return [chosen[i] for i in rng.permutation(count)]


def _write(
    rng: np.random.Generator, hospital: Hospital, source: _Source, person: Person, path: Path
) -> CXRStudy:
    ds = Dataset()
    study, series, instance = (f"2.25.{int.from_bytes(rng.bytes(16), 'big')}" for _ in range(3))
    accession = f"ACC{int(rng.integers(10**8, 10**9))}"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = person.name, person.patient_id
    ds.PatientBirthDate, ds.PatientSex = person.birth_date, person.sex
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, series, instance
    ds.StudyDate = ds.AcquisitionDate = ds.ContentDate = f"{int(rng.integers(2015, 2024))}0415"
    ds.StudyTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.StudyID = accession, "1"
    ds.ReferringPhysicianName, ds.OperatorsName = person.referring, person.operator
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.StudyDescription, ds.BodyPartExamined = "Chest", "CHEST"
    ds.Manufacturer, ds.PatientOrientation = "", ["L", "F"]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    _pixels(ds, source.pixels)
    if hospital == "nih":
        _digital_x_ray(ds)
    else:
        ds.Modality, ds.SOPClassUID, ds.ViewPosition = "CR", ComputedRadiographyImageStorage, "AP"
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.ImagerPixelSpacing = [str(_PIXEL_MM[hospital])] * 2
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(ds.SOPClassUID)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if hospital == "nih" else ImplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    names = {*person.name.split("^"), *person.referring.split("^"), *person.operator.split("^")}
    planted = frozenset(names | {person.patient_id, person.birth_date, study, series, instance, accession})
    return CXRStudy(path, person.patient_id, person.name, study, instance, source.label, planted)


def _pixels(ds: Dataset, pixels: NDArray[np.uint8]) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    ds["PixelData"].VR = "OB"


def _digital_x_ray(ds: Dataset) -> None:
    ds.Modality, ds.SOPClassUID = "DX", DigitalXRayImageStorageForPresentation
    ds.PresentationIntentType, ds.ImageType = "FOR PRESENTATION", ["ORIGINAL", "PRIMARY", ""]
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape, ds.WindowCenter, ds.WindowWidth = "IDENTITY", "128", "256"
    ds.ImageLaterality, ds.DetectorType, ds.PositionerType = "U", "SCINTILLATOR", "NONE"
    ds.AnatomicRegionSequence = Sequence([_code("816094009", "SCT", "Chest")])
    ds.ViewCodeSequence = Sequence([_code("272479007", "SCT", "Postero-anterior")])
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([])
    ds.AcquisitionContextSequence = Sequence([])


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds
