"""Small inputs for the trainer's tests: tasks, drawn pictures, DICOM files, real chest radiographs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from inference.preprocessing import PreprocessingSpec, prepare_pixels
from tests.shared_data import shared_data_dir
from trainer.datasets import Case, Dataset, Samples, split
from trainer.task import Finding, LocalSpec, NetworkSpec, TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def small_task(**changes: Any) -> TaskSpec:
    values: dict[str, Any] = {
        "name": "blob",
        "label": "blob",
        "modalities": ("CR",),
        "preprocessing": PreprocessingSpec(rows=32, columns=32),
        "finding": Finding("52988006", "SCT", "Lesion"),
        "network": NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2}),
        "local": LocalSpec(batch_size=8, local_steps=8, learning_rate=3e-3),
        **changes,
    }
    return TaskSpec(**values)


def picture(generator: np.random.Generator, label: int, *, noise: float = 20.0) -> NDArray[np.uint16]:
    """Draw 48 x 40 pixels of noise, with a bright disc at a random place where ``label`` is 1."""
    rows, columns = np.mgrid[0:48, 0:40]
    image = generator.normal(400.0, noise, (48, 40))
    if label:
        centre = generator.integers(10, 30, 2)
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= 36
        image[inside] += 200.0
    return image.clip(0, 4095).astype(np.uint16)


def drawn(seed: int, count: int, task: TaskSpec, *, noise: float = 20.0) -> Samples:
    """Return drawn samples, half of them positive, each of another patient."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pictures = [picture(generator, int(label), noise=noise) for label in labels]
    x = np.stack([prepare_pixels(pixels, task.preprocessing) for pixels in pictures])
    return Samples(x, labels.astype(np.uint8), tuple(f"{seed}-{i}" for i in range(count)))


def drawn_dataset(
    seed: int, task: TaskSpec, *, train: int = 24, validation: int = 16, noise: float = 20.0
) -> Dataset:
    return Dataset(drawn(seed, train, task, noise=noise), drawn(seed + 1000, validation, task, noise=noise))


def dicom_picture(pixels: NDArray[np.uint16], patient_id: str, **changes: Any) -> DicomDataset:
    """Wrap a picture as a CR instance."""
    ds = DicomDataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.PatientID = patient_id
    ds.Modality = "CR"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    ds.PixelData = pixels.tobytes()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def write_case(folder: Path, ds: DicomDataset, label: int) -> Case:
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return Case(str(ds.PatientID), path, label, hashlib.sha256(path.read_bytes()).hexdigest())


def write_cases(folder: Path, count: int, seed: int = 0, per_patient: int = 1) -> list[Case]:
    generator = np.random.default_rng(seed)
    return [
        write_case(folder, dicom_picture(picture(generator, i % 2), f"P{seed}-{i // per_patient}"), i % 2)
        for i in range(count)
    ]


def real_sites(task: TaskSpec) -> dict[str, Dataset]:
    """Return real chest radiographs: children of one hospital, adults of another as two sites."""
    folder = shared_data_dir() / "cxr_pneumonia"
    generator = np.random.default_rng(0)
    guangzhou = np.load(folder / "site_guangzhou_pneumoniamnist28.npz")
    chosen = generator.permutation(len(guangzhou["train_labels"]))[:240]
    names = np.array([f"g{i}" for i in chosen])
    sites = {
        "guangzhou": _dataset(
            guangzhou["train_images"][chosen], guangzhou["train_labels"][chosen], names, task
        )
    }
    nih = np.load(folder / "site_nih_covid_talo.npz")
    usable = generator.permutation(np.flatnonzero(nih["labels"] != 2))
    patients = np.array([str(name).rsplit("/", 1)[-1].split("_", 1)[0] for name in nih["names"]])
    odd = np.array([int(patients[i]) % 2 == 1 for i in usable])
    for site, part in (("nih-a", usable[odd][:240]), ("nih-b", usable[~odd][:240])):
        sites[site] = _dataset(nih["images64"][part], nih["labels"][part], patients[part], task)
    return sites


def _dataset(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], patients: NDArray[np.str_], task: TaskSpec
) -> Dataset:
    held_out = split((str(p) for p in patients), 0.4, "test")[1]
    x = np.stack([prepare_pixels(image, task.preprocessing) for image in images])
    inside = np.array([str(p) in held_out for p in patients])

    def part(mask: NDArray[np.bool_]) -> Samples:
        return Samples(x[mask], labels[mask].astype(np.uint8), tuple(str(p) for p in patients[mask]))

    return Dataset(part(~inside), part(inside))
