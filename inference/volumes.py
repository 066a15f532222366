"""From the instances of a series to a volume, and from a volume to the grid of a model's input.

Positions are millimetres in the patient's coordinates: x to the left, y to the back, z to the head.

References
----------
DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.2.1.1 (Image Position and Orientation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from inference.errors import PreprocessingError
from inference.pixels import read_grey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom import Dataset

    from inference.preprocessing import PreprocessingSpec

Floats = npt.NDArray[np.float64]
TOLERANCE: Final = 0.01  # of the distance of slices, of a direction cosine
MIN_SPACING_MM: Final = 0.001
MAX_SLICES: Final = 4096
MAX_VOXELS: Final = 200_000_000
_PART_VOXELS: Final = 8_000_000


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an instance lies: ``position`` (3,), ``along_columns`` and ``along_rows`` unit vectors (3,).

    ``along_columns`` points the way the column index grows (the first three direction cosines); ``spacing``
    is that of rows and of columns, in mm.
    """

    sop_instance_uid: str
    frame_of_reference_uid: str
    shape: tuple[int, int]
    position: Floats
    along_columns: Floats
    along_rows: Floats
    spacing_mm: tuple[float, float]

    @property
    def normal(self) -> Floats:
        """Unit vector across the plane."""
        return np.cross(self.along_columns, self.along_rows)


@dataclass(frozen=True, eq=False)
class Grid:
    """``affine`` (4, 4) takes index (slice, row, column) to a position in mm."""

    shape: tuple[int, int, int]
    affine: Floats


@dataclass(frozen=True, eq=False)
class Volume:
    """A series as one array, shape of its grid: ``values`` in modality units, ``valid`` where not padded.

    ``planes`` are its slices in order.
    """

    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    inverted: bool
    grid: Grid
    planes: tuple[Plane, ...]


def plane_of(ds: Dataset) -> Plane:
    """Read where an instance lies.

    Raises
    ------
    PreprocessingError
        ``volume.plane`` if the attributes are missing or contradict one another.
    """
    try:
        position = _numbers(ds["ImagePositionPatient"].value, 3)
        cosines = _numbers(ds["ImageOrientationPatient"].value, 6)
        spacing = _numbers(ds["PixelSpacing"].value, 2)
        shape = (int(ds["Rows"].value), int(ds["Columns"].value))
    except (KeyError, TypeError, ValueError) as error:
        raise PreprocessingError(
            "volume.plane", "position, orientation, pixel spacing or size is missing or no number"
        ) from error
    along_columns, along_rows = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(along_columns), np.linalg.norm(along_rows)])
    skew = abs(float(along_columns @ along_rows))
    if np.abs(lengths - 1).max() > TOLERANCE or skew > TOLERANCE or spacing.min() < MIN_SPACING_MM:
        raise PreprocessingError(
            "volume.plane",
            f"expected two unit vectors at right angles and a spacing of {MIN_SPACING_MM} mm or more",
        )
    return Plane(
        str(ds.get("SOPInstanceUID", "")),
        str(ds.get("FrameOfReferenceUID", "")),
        shape,
        position,
        along_columns / lengths[0],
        along_rows / lengths[1],
        (float(spacing[0]), float(spacing[1])),
    )


