"""Heads as series of slices: CT and MR, in any pose, orientation and spacing, as files of single frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tests.anonymizer.heads import AIR, BONE, BRAIN, CSF, EYE, FAT, GRID_MM, SINUS, SOFT, Head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]

CONTRASTS: Final = {
    "CT": {AIR: -1000, SOFT: 45, FAT: -80, BONE: 900, BRAIN: 34, CSF: 6, EYE: 12, SINUS: -980},
    "T1": {AIR: 0, SOFT: 210, FAT: 460, BONE: 45, BRAIN: 300, CSF: 80, EYE: 90, SINUS: 4},
    "T2": {AIR: 0, SOFT: 130, FAT: 330, BONE: 35, BRAIN: 230, CSF: 560, EYE: 540, SINUS: 4},
    "FATSAT": {AIR: 0, SOFT: 110, FAT: 45, BONE: 20, BRAIN: 230, CSF: 560, EYE: 540, SINUS: 4},
    "STRIPPED": {AIR: 0, SOFT: 2, FAT: 2, BONE: 2, BRAIN: 300, CSF: 90, EYE: 3, SINUS: 2},
    "DIFFUSION": {AIR: 0, SOFT: 25, FAT: 12, BONE: 6, BRAIN: 300, CSF: 90, EYE: 60, SINUS: 4},
    "FLAIR": {AIR: 0, SOFT: 160, FAT: 300, BONE: 30, BRAIN: 280, CSF: 40, EYE: 50, SINUS: 4},
}
ORIENTATIONS: Final = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
}


@dataclass(frozen=True)
class Scan:
    """How a head is scanned.

    ``turn_deg``: rotation about the axes to the left, the back and the head. ``top_mm``, ``bottom_mm``: what
    the slices cover, from the vertex down, for axial ones. ``tilt_deg``: of the gantry.
    """

    contrast: str = "T1"
    orientation: str = "axial"
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pixel_mm: float = 1.0
    gap_mm: float = 4.0
    field_mm: float = 256.0
    above_mm: float = 12.0
    length_mm: float = 230.0
    tilt_deg: float = 0.0
    noise: float = 0.03
    bias: float = 0.25
    table: bool = True
    seed: int = 0
    attributes: dict[str, Any] = field(default_factory=lambda: {"BodyPartExamined": "HEAD"})


@dataclass(frozen=True)
class Slice:
    """One slice with its ground truth; ``places`` in millimetres of the patient, shape (3, rows, columns)."""

    ds: Dataset
    values: Array
    brain: Array
    face: Array
    head: Array
    corner: Array


def slices(head: Head, scan: Scan) -> Iterator[Slice]:
    """Yield the slices of a head, one after the other."""
    random = np.random.default_rng(scan.seed)
    turn = _turn(scan)
    row, column = (np.array(each, float) for each in ORIENTATIONS[scan.orientation])
    normal = np.cross(row, column)
    if scan.tilt_deg:
        tilt = Rotation.from_euler("x", scan.tilt_deg, degrees=True).as_matrix()
        row, column = tilt @ row, tilt @ column
    size = round(scan.field_mm / scan.pixel_mm)
    corners = _corners(head, scan, turn, (row, column, normal), size)
    study, series = generate_uid(None, [f"{scan}", "study"]), generate_uid(None, [f"{scan}", "series"])
    frame_of_reference = generate_uid(None, [f"{scan}", "frame"])
    steps = np.arange(size) * scan.pixel_mm
    signal, back = _signal(head, scan.contrast), float(_body(head, turn)[1].max())
    for number, corner in enumerate(corners):
        places = (
            corner[:, None, None]
            + row[:, None, None] * steps[None, None, :]
            + column[:, None, None] * steps[None, :, None]
        )
        index = (np.tensordot(turn.T, places, axes=1) - head.origin[:, None, None]) / GRID_MM
        values = _seen(scan, signal, index, places, back, random)
        ds = _dataset(scan, values, number, (study, series, frame_of_reference))
        ds.ImagePositionPatient = [f"{x:.4f}" for x in corner]
        ds.ImageOrientationPatient = [f"{x:.6f}" for x in (*row, *column)]
        brain, face, body = (
            ndimage.map_coordinates(mask.astype(np.uint8), index, order=0, mode="constant") > 0
            for mask in (head.brain, head.face, head.labels != AIR)
        )
        yield Slice(ds, values, brain, face, body, corner)


def turned(scan: Scan, place: Array) -> Array:
    """Return where a place of the head's own system lies in the patient's."""
    return np.asarray(_turn(scan) @ place)


def _turn(scan: Scan) -> Array:
    return np.asarray(Rotation.from_euler("xyz", scan.turn_deg, degrees=True).as_matrix())


def _corners(head: Head, scan: Scan, turn: Array, axes: tuple[Array, Array, Array], size: int) -> list[Array]:
    row, column, normal = axes
    body = _body(head, turn)
    top = body[2].max() + scan.above_mm
    centre = (body.min(axis=1) + body.max(axis=1)) / 2
    half = (row + column) * scan.pixel_mm * (size - 1) / 2
    if scan.orientation == "axial":
        count = int(scan.length_mm / scan.gap_mm)
        return [
            np.array([centre[0], centre[1], top - scan.gap_mm * k]) - half for k in reversed(range(count))
        ]
    across = body.T @ normal
    middle = centre.copy()
    middle[2] = top - scan.field_mm / 2
    lowest, highest = across.min() - 8, across.max() + 8
    return [middle + normal * (at - middle @ normal) - half for at in np.arange(lowest, highest, scan.gap_mm)]


def _signal(head: Head, contrast: str) -> Array:
    values = np.array([CONTRASTS[contrast][label] for label in range(len(CONTRASTS[contrast]))], np.float32)
    return np.asarray(ndimage.gaussian_filter(values[head.labels], 0.5))


def _seen(
    scan: Scan, signal: Array, index: Array, places: Array, back: float, random: np.random.Generator
) -> Array:
    values = ndimage.map_coordinates(
        signal, index, order=1, mode="constant", cval=CONTRASTS[scan.contrast][AIR]
    )
    if scan.contrast == "CT":
        if scan.table:
            values = np.where((places[1] > back) & (places[1] < back + 9), np.maximum(values, -150), values)
        values = values + random.normal(0, 1000 * scan.noise * 0.4, values.shape)
        return np.asarray(np.clip(np.round(values), -1024, 3071).astype(np.int16))
    field_of_coil = 1 + scan.bias * np.tanh((places[2] + places[1] * 0.5) / 90)
    spread = scan.noise * 300
    noisy = np.hypot(
        values * field_of_coil + random.normal(0, spread, values.shape),
        random.normal(0, spread, values.shape),
    )
    return np.asarray(np.clip(np.round(noisy), 0, 4095).astype(np.uint16))


def _body(head: Head, turn: Array) -> Array:
    return np.asarray(turn @ (np.argwhere(head.labels != AIR)[::97].T * GRID_MM + head.origin[:, None]))


def _dataset(scan: Scan, values: Array, number: int, uids: tuple[str, str, str]) -> Dataset:
    ds = Dataset()
    tomography = scan.contrast == "CT"
    ds.SOPClassUID = CTImageStorage if tomography else MRImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
    ds.SOPInstanceUID = generate_uid(None, [uids[1], str(number)])
    ds.PatientName, ds.PatientID = "Phantom^Head", "HEAD-0001"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "O"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20240102", "101500", "A100200"
    ds.Modality = "CT" if tomography else "MR"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if tomography else "OTHER"]
    ds.InstanceNumber, ds.SeriesNumber = number + 1, 3
    ds.SliceThickness = f"{scan.gap_mm:g}"
    ds.PixelSpacing = [f"{scan.pixel_mm:g}"] * 2
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = 1 if tomography else 0
    if tomography:
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
        ds.KVP = "120"
    else:
        ds.ScanningSequence, ds.SequenceVariant = "GR", "SP"
        ds.MRAcquisitionType, ds.EchoTime, ds.RepetitionTime = "3D", "3", "8"
    ds.PixelData = values.astype("<i2" if tomography else "<u2").tobytes()
    for keyword, value in scan.attributes.items():
        setattr(ds, keyword, value)
    return ds


def written(head: Head, scan: Scan, folder: Path) -> list[Slice]:
    """Write a series into a folder, one file a slice, and return its slices."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(slices(head, scan))
    for number, each in enumerate(found):
        each.ds.file_meta = FileMetaDataset()
        each.ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        each.ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return found


def enhanced(found: list[Slice]) -> Dataset:
    """Return CT slices as one multi-frame instance, ready to be saved."""
    first = found[0].ds
    ds = Dataset()
    ds.update({element.tag: element for element in first if element.tag.group != 0x7FE0})
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(ds, keyword)
    del ds.RescaleIntercept
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedCTImageStorage, generate_uid(None, [first.SeriesInstanceUID])
    ds.NumberOfFrames = len(found)
    orientation, measures, values = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "0", "HU"
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([_frame(each) for each in found])
    ds.PixelData = b"".join(each.ds.PixelData for each in found)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _frame(each: Slice) -> Dataset:
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = each.ds.ImagePositionPatient
    group.PlanePositionSequence = Sequence([position])
    return group
