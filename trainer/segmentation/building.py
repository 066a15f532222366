"""From series with masks to the arrays that a network trains on, with the preprocessing of the task."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
import zipfile
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from pydicom import dcmread

from inference.errors import PreprocessingError
from inference.pixels import pixel_aspect
from inference.preprocessing import placed, prepare
from inference.volumes import (
    Plane,
    likeliest,
    plane_of,
    prepare_volume,
    read_volume,
    resample,
    target_grid,
)
from trainer.datasets import UNREADABLE, Dataset, Entry, Samples, split, split_salt
from trainer.ports import silent
from trainer.segmentation.cases import gather, weight
from trainer.segmentation.masks import MaskError, joined, read_mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset as Instance

    from inference.volumes import Grid
    from trainer.ports import Progress
    from trainer.segmentation.cases import MaskedSeries, Stored
    from trainer.task import TaskSpec

_FULL: Final = 65535
IMAGE: Final = 0
MASK: Final = 1
"""In an entry of a dataset version: the instance is a picture, or a mask."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Cases of one series: ``x`` float32 (n, 1, *size), ``y`` uint8 (n, *size); others by reason."""

    x: NDArray[np.float32]
    y: NDArray[np.uint8]
    skipped: dict[str, int]


def build(
    stored: Iterable[Stored], task: TaskSpec, cache: Path | None, progress: Progress = silent
) -> Dataset:
    """Prepare every series that has a mask, or count why not, and split by patient.

    Parameters
    ----------
    stored : iterable of Stored
        Pictures and masks, in any order.
    task : TaskSpec
        A segmentation.
    cache : Path, optional
        Folder of prepared arrays by content hash; it may be deleted at any time.
    progress : Progress
        Called with stages ``masks`` and ``prepare``.

    Returns
    -------
    Dataset
        Entries name every picture and every mask that was used. Reasons in ``skipped`` are those of
        :func:`trainer.segmentation.cases.gather`, of :func:`trainer.segmentation.masks.read_mask`, codes of
        a PreprocessingError, ``missing``, ``unreadable``, ``hash_mismatch``, ``mask.empty`` (nothing marked
        in the whole series) and ``mask.outside`` (nothing of it within the input's size).
    """
    gathered = gather(stored, task, progress)
    skipped = Counter(gathered.skipped)
    prepared = prepare_all(gathered.series, task, cache, skipped, progress)
    sides = split((s.pseudonym for s, _ in prepared), task.validation_fraction, split_salt(task))
    return divided(task, prepared, sides, skipped)


def prepare_all(
    series: Iterable[MaskedSeries],
    task: TaskSpec,
    cache: Path | None,
    skipped: Counter[str],
    progress: Progress,
) -> list[tuple[MaskedSeries, Prepared]]:
    """Prepare the cases of every series in an order of their content; reasons are added to ``skipped``."""
    shelf = _Shelf(cache, task)
    ordered = sorted(series, key=lambda one: one.sha256)
    prepared: list[tuple[MaskedSeries, Prepared]] = []
    for done, one in enumerate(ordered, start=1):
        made = shelf.fetch(one)
        skipped.update(made.skipped)
        if len(made.x):
            prepared.append((one, made))
        progress("prepare", done, len(ordered))
    return prepared


def divided(
    task: TaskSpec,
    prepared: Sequence[tuple[MaskedSeries, Prepared]],
    sides: tuple[frozenset[str], frozenset[str]],
    skipped: Mapping[str, int],
) -> Dataset:
    """Return prepared cases by the side of their patient: of those to train on, and of those held out."""
    train, held_out = sides
    return Dataset(
        train=_samples(task, [item for item in prepared if item[0].pseudonym in train]),
        validation=_samples(task, [item for item in prepared if item[0].pseudonym in held_out]),
        skipped=MappingProxyType(dict(sorted(skipped.items()))),
        entries=tuple(
            Entry(one.sha256, kind, "train" if series.pseudonym in train else "validation")
            for series, _ in prepared
            for kind, part in ((IMAGE, series.images), (MASK, series.masks))
            for one in part
        ),
    )


def prepare_series(series: MaskedSeries, task: TaskSpec) -> Prepared:
    """Read a series and its masks; in pictures of one without masks nothing is marked.

    Raises
    ------
    MaskError, PreprocessingError
        If nothing of it can be used.
    """
    images = [_read(one) for one in series.images]
    masks = [_read(one) for one in series.masks]
    if len(task.size) == 3:
        return _volume_case(images, masks, task)
    return _picture_cases(images, masks, task, series.chosen)


def _volume_case(images: Sequence[Instance], masks: Sequence[Instance], task: TaskSpec) -> Prepared:
    spec = task.segmentation
    if spec is None or len(task.size) != 3:
        raise ValueError("expected a task of volumes")
    volume = read_volume(images)
    marked = _marked(masks, volume.planes, task)
    target = target_grid(volume.grid, (spec.slices, *task.size[1:]), spec.spacing_mm)
    x = prepare_volume(volume, target, task.preprocessing)
    y = _resampled(marked, volume.grid, target, spec.classes)
    if not y.any():
        raise MaskError("mask.outside", "nothing of the mask lies within the size of the model's input")
    return Prepared(x[np.newaxis], y[np.newaxis], {})


