"""Where the pixels of a frame lie in the patient (PS3.3 C.7.6.2, C.7.6.16.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from anonymizer import pixels
from anonymizer.errors import StopError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.elements import Item, Syntax
    from anonymizer.frames import Array

NOT_REMOVED: Final = "face_not_removed"
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_GROUPS: Final = {_POSITION: 0x00209113, _ORIENTATION: 0x00209116, _SPACING: 0x00289110}
_SLOPE, _INTERCEPT, _TRANSFORMATION = 0x00281053, 0x00281052, 0x00289145
_UNIT_TOLERANCE: Final = 1e-2


@dataclass(frozen=True)
class Plane:
    """One frame.

    ``corner`` is the centre of its first pixel, ``row`` and ``column`` the steps between rows and between
    columns, all in millimetres of the patient's system (to the left, the back, the head).
    """

    corner: Array
    row: Array
    column: Array
    rows: int
    columns: int
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def normal(self) -> Array:
        """The unit vector across the plane."""
        across = np.cross(self.column, self.row)
        return np.asarray(across / np.linalg.norm(across))

    def is_like(self, other: Plane) -> bool:
        """Tell whether another plane may be of the same stack: size, orientation and spacing."""
        if (self.rows, self.columns) != (other.rows, other.columns):
            return False
        apart = np.abs(np.concatenate([self.row - other.row, self.column - other.column]))
        return bool(apart.max() < _UNIT_TOLERANCE)

    def places(self) -> Array:
        """Return where all pixels lie: shape (3, rows, columns)."""
        rows, columns = np.arange(self.rows)[:, None], np.arange(self.columns)[None, :]
        found: Array = (
            self.corner[:, None, None] + self.row[:, None, None] * rows + self.column[:, None, None] * columns
        )
        return found


def planes_of(item: Item, syntax: Syntax) -> list[Plane]:
    """Return the plane of each frame of an instance.

    Raises
    ------
    StopError
        Code ``face_not_removed`` when the instance does not say where its pixels lie.
    """
    description = pixels.describe(item, syntax)
    shared = _first(item, _SHARED)
    per_frame = _items(item, _PER_FRAME)
    if not per_frame:
        if description.frames != 1:
            raise StopError(NOT_REMOVED, "several frames without functional groups; expected their positions")
        per_frame = ({},)
    if len(per_frame) != description.frames:
        raise StopError(
            NOT_REMOVED, "PerFrameFunctionalGroupsSequence (5200,9230): expected one item a frame"
        )
    return [_plane((own, shared, item), description.rows, description.columns) for own in per_frame]


def _plane(groups: tuple[Item, Item, Item], rows: int, columns: int) -> Plane:
    position = _numbers(groups, _POSITION, 3)
    orientation = _numbers(groups, _ORIENTATION, 6)
    spacing = _numbers(groups, _SPACING, 2)
    along, down = orientation[:3], orientation[3:]
    lengths = (np.linalg.norm(along), np.linalg.norm(down))
    if abs(float(along @ down)) > _UNIT_TOLERANCE or any(abs(x - 1) > _UNIT_TOLERANCE for x in lengths):
        raise StopError(NOT_REMOVED, "ImageOrientationPatient (0020,0037): expected two directions")
    if spacing.min() <= 0:
        raise StopError(NOT_REMOVED, "PixelSpacing (0028,0030): expected millimetres")
    return Plane(
        corner=position,
        row=down * spacing[0],
        column=along * spacing[1],
        rows=rows,
        columns=columns,
        slope=_scale(groups, _SLOPE, 1.0) or 1.0,
        intercept=_scale(groups, _INTERCEPT, 0.0),
    )


def _numbers(groups: tuple[Item, Item, Item], tag: int, count: int) -> Array:
    own, shared, item = groups
    for place in (_first(own, _GROUPS[tag]), _first(shared, _GROUPS[tag]), item):
        found = _decimals(place, tag)
        if len(found) == count and np.isfinite(found).all():
            return np.array(found)
    raise StopError(NOT_REMOVED, f"({tag >> 16:04X},{tag & 0xFFFF:04X}): expected {count} numbers")


def _scale(groups: tuple[Item, Item, Item], tag: int, default: float) -> float:
    own, shared, item = groups
    for place in (_first(own, _TRANSFORMATION), _first(shared, _TRANSFORMATION), item):
        found = _decimals(place, tag)
        if len(found) == 1 and np.isfinite(found[0]):
            return found[0]
    return default


def _decimals(item: Item, tag: int) -> list[float]:
    text = pixels.text_of(item, tag)
    try:
        return [float(part) for part in text.split("\\")] if text else []
    except ValueError:
        return []


def _items(item: Item, tag: int) -> tuple[Item, ...]:
    element = item.get(tag)
    return element.value if element is not None and isinstance(element.value, tuple) else ()


def _first(item: Item, tag: int) -> Item:
    return next(iter(_items(item, tag)), {})


def sequence(item: Item, tag: int) -> Iterator[Item]:
    """Yield the items of a sequence; none where there is none."""
    yield from _items(item, tag)
