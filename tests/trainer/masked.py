"""MR series with DICOM SEG masks for tests and benchmarks: drawn ones, and the hippocampus volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import highdicom as hd
import numpy as np
from pydicom import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from inference.preprocessing import PreprocessingSpec
from tests.nifti import read_nifti
from tests.shared_data import shared_data_dir
from trainer.datasets import Dataset, Samples
from trainer.segmentation.spec import Segment, SegmentationSpec
from trainer.task import LocalSpec, NetworkSpec, TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The two parts have no code of their own in the dictionaries at hand; the scheme says that they are ours.
SEGMENTS: Final = (
    Segment("HIP-ANT", "99CLOISTER", "Anterior hippocampus"),
    Segment("HIP-POST", "99CLOISTER", "Posterior hippocampus"),
)
_WHITE: Final = 4095


def hippocampus_task(**changes: Any) -> TaskSpec:
    """Return the task of both parts of the hippocampus, at 1.5 mm."""
    values: dict[str, Any] = {
        "name": "hippocampus",
        "label": "hippocampus",
        "modalities": ("MR",),
        "preprocessing": PreprocessingSpec(rows=40, columns=24),
        "segmentation": SegmentationSpec(3, SEGMENTS, slices=24, spacing_mm=(1.5, 1.5, 1.5)),
        "network": NetworkSpec("unet", {"features": [8, 16, 32], "groups": 4}),
        "local": LocalSpec(batch_size=4, local_steps=10, learning_rate=3e-3, shift_fraction=0.05),
        **changes,
    }
    return TaskSpec(**values)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Grey values and classes, shape (slices, rows, columns)."""

    image: NDArray[np.uint16]
    mask: NDArray[np.uint8]


def draw(seed: int, shape: tuple[int, int, int] = (16, 24, 16)) -> Drawn:
    """Draw two touching boxes in noise."""
    generator = np.random.default_rng(seed)
    image = generator.normal(400.0, 60.0, shape)
    mask = np.zeros(shape, dtype=np.uint8)
    first, row, column = (int(generator.integers(2, extent // 2 - 1)) for extent in shape)
    mask[first : first + 6, row : row + 5, column : column + 6] = 1
    mask[first : first + 6, row + 5 : row + 10, column : column + 6] = 2
    image += np.where(mask == 1, 700.0, 0.0) + np.where(mask == 2, 1400.0, 0.0)
    return Drawn(image.clip(0, _WHITE).astype(np.uint16), mask)


def hippocampus_names() -> list[str]:
    """Return the names of the volumes that have an image and a mask, in order."""
    folder = shared_data_dir() / "hippocampus_msd"
    masks = {path.name for path in (folder / "labels").glob("*.nii.gz")}
    return sorted(path.name for path in (folder / "images").glob("*.nii.gz") if path.name in masks)


def hippocampus(name: str) -> Drawn:
    """Read a volume as slices from foot to head, rows from front to back, columns from right to left."""
    folder = shared_data_dir() / "hippocampus_msd"
    (image, affine), (mask, _) = (read_nifti(folder / part / name) for part in ("images", "labels"))
    if not np.allclose(affine[:3, :3], np.eye(3)):
        raise ValueError(f"{name}: expected voxels of 1 mm along the axes")
    lps = [np.ascontiguousarray(array[::-1, ::-1].transpose(2, 1, 0)) for array in (image, mask)]
    scaled = lps[0].astype(np.float64) * _WHITE / max(1.0, float(lps[0].max()))
    return Drawn(np.rint(scaled).astype(np.uint16), lps[1].astype(np.uint8))


def series(
    image: NDArray[np.uint16],
    patient_id: str,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    orientation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    origin: tuple[float, float, float] = (-20.0, -30.0, 10.0),
) -> list[DicomDataset]:
    """Wrap a volume as MR instances; ``spacing_mm`` is of slices, rows and columns."""
    study, group, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    found = []
    for number, plane in enumerate(image):
        ds = DicomDataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, group, frame
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient_id, "", "", ""
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "", "20200101", "000000", ""
        ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "", ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", 1, number + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        ds.ImageOrientationPatient = list(orientation)
        ds.ImagePositionPatient = [
            float(value) for value in np.round(np.array(origin) + normal * spacing_mm[0] * number, 6)
        ]
        ds.PixelSpacing, ds.SliceThickness = [spacing_mm[1], spacing_mm[2]], spacing_mm[0]
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = plane.astype("<u2").tobytes()
        found.append(ds)
    return found


def segmentation(
    sources: list[DicomDataset],
    mask: NDArray[Any],
    segments: tuple[Segment, ...] = SEGMENTS,
    kind: str = "BINARY",
) -> DicomDataset:
    """Make a DICOM SEG of a mask on these slices, without its empty frames."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.meaning,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=Code(segment.code, segment.scheme, segment.meaning),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, segment in enumerate(segments, start=1)
    ]
    made: DicomDataset = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Cloister tests",
        manufacturer_model_name="drawn",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=bool(mask.any()),
    )
    return made


def write(folder: Path, patient_id: str, drawn: Drawn, **options: Any) -> list[Path]:
    """Write a series and its mask below a folder; return the paths, the mask's last."""
    sources = series(drawn.image, patient_id, **options)
    return save(folder / patient_id, [*sources, segmentation(sources, drawn.mask)])


def save(folder: Path, instances: list[DicomDataset]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{ds.SOPInstanceUID}.dcm" for ds in instances]
    for path, ds in zip(paths, instances, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def small_masks_task(**changes: Any) -> TaskSpec:
    """Return a task of the drawn volumes at their own size."""
    values: dict[str, Any] = {
        "name": "boxes",
        "label": "boxes",
        "preprocessing": PreprocessingSpec(rows=24, columns=16),
        "segmentation": SegmentationSpec(3, SEGMENTS, slices=16, spacing_mm=(1.0, 1.0, 1.0)),
        "network": NetworkSpec("unet", {"features": [4, 8], "groups": 2}),
        "local": LocalSpec(batch_size=4, local_steps=6, learning_rate=2e-2),
        **changes,
    }
    return hippocampus_task(**values)


def pictures_task(**changes: Any) -> TaskSpec:
    """Return a task whose cases are the slices of drawn volumes."""
    values: dict[str, Any] = {
        "preprocessing": PreprocessingSpec(rows=24, columns=16),
        "segmentation": SegmentationSpec(2, SEGMENTS),
        **changes,
    }
    return small_masks_task(**values)


def drawn_masks(seed: int, count: int, task: TaskSpec) -> Samples:
    """Return drawn volumes as they come out of preprocessing, each of another patient."""
    drawn = [draw(seed * 1000 + number) for number in range(count)]
    x = np.stack([one.image[np.newaxis] / np.float32(500) - np.float32(1) for one in drawn]).astype(
        np.float32
    )
    y = np.stack([one.mask for one in drawn])
    if len(task.size) == 2:
        x, y = x[:, :, 8], y[:, 8]
    return Samples(x, y, tuple(f"{seed}-{number}" for number in range(count)))


def drawn_masks_dataset(seed: int, task: TaskSpec, *, train: int = 8, validation: int = 4) -> Dataset:
    return Dataset(drawn_masks(seed, train, task), drawn_masks(seed + 100, validation, task))