def _picture_cases(
    images: Sequence[Instance], masks: Sequence[Instance], task: TaskSpec, chosen: frozenset[str]
) -> Prepared:
    spec = task.segmentation
    if spec is None:
        raise ValueError("expected a segmentation task")
    ordered = sorted(images, key=lambda ds: str(ds.SOPInstanceUID))
    marked = _marked_pictures(ordered, masks, task)
    x, y = [], []
    skipped: Counter[str] = Counter()
    for ds, mask in zip(ordered, marked, strict=True):
        if masks and str(ds.SOPInstanceUID) not in chosen:
            skipped["mask.missing"] += 1
            continue
        try:
            x.append(prepare(ds, task.preprocessing))
        except PreprocessingError as error:
            skipped[error.code] += 1
            continue
        if mask is None:
            y.append(np.zeros(task.size, dtype=np.uint8))
            continue
        levels = [
            placed(np.where(mask == number, _FULL, 0).astype(np.uint16), pixel_aspect(ds), task.preprocessing)
            for number in range(1, spec.classes)
        ]
        y.append(likeliest([level.astype(np.float32) / np.float32(_FULL) for level in levels]))
    if not x:
        return Prepared(*_nothing(task), dict(skipped))
    return Prepared(np.stack(x), np.stack(y), dict(skipped))


def _marked_pictures(
    images: Sequence[Instance], masks: Sequence[Instance], task: TaskSpec
) -> Sequence[NDArray[np.uint8] | None]:
    """Return the mask of each picture: none of a series without masks, whose pictures may differ in size."""
    if not masks:
        return [None] * len(images)
    planes = [_plane(ds) for ds in images]
    if len({plane.shape for plane in planes}) > 1:
        raise PreprocessingError("volume.size", "expected pictures of one size in a series with a mask")
    return list(_marked(masks, planes, task))


def _plane(ds: Instance) -> Plane:
    """Return where a picture lies; projections do not say it, and a mask must name them."""
    if "ImagePositionPatient" in ds:
        return plane_of(ds)
    axes = np.eye(3)
    return Plane(
        str(ds.SOPInstanceUID),
        str(ds.get("FrameOfReferenceUID", "")),
        (int(ds.Rows), int(ds.Columns)),
        np.zeros(3),
        axes[0],
        axes[1],
        (1.0, 1.0),
    )


def _marked(masks: Sequence[Instance], planes: Sequence[Plane], task: TaskSpec) -> NDArray[np.uint8]:
    """Join the masks of a series; one without a segment of the task does not count beside one with."""
    segments = task.segmentation.segments if task.segmentation else ()
    found = []
    for ds in masks:
        try:
            found.append(read_mask(ds, planes, segments))
        except MaskError as error:
            if error.code != "mask.segments":
                raise
    if not found:
        raise MaskError("mask.segments", "no segment of the masks of the series has a code of the task")
    marked = joined(found)
    if not marked.any():
        raise MaskError("mask.empty", "nothing is marked in the whole series")
    return marked


def _resampled(marked: NDArray[np.uint8], source: Grid, target: Grid, classes: int) -> NDArray[np.uint8]:
    return likeliest([resample(marked == number, source, target) for number in range(1, classes)])


def _read(one: Stored) -> Instance:
    content = one.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != one.sha256:
        raise MaskError("hash_mismatch", "a file is not the one that was stored")
    return dcmread(io.BytesIO(content))


def _nothing(task: TaskSpec) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return np.empty((0, 1, *task.size), dtype=np.float32), np.empty((0, *task.size), dtype=np.uint8)


def _samples(task: TaskSpec, items: Sequence[tuple[MaskedSeries, Prepared]]) -> Samples:
    x, y = _nothing(task)
    return Samples(
        np.concatenate([x, *(made.x for _, made in items)]),
        np.concatenate([y, *(made.y for _, made in items)]),
        tuple(series.pseudonym for series, made in items for _ in range(len(made.x))),
    )


class _Shelf:
    """Prepared arrays on disk, by task and the hashes of a series and its masks."""

    def __init__(self, folder: Path | None, task: TaskSpec) -> None:
        self._task = task
        wanted = {
            "preprocessing": task.preprocessing.to_json(),
            "segmentation": task.segmentation.to_json() if task.segmentation else None,
        }
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        self._folder = None if folder is None else folder / key[:32]

    def fetch(self, series: MaskedSeries) -> Prepared:
        """Return the cases of a series; with none, the reason."""
        cases = weight(self._task, len(series.images))
        if not all(one.path.is_file() for one in (*series.images, *series.masks)):
            return Prepared(*_nothing(self._task), {"missing": cases})
        stored = self._load(series)
        if stored is not None:
            return stored
        try:
            made = prepare_series(series, self._task)
        except (MaskError, PreprocessingError) as error:
            return Prepared(*_nothing(self._task), {error.code: cases})
        except UNREADABLE:
            return Prepared(*_nothing(self._task), {"unreadable": cases})
        self._save(series, made)
        return made

    def _path(self, series: MaskedSeries) -> Path | None:
        digest = series.sha256
        return None if self._folder is None else self._folder / digest[:2] / f"{digest}.npz"

    def _load(self, series: MaskedSeries) -> Prepared | None:
        path = self._path(series)
        if path is None:
            return None
        try:
            with np.load(path, allow_pickle=False) as content:
                made = Prepared(content["x"], content["y"], json.loads(str(content["skipped"])))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        size, count = self._task.size, len(made.x)
        fits = made.x.shape == (count, 1, *size) and made.y.shape == (count, *size)
        typed = made.x.dtype == np.float32 and made.y.dtype == np.uint8
        return made if fits and typed and bool(np.isfinite(made.x).all()) else None

    def _save(self, series: MaskedSeries, made: Prepared) -> None:
        path = self._path(series)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{uuid.uuid4().hex}.npz")
        np.savez(temporary, x=made.x, y=made.y, skipped=np.array(json.dumps(made.skipped)))
        temporary.replace(path)
