"""From the instances of a study to what a model marks in them, on their own voxels."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.errors import PreprocessingError
from inference.frames_of_reference import NEEDING
from inference.pixels import pixel_aspect
from inference.preprocessing import prepare, unplaced
from inference.results.context import Marked, Score
from inference.volumes import (
    cut_off,
    likeliest,
    marked_on,
    plane_of,
    prepare_volume,
    read_volume,
    stack,
    target_grid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from pydicom import Dataset

    from inference.deviations import Threshold
    from inference.preprocessing import PreprocessingSpec
    from inference.session import ModelSession
    from inference.volumes import Plane

_FULL: Final = 65535
_FURTHEST: Final = 2.0  # a difference from black to white is 1; what a model makes may lie beyond


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture without its pixels, and what was marked on them.

    ``highest`` and ``total`` are of the differences of marked pixels, as shares of black to white.
    """

    path: Path
    ds: Dataset
    labels: npt.NDArray[np.uint8]
    highest: float = 0.0
    total: float = 0.0


def mark_series(
    session: ModelSession, instances: Mapping[Path, Dataset], alive: Callable[[], None]
) -> Marked:
    """Run a model of volumes on a series.

    Parameters
    ----------
    session : ModelSession
        A model whose card has a volume.
    instances : Mapping
        All of the series with their pixels, which are taken out.
    alive : callable
        Called between the steps, none of which is longer than the model's run.

    Raises
    ------
    PreprocessingError
        If the series is no volume (:func:`inference.volumes.read_volume`) or has no frame of reference.
    SessionError
        If the model fails.
    """
    spec = session.card.input.volume
    if spec is None:
        raise ValueError("expected a model of volumes")
    volume = read_volume(list(instances.values()))
    _check_frame_of_reference(volume.planes[0])
    paths = {str(ds.SOPInstanceUID): path for path, ds in instances.items()}
    order = [paths[plane.sop_instance_uid] for plane in volume.planes]
    _drop_pixels(instances.values())
    grid = volume.grid
    preparation = session.card.input.preprocessing
    target = target_grid(grid, (spec.slices, preparation.rows, preparation.columns), spec.spacing_mm)
    x = prepare_volume(volume, target, preparation)
    del volume
    alive()
    shares = session.run(x[np.newaxis])[0]
    alive()
    return Marked(
        tuple(instances[path] for path in order),
        tuple(order),
        marked_on(shares[1:], target, grid, alive),
        abs(float(np.linalg.det(grid.affine[:3, :3]))),
        cut_off(likeliest(list(shares[1:])), target, grid),
    )


def mark_picture(session: ModelSession, path: Path, ds: Dataset) -> Picture:
    """Run a model of single pictures on one, whose pixels are taken out.

    Raises
    ------
    PreprocessingError
        If the picture is not usable, or lacks a frame of reference though it says where it lies, or is of a
        kind that has one (:mod:`inference.frames_of_reference`).
    SessionError
        If the model fails.
    """
    _place(ds)
    spec = session.card.input.preprocessing
    answer = session.run(prepare(ds, spec)[np.newaxis])[0]
    _drop_pixels([ds])
    threshold = session.card.threshold
    if threshold is not None:
        return _differing(path, ds, answer[0], threshold, spec)
    own = [_on_own_pixels(share, ds, spec) for share in answer[1:]]
    return Picture(path, ds, likeliest([level.astype(np.float32) / np.float32(_FULL) for level in own]))


def _differing(
    path: Path,
    ds: Dataset,
    residual: npt.NDArray[np.float32],
    threshold: Threshold,
    spec: PreprocessingSpec,
) -> Picture:
    """Mark the pixels whose difference, interpolated between those of the model's input, is too large."""
    to_level = spec.standard_deviation / _FURTHEST
    own = _on_own_pixels(np.clip(residual.astype(np.float64) * to_level, 0, 1), ds, spec)
    marked = own > np.floor(threshold.value * to_level * _FULL + 0.5)
    grey = own[marked].astype(np.float64) * (_FURTHEST / _FULL)
    return Picture(path, ds, marked.astype(np.uint8), float(grey.max(initial=0)), float(grey.sum()))


def _on_own_pixels(
    shares: npt.NDArray[np.floating[Any]], ds: Dataset, spec: PreprocessingSpec
) -> npt.NDArray[np.uint16]:
    levels = np.floor(shares * _FULL + 0.5).astype(np.uint16)
    return unplaced(levels, int(ds.Rows), int(ds.Columns), pixel_aspect(ds), spec)


def joined(pictures: Sequence[Picture], *, measured: bool = False) -> list[Marked]:
    """Join marked pictures that one segmentation object can hold: those of a series that lie alike.

    What does not say where it lies (a projection) stands alone, and of two in one place the second does.

    Parameters
    ----------
    pictures : sequence of Picture
        In any order.
    measured : bool
        Give slices at equal distances the volume of their voxels, in their order, and all their scores.
    """
    groups: dict[Hashable, list[Picture]] = defaultdict(list)
    seen: Counter[Hashable] = Counter()
    for item in sorted(pictures, key=lambda one: (str(one.ds.SeriesInstanceUID), str(one.ds.SOPInstanceUID))):
        key, place = _place(item.ds)
        seen[key, place] += 1
        groups[key, seen[key, place]].append(item)
    return [_joined(group, measured=measured) for group in groups.values()]


def _joined(group: Sequence[Picture], *, measured: bool) -> Marked:
    order, voxel_mm3 = _stacked(group) if measured else (list(range(len(group))), 0.0)
    labels = np.stack([group[index].labels for index in order])
    score = None
    if measured and labels.any():
        mean = sum(one.total for one in group) / int(np.count_nonzero(labels))
        score = Score(round(max(one.highest for one in group), 4), round(mean, 4))
    return Marked(
        tuple(group[index].ds for index in order),
        tuple(group[index].path for index in order),
        labels,
        voxel_mm3,
        score=score,
    )


def _stacked(group: Sequence[Picture]) -> tuple[list[int], float]:
    """Return the order of slices and the volume of a voxel, 0 where they are none at equal distances."""
    try:
        order, grid = stack([plane_of(one.ds) for one in group])
    except PreprocessingError:
        return list(range(len(group))), 0.0
    return order, abs(float(np.linalg.det(grid.affine[:3, :3])))


def _place(ds: Dataset) -> tuple[Hashable, Hashable]:
    """Return what pictures of one object share, and where this one lies."""
    series = str(ds.SeriesInstanceUID)
    if "ImagePositionPatient" not in ds:
        if str(ds.get("SOPClassUID", "")) in NEEDING and not ds.get("FrameOfReferenceUID"):
            raise PreprocessingError(
                "volume.frame_of_reference",
                "expected one in a picture of its kind; a mask could not be placed",
            )
        return (series, str(ds.SOPInstanceUID)), ()
    plane = plane_of(ds)
    _check_frame_of_reference(plane)
    alike = (*plane.along_columns, *plane.along_rows, *plane.spacing_mm)
    key = (series, plane.shape, plane.frame_of_reference_uid, tuple(np.round(alike, 4).tolist()))
    return key, tuple(np.round(plane.position, 3).tolist())


def _check_frame_of_reference(plane: Plane) -> None:
    if not plane.frame_of_reference_uid:
        raise PreprocessingError("volume.frame_of_reference", "expected one; a mask could not be placed")


def _drop_pixels(instances: Iterable[Dataset]) -> None:
    for ds in instances:
        del ds.PixelData
