"""A series as one small volume in the patient's system, built frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage

from anonymizer.errors import StopError
from anonymizer.faces.planes import NOT_REMOVED

if TYPE_CHECKING:
    from anonymizer.faces.planes import Plane
    from anonymizer.frames import Array

VOXEL_MM: Final = 3.0
_IN_PLANE_MM: Final = 2.5  # pixels smaller than this are averaged in blocks
_MARGIN: Final = 3  # voxels around the outermost pixels
_SAME_PLACE_MM: Final = 0.01
_LARGEST_GAP_MM: Final = 10.5
_SMALLEST_EXTENT_MM: Final = 75.0
_STRAIGHT_MM: Final = 1.0
_FEWEST: Final = 8
_MOST_VOXELS: Final = 8_000_000


@dataclass(frozen=True)
class Volume:
    """Values on a grid along the patient's axes.

    ``values``: float32, shape (left, back, head). ``seen``: where a frame lies. ``origin``: the first voxel's
    centre in millimetres; voxels are ``VOXEL_MM`` wide.
    """

    values: Array
    seen: Array
    origin: Array

    def index(self, places: Array) -> Array:
        """Return the grid's coordinates of places of shape (3, ...) in millimetres."""
        shape = (3,) + (1,) * (places.ndim - 1)
        found: Array = (places - self.origin.reshape(shape)) / VOXEL_MM
        return found


@dataclass
class Stack:
    """Frames of one size and orientation, averaged in blocks of pixels; repeats of a place are averaged."""

    first: Plane
    _sums: dict[int, tuple[Array, Array, int]] = field(default_factory=dict)

    def add(self, plane: Plane, values: Array) -> None:
        """Take a frame: values of shape (rows, columns)."""
        where = round(float(plane.normal @ plane.corner) / _SAME_PLACE_MM)
        small = _averaged(values.astype(np.float32) * plane.slope + plane.intercept, self._blocks())
        known = self._sums.get(where)
        if known is None:
            self._sums[where] = (plane.corner, small, 1)
        else:
            self._sums[where] = (known[0], known[1] + small, known[2] + 1)

    def __len__(self) -> int:
        return len(self._sums)

    def _blocks(self) -> tuple[int, int]:
        rows, columns = np.linalg.norm(self.first.row), np.linalg.norm(self.first.column)
        return max(1, round(_IN_PLANE_MM / float(rows))), max(1, round(_IN_PLANE_MM / float(columns)))

    def volume(self) -> Volume:
        """Return the frames on a grid along the patient's axes.

        Raises
        ------
        StopError
            Code ``face_not_removed`` when the frames are no volume: too few, too far apart, not in line.
        """
        if len(self) < _FEWEST:
            raise StopError(NOT_REMOVED, f"a series of fewer than {_FEWEST} places; expected a volume")
        order = sorted(self._sums)
        at = np.array(order) * _SAME_PLACE_MM
        corners = np.array([self._sums[each][0] for each in order])
        step = _line(at, corners)
        even, slices = self._even(at, order)
        blocks = self._blocks()
        start = corners[0] + step * (even[0] - at[0])
        start = start + self.first.row * (blocks[0] - 1) / 2 + self.first.column * (blocks[1] - 1) / 2
        steps = np.stack(
            [step * (even[1] - even[0]), self.first.row * blocks[0], self.first.column * blocks[1]], axis=1
        )
        return _on_grid(slices, start, steps)

    def _even(self, at: Array, order: list[int]) -> tuple[Array, Array]:
        """Return the places and values of slices that are evenly spaced."""
        gaps = np.diff(at)
        if gaps.max() > _LARGEST_GAP_MM or at[-1] - at[0] < _SMALLEST_EXTENT_MM:
            raise StopError(NOT_REMOVED, "slices that are too far apart or cover too little; expected a head")
        gap = max(float(np.median(gaps)), VOXEL_MM / 2)
        even = at[0] + gap * np.arange(int((at[-1] - at[0]) / gap) + 1)
        upper = np.clip(np.searchsorted(at, even), 1, len(at) - 1)
        weight = np.clip((even - at[upper - 1]) / (at[upper] - at[upper - 1]), 0, 1)
        means = [self._sums[each][1] / self._sums[each][2] for each in order]
        slices = [
            means[index - 1] * np.float32(1 - part) + means[index] * np.float32(part)
            for index, part in zip(upper.tolist(), weight.tolist(), strict=True)
        ]
        return even, np.stack(slices)


def _averaged(values: Array, blocks: tuple[int, int]) -> Array:
    rows, columns = values.shape[0] // blocks[0], values.shape[1] // blocks[1]
    cut = values[: rows * blocks[0], : columns * blocks[1]]
    means: Array = cut.reshape(rows, blocks[0], columns, blocks[1]).mean(axis=(1, 3))
    return means


def _line(at: Array, corners: Array) -> Array:
    """Return by how much the corner moves for a millimetre across the slices; it may be at a slant (tilt)."""
    step = (corners[-1] - corners[0]) / (at[-1] - at[0])
    away = corners - (corners[0] + (at - at[0])[:, None] * step)
    if np.linalg.norm(away, axis=1).max() > _STRAIGHT_MM:
        raise StopError(NOT_REMOVED, "slices that do not lie in a line; expected one stack")
    return np.asarray(step)


def _on_grid(slices: Array, start: Array, steps: Array) -> Volume:
    """Resample slices whose first value lies at ``start``, with ``steps`` by axis in the columns."""
    last = np.array(slices.shape) - 1
    corners = np.array([start + steps @ (last * np.array(which)) for which in np.ndindex(2, 2, 2)])
    origin = corners.min(axis=0) - _MARGIN * VOXEL_MM
    shape = tuple(int(n) for n in np.ceil((corners.max(axis=0) - origin) / VOXEL_MM) + _MARGIN + 1)
    if np.prod(shape) > _MOST_VOXELS:
        raise StopError(NOT_REMOVED, "slices that cover more than a body; expected a head")
    inverse = np.linalg.inv(steps)
    matrix, offset = inverse * VOXEL_MM, inverse @ (origin - start)
    values = ndimage.affine_transform(slices, matrix, offset, shape, order=1, mode="nearest")
    indices = np.indices(shape, dtype=np.float32)
    inside = np.ones(shape, bool)
    for axis in range(3):
        at = offset[axis] + sum(matrix[axis, k] * indices[k] for k in range(3))
        inside &= (at > -0.6) & (at < last[axis] + 0.6)
    return Volume(values.astype(np.float32), inside, origin)
