"""Areas of pixels of any form that are blacked out, as boxes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anonymizer.frames import Array


@dataclass(frozen=True, eq=False)
class Area:
    """Pixels of one frame: ``mask`` is bool of shape (rows, columns), ``frame`` is counted from zero."""

    mask: Array
    frame: int = 0

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames that have it."""
        return (self.frame,)

    def applies_to(self, frame: int) -> bool:
        """Tell whether a frame has it."""
        return frame == self.frame

    def clipped(self, rows: int, columns: int) -> Area | None:
        """Return it, or None when it holds no pixel.

        Raises
        ------
        ValueError
            If it was made for an image of another size.
        """
        if self.mask.shape != (rows, columns):
            raise ValueError("area: expected the image's rows and columns")
        return self if self.mask.any() else None

    def paint(self, values: Array, shade: object, *, halves: bool) -> None:
        """Set its pixels; with ``halves`` two columns of the image are one of the array."""
        values[self.mask[:, ::2] | self.mask[:, 1::2] if halves else self.mask] = shade