def stack(planes: Sequence[Plane]) -> tuple[list[int], Grid]:
    """Return the order of slices along their normal, and the grid that they make.

    Raises
    ------
    PreprocessingError
        ``volume.slices``, ``volume.size``, ``volume.frame_of_reference``, ``volume.orientation`` or
        ``volume.spacing``: a gap, two slices in one place, distances that differ by more than 1 %.
    """
    if not 2 <= len(planes) <= MAX_SLICES:
        raise PreprocessingError("volume.slices", f"expected 2 to {MAX_SLICES} slices")
    first = planes[0]
    if len({one.shape for one in planes}) > 1 or len(planes) * first.shape[0] * first.shape[1] > MAX_VOXELS:
        raise PreprocessingError("volume.size", f"expected slices of one size, {MAX_VOXELS} voxels at most")
    if len({one.frame_of_reference_uid for one in planes}) > 1:
        raise PreprocessingError("volume.frame_of_reference", "expected one frame of reference in a series")
    for one in planes:
        if not same_directions(one, first) or not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise PreprocessingError(
                "volume.orientation", "expected one orientation and pixel spacing in a series"
            )
    positions = np.stack([one.position for one in planes])
    heights = positions @ first.normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    steps = np.diff(positions[order], axis=0)
    step = (positions[order[-1]] - positions[order[0]]) / (len(planes) - 1)
    distance = float(step @ first.normal)
    if distance < MIN_SPACING_MM or np.abs(steps - step).max() > max(TOLERANCE * distance, 2e-3):
        raise PreprocessingError(
            "volume.spacing", "expected slices at equal distances, none missing or twice"
        )
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.along_rows * first.spacing_mm[0]
    affine[:3, 2] = first.along_columns * first.spacing_mm[1]
    affine[:3, 3] = positions[order[0]]
    return order, Grid((len(planes), *first.shape), affine)


def same_directions(one: Plane, other: Plane) -> bool:
    """Whether two planes have the same orientation."""
    return bool(
        np.abs(one.along_columns - other.along_columns).max() <= TOLERANCE
        and np.abs(one.along_rows - other.along_rows).max() <= TOLERANCE
    )


def read_volume(instances: Sequence[Dataset]) -> Volume:
    """Join the single-frame grey instances of one series, in any order; raises PreprocessingError."""
    planes = [plane_of(ds) for ds in instances]
    order, grid = stack(planes)
    values = np.empty(grid.shape, dtype=np.float32)
    valid = np.empty(grid.shape, dtype=np.bool_)
    inverted = set()
    for position, index in enumerate(order):
        image = read_grey(instances[index], accept_color=False)
        values[position], valid[position] = image.values, image.valid
        inverted.add(image.inverted)
    if len(inverted) > 1:
        raise PreprocessingError("volume.photometric", "expected one photometric interpretation in a series")
    return Volume(values, valid, inverted.pop(), grid, tuple(planes[index] for index in order))


