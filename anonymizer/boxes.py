"""Boxes of pixels: where something is blacked out, and who said so."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anonymizer.frames import Array


@dataclass(frozen=True, order=True)
class Box:
    """A rectangle of an image.

    ``left`` and ``top`` are the first column and row inside, ``right`` and ``bottom`` the first outside,
    counted from zero. ``frames`` names frames, counted from zero; None means all of them. ``source`` says
    where the box comes from: ``table``, ``header``, ``detection`` or what a caller calls it.
    """

    left: int
    top: int
    right: int
    bottom: int
    source: str = ""
    frames: tuple[int, ...] | None = None

    def applies_to(self, frame: int) -> bool:
        """Tell whether a frame has this box."""
        return self.frames is None or frame in self.frames

    def clipped(self, rows: int, columns: int) -> Box | None:
        """Return the part that lies in an image, or None when there is none."""
        left, right = max(self.left, 0), min(self.right, columns)
        top, bottom = max(self.top, 0), min(self.bottom, rows)
        if left >= right or top >= bottom:
            return None
        return replace(self, left=left, top=top, right=right, bottom=bottom)

    def paint(self, values: Array, shade: object, *, halves: bool) -> None:
        """Set its pixels; with ``halves`` two columns of the image are one of the array."""
        left, right = (self.left // 2, (self.right + 1) // 2) if halves else (self.left, self.right)
        values[self.top : self.bottom, left:right] = shade

    def contains(self, other: Box) -> bool:
        """Tell whether another box lies within this one, in all of its frames."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
            and (self.frames is None or (other.frames is not None and {*other.frames} <= {*self.frames}))
        )


def outside(kept: Iterable[Box], rows: int, columns: int, source: str) -> list[Box]:
    """Return boxes that together cover everything of an image but ``kept``."""
    inside = [box for box in (box.clipped(rows, columns) for box in kept) if box is not None]
    edges = sorted({0, rows, *(box.top for box in inside), *(box.bottom for box in inside)})
    found: list[Box] = []
    for top, bottom in itertools.pairwise(edges):
        at = 0
        for left, right in sorted((b.left, b.right) for b in inside if b.top <= top and b.bottom >= bottom):
            if left > at:
                found.append(Box(at, top, left, bottom, source))
            at = max(at, right)
        if at < columns:
            found.append(Box(at, top, columns, bottom, source))
    return found
