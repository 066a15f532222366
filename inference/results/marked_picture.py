"""The picture of what a model marked: one slice with the outlines of the segments, and how large they are.

No identity is drawn; the viewer shows it from the instance's attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw

from inference.results.colors import color_of
from inference.results.picture import (
    BLACK,
    FOOTER,
    HEADER,
    MARGIN,
    MIN_WIDTH,
    PANEL,
    QUIET,
    TEXT,
    as_seen,
    draw_footer,
    draw_header,
    fitted,
    font_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.results.context import Marked, SegmentContext
    from inference.segments import Segment

MAX_ROWS: Final = 8
NOT_FOR_DIAGNOSIS: Final = "Not for diagnosis or treatment. Outlines are a model's output under study."
NO_FINDING: Final = "Not for diagnosis. A mark is a difference from learnt normal, no finding."
_ROW: Final = 56
_NOTE: Final = 44
_OUTLINE: Final = 3  # pixels wide


def most_marked(context: SegmentContext) -> tuple[Marked, int]:
    """Return the series and its slice in which most is marked; the first one's middle where nothing is."""
    counts = [np.count_nonzero(one.labels, axis=(1, 2)) for one in context.marked]
    series = int(np.argmax([count.max() for count in counts]))
    marked = context.marked[series]
    return marked, int(counts[series].argmax()) if counts[series].any() else len(marked.sources) // 2


def render_marked(context: SegmentContext, shown: Dataset) -> npt.NDArray[np.uint8]:
    """Draw a slice with what is marked in it.

    Parameters
    ----------
    context : SegmentContext
        What was marked.
    shown : Dataset
        The slice of :func:`most_marked`, with its pixels.

    Returns
    -------
    ndarray
        uint8 RGB, shape (rows, columns, 3).
    """
    marked, index = most_marked(context)
    picture = _outlined(as_seen(shown), marked.labels[index], context.segments)
    largest = sorted(context.segments, key=lambda one: -marked.voxels(one))[:MAX_ROWS]
    order = sorted(largest, key=lambda one: one.number)
    width = max(MIN_WIDTH, picture.shape[1])
    top = HEADER + picture.shape[0]
    below = top + MARGIN + len(order) * _ROW
    note = _scored(context, marked)
    canvas = Image.new("RGB", (width, below + (_NOTE if note else 0) + FOOTER), BLACK)
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, HEADER))
    draw = ImageDraw.Draw(canvas)
    draw_header(draw, width, context.card)
    draw.rectangle((0, top, width, canvas.height), fill=PANEL)
    for number, segment in enumerate(order):
        _segment(draw, top + MARGIN + number * _ROW, width, segment, _size(marked, segment))
    draw.text(
        (MARGIN, below + 8),
        fitted(draw, note, font_of(22), width - 2 * MARGIN),
        QUIET,
        font_of(22),
        anchor="lt",
    )
    first = NOT_FOR_DIAGNOSIS if not note else NO_FINDING
    draw_footer(draw, canvas.height - FOOTER, width, first, _about(context, marked, index))
    return np.asarray(canvas, dtype=np.uint8)


def _about(context: SegmentContext, marked: Marked, index: int) -> str:
    about = [
        f"Model package {context.package_sha256[:12]}",
        f"picture {index + 1} of {len(marked.sources)}, where most is marked",
    ]
    if len(context.marked) > 1:
        about.append(f"one of {len(context.marked)} that were marked")
    if context.unreadable:
        about.append(f"{context.unreadable} could not be read")
    return ", ".join(about)


def _scored(context: SegmentContext, marked: Marked) -> str:
    """Say from which difference on pixels are marked, and how far they differ; empty without scores."""
    if context.grey_threshold is None:
        return ""
    said = f"More than {100 * context.grey_threshold:.1f} % of black to white"
    if marked.score is None:
        return said
    return f"{said}; highest {100 * marked.score.highest:.1f} %, mean {100 * marked.score.mean:.1f} %"


def _outlined(
    seen: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], segments: tuple[Segment, ...]
) -> npt.NDArray[np.uint8]:
    from scipy import ndimage  # noqa: PLC0415 - for outlines alone

    rows, columns = (
        (np.arange(there) * own) // there for there, own in zip(seen.shape, labels.shape, strict=True)
    )
    large = labels[np.ix_(rows, columns)]
    colored = np.repeat(seen[..., np.newaxis], 3, axis=2)
    for segment in segments:
        inside = large == segment.number
        edge = inside & ~ndimage.binary_erosion(inside, iterations=_OUTLINE)
        colored[edge] = color_of(segment)
    return np.asarray(colored, dtype=np.uint8)


def _segment(draw: ImageDraw.ImageDraw, top: int, width: int, segment: Segment, size: str) -> None:
    middle, edge = top + _ROW // 2, 26
    draw.rounded_rectangle(
        (MARGIN, middle - edge // 2, MARGIN + edge, middle + edge // 2), 5, color_of(segment)
    )
    draw.text((width - MARGIN, middle), size, TEXT, font_of(30), anchor="rm")
    left = MARGIN + edge + 18
    room = width - left - 2 * MARGIN - int(draw.textlength(size, font_of(30)))
    color = QUIET if size.startswith("none") else TEXT
    name = segment.meaning
    if draw.textlength(name, font_of(30)) > room:
        name = segment.label
    draw.text((left, middle), fitted(draw, name, font_of(30), room), color, font_of(30), anchor="lm")


def _size(marked: Marked, segment: Segment) -> str:
    voxels = marked.voxels(segment)
    if not voxels:
        return "none marked"
    if not marked.voxel_mm3:
        return f"{voxels} pixels"
    cut = ", cut off" if segment.number in marked.cut_off else ""
    return f"{marked.volume_ml(segment):.2f} mL{cut}"