def target_grid(source: Grid, size: tuple[int, int, int], spacing_mm: Sequence[float]) -> Grid:
    """Return the model's grid: axes head, back and left of the patient, a voxel on the source's middle one.

    So a series that lies along the patient's axes with the wanted spacing is cropped and padded, and nothing
    of it is interpolated.
    """
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    affine[3, 3] = 1.0
    middle = source.affine @ np.array([*((extent - 1) // 2 for extent in source.shape), 1.0])
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ np.array([(extent - 1) // 2 for extent in size])
    return Grid(size, affine)


def resample(values: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[np.float32]:
    """Return values on another grid by linear interpolation, smoothed before where it is coarser; 0 outside.

    Parameters
    ----------
    values : ndarray
        Shape of the source.
    source, target : Grid
        Both in the same patient's coordinates.
    """
    from scipy import ndimage  # noqa: PLC0415 - for volumes alone

    into = np.linalg.inv(source.affine) @ target.affine
    # How many source voxels a step on the target is, by source axis.
    stretch = np.linalg.norm(into[:3, :3], axis=1)
    smooth = np.asarray(values, dtype=np.float32)
    if stretch.max() > 1 + TOLERANCE:
        smooth = ndimage.gaussian_filter(
            smooth, np.maximum(stretch - 1, 0) / 2, mode="nearest", output=np.float32
        )
    # Positions that differ from a voxel by rounding alone are meant to be it.
    near = np.round(into, 6)
    return np.asarray(
        ndimage.affine_transform(
            smooth, near[:3, :3], near[:3, 3], target.shape, np.float32, order=1, mode="constant"
        )
    )


def prepare_volume(volume: Volume, target: Grid, spec: PreprocessingSpec) -> npt.NDArray[np.float32]:
    """Turn a volume into model input, float32 of shape (1, slices, rows, columns).

    Grey values go from the lower to the upper percentile of what is not padding, in all slices together.

    Raises
    ------
    PreprocessingError
        ``pixel.empty``, ``pixel.constant`` or ``spec``.
    """
    if spec.intensity != "percentile":
        raise PreprocessingError("spec", "preprocessing.intensity: expected percentile for a volume")
    inside = volume.values[volume.valid]
    if not inside.size:
        raise PreprocessingError("pixel.empty", "every pixel is padding")
    low, high = (
        float(value) for value in np.percentile(inside, (spec.lower_percentile, spec.upper_percentile))
    )
    if high <= low:
        low, high = float(inside.min()), float(inside.max())
    if high <= low:
        raise PreprocessingError("pixel.constant", "every pixel has the same value")
    unit = np.clip((volume.values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    shown = np.where(volume.valid, 1.0 - unit if volume.inverted else unit, 0.0)
    placed = resample(shown, volume.grid, target)
    return ((placed - spec.mean) / spec.standard_deviation).astype(np.float32)[np.newaxis]


def marked_on(
    shares: Sequence[npt.NDArray[np.float32]],
    model: Grid,
    source: Grid,
    alive: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.uint8]:
    """Return the likeliest class of each voxel of the source, from shares on the model's grid.

    Shares are interpolated, as :func:`resample` does with masks for training, before the likeliest class is
    taken: nearest neighbours of a label map would leave steps of the model's voxel. Outside the model's grid
    there is none.

    Parameters
    ----------
    shares : sequence of ndarray
        Of class 1 onwards, shape of the model's grid.
    model, source : Grid
        Both in the same patient's coordinates.
    alive : callable
        Called before each part of the source.
    """
    found = np.zeros(source.shape, dtype=np.uint8)
    step = max(1, _PART_VOXELS // (source.shape[1] * source.shape[2]))
    for first in range(0, source.shape[0], step):
        alive()
        affine = source.affine.copy()
        affine[:3, 3] += first * affine[:3, 0]
        part = Grid((min(step, source.shape[0] - first), *source.shape[1:]), affine)
        found[first : first + step] = likeliest([resample(share, model, part) for share in shares])
    return found


def cut_off(labels: npt.NDArray[np.uint8], model: Grid, source: Grid) -> frozenset[int]:
    """Return the classes that reach a face of the model's grid beyond which the source goes on.

    Parameters
    ----------
    labels : ndarray
        Classes on the model's grid.
    model, source : Grid
        Both in the same patient's coordinates.
    """
    into = np.linalg.inv(source.affine) @ model.affine
    found: set[int] = set()
    for axis, extent in enumerate(model.shape):
        for face, beyond in ((0, -1), (extent - 1, extent)):
            places = np.argwhere(np.take(labels, [face], axis=axis)).T
            classes = np.take(labels, [face], axis=axis)[tuple(places)]
            places[axis] = beyond
            there = into[:3, :3] @ places + into[:3, 3:]
            last = np.array(source.shape)[:, np.newaxis] - 0.5
            found.update(np.unique(classes[((there >= -0.5) & (there <= last)).all(axis=0)]).tolist())
    return frozenset(found)


def likeliest(shares: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.uint8]:
    """Return the class with the largest share of each voxel: 1 for the first array; 0 has what is left."""
    total = np.zeros_like(shares[0], dtype=np.float32)
    for share in shares:
        total += share
    largest = 1 - total
    found = np.zeros(total.shape, dtype=np.uint8)
    for number, share in enumerate(shares, start=1):
        more = share > largest
        found[more] = number
        largest[more] = share[more]
    return found


def _numbers(value: Any, count: int) -> Floats:
    numbers = np.array([float(item) for item in value], dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError("expected finite numbers")
    return numbers
