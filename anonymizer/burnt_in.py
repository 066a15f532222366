"""Text in pixels (PS3.15 E.3.1): found by table, by header and by looking, then blacked out.

How text in a single frame of many is seen: every frame is searched by itself, in the same ways as an image of
one frame; frames whose values are those of an earlier one share its boxes. What is found in a frame is masked
there. Beside that, the brightest and the darkest value of each pixel over all frames are searched as two
pictures: text that stands still is found there even where single frames hide it, and is masked in all frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from anonymizer import detection, frames, masking, pixels, regions, renderings
from anonymizer.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anonymizer.elements import Item, Syntax
    from anonymizer.frames import Array, PixelData
    from anonymizer.regions import Region

DETECTION: Final = "detection"
_MARGIN: Final = 0.15  # of a line's height: descenders and accents reach beyond what the detector sees
# Of the image's short and long side, and in pixels: what is taller than all of these is anatomy, not a line.
_LINE_OF_SHORT, _LINE_OF_LONG, _LINE_PIXELS = 0.12, 0.06, 12
_HIGH_OF_SHORT, _LENGTH_OF_HIGH = 0.05, 2
_SMALLEST: Final = 10  # pixels; a smaller picture holds no line of text


def _no_beat() -> None:
    """Nobody waits."""


@dataclass(frozen=True)
class PixelOptions:
    """What is looked for.

    ``detect_text``: search the picture. ``regions``: rows of the table, those that come with the product if
    left out. ``ultrasound_regions``: mask what lies outside the regions of the header. ``recompress``: see
    ``masking.target_syntax``. ``drawn``: boxes that a person drew. ``beat``: called for each frame that is
    searched.
    """

    detect_text: bool = True
    regions: tuple[Region, ...] = field(default_factory=regions.known)
    ultrasound_regions: bool = True
    recompress: str = masking.LOSSLESS
    drawn: tuple[Box, ...] = ()
    beat: Callable[[], None] = field(default=_no_beat, compare=False)


@dataclass(frozen=True)
class Cleaned:
    """Pixel elements that may leave, and what was done to them.

    ``elements`` replace those of the item, by tag. ``boxes`` are what was masked; each says in ``source``
    where it comes from: ``table``, ``header``, ``detection`` or ``person``. ``searched``: whether the
    picture was searched for text. ``header_regions``: whether the header names ultrasound regions that fit
    the image.
    """

    elements: Item
    transfer_syntax_uid: str
    boxes: tuple[Box, ...]
    searched: bool
    header_regions: bool


def clean(
    original: Item, item: Item, transfer_syntax_uid: str, syntax: Syntax, options: PixelOptions
) -> Cleaned:
    """Return the pixel data of an instance with its text blacked out.

    Parameters
    ----------
    original : Item
        The data set as it was received.
    item : Item
        What is left of it, with the description under which the pixel data will be read.
    transfer_syntax_uid, syntax : str, Syntax
        How both are encoded. The outcome may name another transfer syntax, of the same byte order.
    options : PixelOptions

    Raises
    ------
    StopError
        Of ``pixels.cleaned``, ``frames.read``, ``masking.mask`` or ``detection.find_text``.
    ValueError
        If ``options.recompress`` is unknown.
    """
    found = pixels.cleaned(original, item, transfer_syntax_uid, syntax)
    if not found:
        return Cleaned(found, transfer_syntax_uid, (), searched=False, header_regions=False)
    description = pixels.describe(item, syntax)
    rows, columns = description.rows, description.columns
    boxes = [*options.drawn, *regions.of_machine(original, options.regions, rows, columns)]
    header = regions.of_header(original, syntax, rows, columns) if options.ultrasound_regions else None
    boxes += header or []
    if not boxes and not options.detect_text:
        return Cleaned(found, transfer_syntax_uid, (), searched=False, header_regions=header is not None)
    source = frames.read(found, item, transfer_syntax_uid, syntax)
    if options.detect_text:
        boxes += [
            box
            for box in text_boxes(source, item, options.beat)
            if not any(known.contains(box) for known in boxes)
        ]
    masked = masking.mask(source, found, item, boxes, options.recompress)
    return Cleaned(
        masked.elements,
        masked.transfer_syntax_uid,
        masked.boxes,
        searched=options.detect_text,
        header_regions=header is not None,
    )


def text_boxes(source: PixelData, item: Item, beat: Callable[[], None] = _no_beat) -> list[Box]:
    """Return boxes around text, with a margin: of single frames, and of all where it stands still.

    Parameters
    ----------
    source : PixelData
        The frames.
    item : Item
        The description, for palettes.
    beat : callable
        Called for each frame.
    """
    description = source.description
    if min(description.rows, description.columns) < _SMALLEST:
        return []
    seen: dict[bytes, list[int]] = {}
    by_frame: dict[int, list[Box]] = {}
    brightest: Array | None = None
    darkest: Array | None = None
    for index in range(description.frames):
        beat()
        values, layout = source.frame(index)
        digest = sha256(np.ascontiguousarray(values).data).digest()
        if digest in seen:
            seen[digest].append(index)
            continue
        seen[digest] = [index]
        shown = renderings.displayed(values, layout, item, little=source.little)
        by_frame[index] = _searched(shown)
        brightest = shown if brightest is None else np.maximum(brightest, shown)
        darkest = shown if darkest is None else np.minimum(darkest, shown)
    if description.frames == 1:
        return by_frame[0]
    still = [box for shown in (brightest, darkest) if shown is not None for box in _searched(shown)]
    same = {indices[0]: tuple(indices) for indices in seen.values()}
    return still + [
        replace(box, frames=same[index])
        for index, boxes in by_frame.items()
        for box in boxes
        if not any(known.contains(box) for known in still)
    ]


def _searched(shown: Array) -> list[Box]:
    rows, columns = shown.shape[:2]
    found: list[detection.Rectangle] = []
    for picture, long_side in renderings.pictures(shown):
        found += detection.find_text(picture, long_side)
        if long_side == renderings.COARSE:  # upright text is missed more often; turned it lies
            turned = detection.find_text(np.rot90(picture), long_side)
            found += [(columns - bottom, left, columns - top, right) for left, top, right, bottom in turned]
    lines = (rectangle for rectangle in found if _is_line(rectangle, rows, columns))
    padded = (_padded(*rectangle).clipped(rows, columns) for rectangle in lines)
    return _joined(box for box in padded if box is not None)


def _is_line(rectangle: detection.Rectangle, rows: int, columns: int) -> bool:
    """Tell a line of text from anatomy: by its height, and where it is high by its length."""
    left, top, right, bottom = rectangle
    height, length = sorted((right - left, bottom - top))
    short, long = sorted((rows, columns))
    if height > max(_LINE_OF_SHORT * short, _LINE_OF_LONG * long, _LINE_PIXELS):
        return False
    return length >= _LENGTH_OF_HIGH * height or height <= max(_HIGH_OF_SHORT * short, _LINE_PIXELS)


def _padded(left: float, top: float, right: float, bottom: float) -> Box:
    margin = max(1.0, _MARGIN * min(right - left, bottom - top))
    return Box(
        int(left - margin),
        int(top - margin),
        int(right + margin) + 1,
        int(bottom + margin) + 1,
        DETECTION,
    )


def _joined(boxes: Iterable[Box]) -> list[Box]:
    """Leave out boxes that lie within others."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.left - box.right) * (box.bottom - box.top)):
        if not any(other.contains(box) for other in kept):
            kept.append(box)
    return sorted(kept)
