"""By which colour a segment is known, in a segmentation and in the picture of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from inference.segments import Segment

Color = tuple[int, int, int]
# Told apart on grey pictures, also by the colour-blind (Wong, Nature Methods 8, 2011).
PALETTE: Final[tuple[Color, ...]] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (214, 214, 214),
)  # fmt: skip


def color_of(segment: Segment) -> Color:
    """Return red, green and blue, 0 to 255."""
    return PALETTE[(segment.number - 1) % len(PALETTE)]
