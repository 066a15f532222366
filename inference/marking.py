"""From the instances of a study to what a segmenting model marks in them, on their own voxels."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.errors import PreprocessingError
from inference.pixels import pixel_aspect
from inference.preprocessing import prepare, unplaced
from inference.results.context import Marked
from inference.volumes import (
    cut_off,
    likeliest,
    marked_on,
    plane_of,
    prepare_volume,
    read_volume,
    target_grid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from pydicom import Dataset

    from inference.session import ModelSession
    from inference.volumes import Plane

_FULL: Final = 65535


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


def mark_picture(session: ModelSession, ds: Dataset) -> npt.NDArray[np.uint8]:
    """Run a model of single pictures on one; return the class of each of its pixels.

    Raises
    ------
    PreprocessingError
        If the picture is not usable, or says where it lies and not in which frame of reference.
    SessionError
        If the model fails.
    """
    _place(ds)
    spec = session.card.input.preprocessing
    shares = session.run(prepare(ds, spec)[np.newaxis])[0]
    levels = np.floor(shares[1:] * _FULL + 0.5).astype(np.uint16)
    own = [unplaced(level, int(ds.Rows), int(ds.Columns), pixel_aspect(ds), spec) for level in levels]
    return likeliest([level.astype(np.float32) / np.float32(_FULL) for level in own])


def joined(pictures: Sequence[tuple[Path, Dataset, npt.NDArray[np.uint8]]]) -> list[Marked]:
    """Join marked pictures that one segmentation object can hold: those of a series that lie alike.

    What does not say where it lies (a projection) stands alone, and of two in one place the second does.
    """
    groups: dict[Hashable, list[tuple[Path, Dataset, npt.NDArray[np.uint8]]]] = defaultdict(list)
    seen: Counter[Hashable] = Counter()
    for item in sorted(pictures, key=lambda one: (str(one[1].SeriesInstanceUID), str(one[1].SOPInstanceUID))):
        key, place = _place(item[1])
        seen[key, place] += 1
        groups[key, seen[key, place]].append(item)
    return [
        Marked(
            tuple(ds for _, ds, _ in group),
            tuple(path for path, _, _ in group),
            np.stack([labels for _, _, labels in group]),
        )
        for group in groups.values()
    ]


def _place(ds: Dataset) -> tuple[Hashable, Hashable]:
    """Return what pictures of one object share, and where this one lies."""
    series = str(ds.SeriesInstanceUID)
    if "ImagePositionPatient" not in ds:
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
