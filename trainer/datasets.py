"""From labelled de-identified instances to the arrays that a network trains on.

A site trains on the very preprocessing that will serve the model (:mod:`inference.preprocessing`).
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from inference.errors import PreprocessingError
from inference.preprocessing import prepare
from trainer.errors import DatasetError
from trainer.ports import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from trainer.ports import Progress
    from trainer.task import TaskSpec

Floats = NDArray[np.float32]

# What pydicom and its decoders raise on bytes that are not what they claim to be.
UNREADABLE: Final = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True)
class Case:
    """One labelled instance. ``sha256`` is of the file, ``pseudonym`` says to whom it belongs."""

    pseudonym: str
    path: Path
    label: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What a dataset version records of a case: enough to prove which instance was used, and as what."""

    sha256: str
    label: int
    split: str  # train or validation


@dataclass(frozen=True, eq=False)
class Samples:
    """Model inputs ``x``, float32 (n, 1, *size), and whose they are.

    ``y`` is uint8: labels (n,), or of a segmentation the class of every voxel (n, *size).
    """

    x: Floats
    y: NDArray[np.uint8]
    pseudonyms: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def positives(self) -> int:
        """How many of the labels are 1, or of the masks not empty."""
        return int(np.count_nonzero(self.y.reshape(len(self.y), -1).any(axis=1))) if len(self.y) else 0

    @property
    def masks(self) -> bool:
        """Whether ``y`` holds masks instead of labels."""
        return self.y.ndim > 1

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """Return all samples of all parts."""
        return cls(
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
            tuple(pseudonym for part in parts for pseudonym in part.pseudonyms),
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A site's cases, split by patient; ``skipped`` counts those left out by reason."""

    train: Samples
    validation: Samples
    skipped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    entries: tuple[Entry, ...] = ()

    @property
    def content(self) -> str:
        """The sorted list of entries as JSON lines: what the dataset version's file holds."""
        return entries_text(self.entries)

    @property
    def content_sha256(self) -> str:
        """Hash of :attr:`content`."""
        return hashlib.sha256(self.content.encode("ascii")).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Figures for a person: cases, positive ones and patients of each part."""
        return {
            "train": len(self.train),
            "train_positive": self.train.positives,
            "train_subjects": len(set(self.train.pseudonyms)),
            "validation": len(self.validation),
            "validation_positive": self.validation.positives,
            "validation_subjects": len(set(self.validation.pseudonyms)),
        }


def entries_text(entries: Iterable[Entry]) -> str:
    """Return entries as sorted JSON lines."""
    lines = sorted(json.dumps([e.sha256, e.label, e.split], separators=(",", ":")) for e in entries)
    return "".join(f"{line}\n" for line in lines)


def split(pseudonyms: Iterable[str], fraction: float, salt: str) -> tuple[frozenset[str], frozenset[str]]:
    """Split patients into (train, validation).

    A patient's side depends on the pseudonym and the salt alone, so nobody ever changes sides when others
    join or leave; ``fraction`` is therefore met only on average.
    """
    everybody = frozenset(pseudonyms)
    held_out = frozenset(p for p in everybody if _unit(salt, p) < fraction)
    return everybody - held_out, held_out


def split_salt(task: TaskSpec) -> str:
    """Return the salt of a task's split: rounds and versions of the same task hold out the same patients."""
    return f"{task.name}\n{task.label}\n{task.seed}"


def build(cases: Iterable[Case], task: TaskSpec, cache: Path | None, progress: Progress = silent) -> Dataset:
    """Prepare every case, or count why not, and split by patient.

    Parameters
    ----------
    cases : iterable of Case
        In any order; the dataset does not depend on it.
    task : TaskSpec
        Preprocessing, modalities, validation fraction.
    cache : Path, optional
        Folder of prepared arrays by content hash; it may be deleted at any time.
    progress : Progress
        Called with stage ``prepare`` after each case.

    Returns
    -------
    Dataset
        Reasons in ``skipped``: ``missing``, ``unreadable``, ``hash_mismatch``, ``modality``, ``duplicate``,
        ``contradiction``, or the code of a PreprocessingError.
    """
    ordered = sorted(cases, key=lambda case: (case.sha256, case.pseudonym, case.label))
    chosen, skipped = _without_repeats(ordered)
    shelf = _Shelf(cache, task)
    prepared: list[tuple[Case, Floats]] = []
    for done, case in enumerate(chosen, start=1):
        result = shelf.fetch(case)
        if isinstance(result, str):
            skipped[result] += 1
        else:
            prepared.append((case, result))
        progress("prepare", done, len(chosen))
    train, held_out = split((c.pseudonym for c, _ in prepared), task.validation_fraction, split_salt(task))
    return Dataset(
        train=_samples(task, [item for item in prepared if item[0].pseudonym in train]),
        validation=_samples(task, [item for item in prepared if item[0].pseudonym in held_out]),
        skipped=MappingProxyType(dict(sorted(skipped.items()))),
        entries=tuple(
            Entry(c.sha256, c.label, "train" if c.pseudonym in train else "validation") for c, _ in prepared
        ),
    )


def require_trainable(dataset: Dataset) -> None:
    """Raise DatasetError unless there is a case to train on."""
    if len(dataset.train) == 0:
        raise DatasetError("no usable training case; expected at least one")


def _unit(salt: str, pseudonym: str) -> float:
    digest = hashlib.sha256(f"{salt}\n{pseudonym}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _without_repeats(ordered: Sequence[Case]) -> tuple[list[Case], Counter[str]]:
    """Leave out second copies of an instance, and every copy of one with two labels or two owners."""
    by_hash: dict[str, list[Case]] = {}
    for case in ordered:
        by_hash.setdefault(case.sha256, []).append(case)
    chosen: list[Case] = []
    skipped: Counter[str] = Counter()
    for group in by_hash.values():
        if len({(case.pseudonym, case.label) for case in group}) > 1:
            skipped["contradiction"] += len(group)
            continue
        chosen.append(group[0])
        skipped["duplicate"] += len(group) - 1
    return chosen, +skipped


def _samples(task: TaskSpec, items: Sequence[tuple[Case, Floats]]) -> Samples:
    shape = (len(items), 1, task.preprocessing.rows, task.preprocessing.columns)
    x = np.empty(shape, dtype=np.float32)
    for position, (_, array) in enumerate(items):
        x[position] = array
    y = np.array([case.label for case, _ in items], dtype=np.uint8)
    return Samples(x, y, tuple(case.pseudonym for case, _ in items))


class _Shelf:
    """Prepared arrays on disk, by preprocessing and instance hash."""

    def __init__(self, folder: Path | None, task: TaskSpec) -> None:
        self._task = task
        wanted = {"preprocessing": task.preprocessing.to_json(), "modalities": sorted(task.modalities)}
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        self._folder = None if folder is None else folder / key[:32]

    def fetch(self, case: Case) -> Floats | str:
        """Return the prepared array, or the reason why there is none."""
        if not case.path.is_file():
            return "missing"
        stored = self._read(case)
        if stored is not None:
            return stored
        made = self._prepare(case)
        if not isinstance(made, str):
            self._write(case, made)
        return made

    def _prepare(self, case: Case) -> Floats | str:
        try:
            content = case.path.read_bytes()
        except OSError:
            return "unreadable"
        if hashlib.sha256(content).hexdigest() != case.sha256:
            return "hash_mismatch"
        try:
            ds = dcmread(io.BytesIO(content))
            if str(ds.get("Modality", "")) not in self._task.modalities:
                return "modality"
            return prepare(ds, self._task.preprocessing)
        except PreprocessingError as error:
            return error.code
        except UNREADABLE:
            return "unreadable"

    def _path(self, case: Case) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / case.sha256[:2] / f"{case.sha256}.npy"

    def _read(self, case: Case) -> Floats | None:
        path = self._path(case)
        if path is None:
            return None
        try:
            array: NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        shape = (1, self._task.preprocessing.rows, self._task.preprocessing.columns)
        if array.shape != shape or array.dtype != np.float32 or not bool(np.isfinite(array).all()):
            return None
        return array

    def _write(self, case: Case, array: Floats) -> None:
        path = self._path(case)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{uuid.uuid4().hex}.npy")
        np.save(temporary, array, allow_pickle=False)
        temporary.replace(path)


def iterate_batches(samples: Samples, size: int) -> Iterator[tuple[Floats, NDArray[np.uint8]]]:
    """Yield batches in order; the last may be smaller."""
    for start in range(0, len(samples), size):
        yield samples.x[start : start + size], samples.y[start : start + size]
