"""The folder through which a simulation and the engine's processes on this machine share what is big."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer import weights_io
from trainer.compression import Compression
from trainer.datasets import Dataset, Samples
from trainer.privacy.promise import Promise
from trainer.task import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from trainer.weights_io import Array, Weights

TASK_NAME: Final = "train"
ORDER: Final = "order.json"
MODEL: Final = "model.safetensors"
RECORDS: Final = "records.json"


@dataclass(frozen=True)
class Order:
    """What to simulate; the initial model lies beside it and is replaced by the final one."""

    task: TaskSpec
    sites: tuple[str, ...]
    rounds: int
    strategy: str
    parameters: Mapping[str, Any]
    seed: int
    privacy: Promise | None = None
    compression: Compression | None = None
    away: Mapping[int, Collection[str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write to a folder."""
        content = {
            **vars(self),
            "task": self.task.to_json(),
            "parameters": dict(self.parameters),
            "privacy": None if self.privacy is None else self.privacy.to_json(),
            "compression": None if self.compression is None else self.compression.to_json(),
            "away": {str(number): sorted(sites) for number, sites in self.away.items()},
        }
        (folder / ORDER).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Order:
        """Read what :meth:`write` wrote."""
        content = json.loads((folder / ORDER).read_text(encoding="utf-8"))
        content["task"] = TaskSpec.from_json(content["task"])
        content["sites"] = tuple(content["sites"])
        content["away"] = {int(number): sites for number, sites in content["away"].items()}
        if content["privacy"] is not None:
            content["privacy"] = Promise.from_json(content["privacy"])
        if content["compression"] is not None:
            content["compression"] = Compression.from_json(content["compression"])
        return cls(**content)


def save_dataset(folder: Path, site: str, dataset: Dataset) -> None:
    """Write a site's arrays for its own process."""
    train, validation = dataset.train, dataset.validation
    np.savez(
        folder / f"{site}.npz",
        train_x=train.x,
        train_y=train.y,
        train_subjects=np.asarray(train.pseudonyms, dtype=np.str_),
        validation_x=validation.x,
        validation_y=validation.y,
        validation_subjects=np.asarray(validation.pseudonyms, dtype=np.str_),
    )


def load_dataset(folder: Path, site: str) -> Dataset:
    """Read a site's arrays."""
    with np.load(folder / f"{site}.npz", allow_pickle=False) as content:
        return Dataset(
            Samples(content["train_x"], content["train_y"], tuple(content["train_subjects"].tolist())),
            Samples(
                content["validation_x"],
                content["validation_y"],
                tuple(content["validation_subjects"].tolist()),
            ),
        )


def save_own(folder: Path, site: str, own: Mapping[str, Array]) -> None:
    """Write what stays at a site for its next round; nothing where there is nothing."""
    if own:
        weights_io.save(_own_path(folder, site), own)


def load_own(folder: Path, site: str) -> Weights:
    """Read it; empty before the first round."""
    path = _own_path(folder, site)
    return weights_io.load(path) if path.is_file() else {}


def _own_path(folder: Path, site: str) -> Path:
    return folder / f"{site}.own.safetensors"
