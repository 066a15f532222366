"""Pictures without and with generated anomalies, for tests and benchmarks of anomaly tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.preprocessing import PreprocessingSpec
from tests.trainer import masked
from tests.trainer.masked import Drawn
from trainer.anomaly.spec import AnomalySpec
from trainer.datasets import Dataset, Samples
from trainer.segmentation.spec import Segment
from trainer.task import LocalSpec, NetworkSpec, TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LESION: Final = (Segment("52988006", "SCT", "Lesion"),)
_WHITE: Final = 4095


def healthy_task(**changes: Any) -> TaskSpec:
    """Return a small anomaly task of the slices of drawn volumes."""
    values: dict[str, Any] = {
        "name": "healthy",
        "label": "lesion",
        "modalities": ("MR",),
        "preprocessing": PreprocessingSpec(rows=16, columns=16),
        "anomaly": AnomalySpec(LESION),
        "network": NetworkSpec("split-autoencoder", {"features": [4, 8], "code": 2, "groups": 2}),
        "local": LocalSpec(batch_size=8, local_steps=4, learning_rate=5e-3, shift_fraction=0.05),
        **changes,
    }
    return TaskSpec(**values)


def with_anomalies(image: NDArray[np.uint16], generator: np.random.Generator) -> Drawn:
    """Put a bright or dark blob with a soft edge into each slice; the mask is where it outweighs what was.

    The blob has the grey value of the 99th or the 1st percentile of its slice and a fifth of its texture.
    """
    made, marks = [], []
    for plane in image.astype(np.float64):
        rows, columns = plane.shape
        radii = generator.uniform(0.09, 0.17, 2) * min(rows, columns)
        centre = [generator.uniform(0.25, 0.75) * extent for extent in (rows, columns)]
        turn = generator.uniform(0, np.pi)
        y, x = np.mgrid[:rows, :columns]
        along = (y - centre[0]) * np.cos(turn) + (x - centre[1]) * np.sin(turn)
        across = (x - centre[1]) * np.cos(turn) - (y - centre[0]) * np.sin(turn)
        distance = np.hypot(along / radii[0], across / radii[1])
        weight = 1 / (1 + np.exp(np.minimum((distance - 1) * 8, 50.0)))
        grey = np.percentile(plane, generator.choice([1, 99]))
        blob = grey + 0.2 * (plane - plane.mean())
        made.append(plane * (1 - weight) + blob * weight)
        marks.append(weight > 0.5)
    return Drawn(np.stack(made).round().clip(0, _WHITE).astype(np.uint16), np.stack(marks).astype(np.uint8))


def write_healthy(folder: Path, patient_id: str, image: NDArray[np.uint16]) -> list[Path]:
    """Write a series without a mask below a folder."""
    return masked.save(folder / patient_id, masked.series(image, patient_id))


def write_sick(folder: Path, patient_id: str, drawn: Drawn) -> list[Path]:
    """Write a series and its mask below a folder; return the paths, the mask's last."""
    sources = masked.series(drawn.image, patient_id)
    return masked.save(folder / patient_id, [*sources, masked.segmentation(sources, drawn.mask, LESION)])


def drawn_healthy(seed: int, count: int, task: TaskSpec) -> Samples:
    """Return smooth pictures as they come out of preprocessing, each of another patient: a disc and a bar."""
    generator = np.random.default_rng(seed)
    rows, columns = task.size
    y, x = np.mgrid[:rows, :columns]
    pictures = []
    for _ in range(count):
        centre = generator.uniform(0.4, 0.6, 2) * (rows, columns)
        disc = np.hypot(y - centre[0], x - centre[1]) < generator.uniform(0.25, 0.35) * rows
        bar = np.abs(x - centre[1]) < 0.08 * columns
        pictures.append(disc * 1.0 - 0.5 + 0.5 * (disc & bar) + generator.normal(0, 0.05, disc.shape))
    x_ = np.stack(pictures)[:, np.newaxis].astype(np.float32)
    owners = tuple(f"{seed}-{number}" for number in range(count))
    return Samples(x_, np.zeros((count, rows, columns), dtype=np.uint8), owners)


def with_spots(samples: Samples, seed: int) -> Samples:
    """Return the samples, of other patients, with a marked square as grey as the disc in a corner of each."""
    generator = np.random.default_rng(seed)
    x, y = samples.x.copy(), samples.y.copy()
    for position in range(len(x)):
        row, column = generator.choice([0, x.shape[2] - 4], 2)
        x[position, 0, row : row + 4, column : column + 4] = 0.5
        y[position, row : row + 4, column : column + 4] = 1
    return Samples(x, y, tuple(f"{owner}-sick" for owner in samples.pseudonyms))


def healthy_dataset(seed: int, task: TaskSpec, *, train: int = 24, gain: float = 1.0) -> Dataset:
    """Return healthy cases to train on, and held-out ones without and with anomalies."""
    parts = [drawn_healthy(seed, train, task), drawn_healthy(seed + 100, 8, task)]
    parts.append(with_spots(drawn_healthy(seed + 200, 8, task), seed))
    shown = [Samples(part.x * np.float32(gain), part.y, part.pseudonyms) for part in parts]
    return Dataset(shown[0], Samples.join(shown[1:]))
