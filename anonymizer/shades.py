"""Which stored value shows black (PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anonymizer.errors import StopError

if TYPE_CHECKING:
    from anonymizer.elements import Bytes, Item
    from anonymizer.frames import Array, Layout

_COLOURS: Final = (0x1101, 0x1102, 0x1103)
_DATA: Final = (0x1201, 0x1202, 0x1203)
_SEGMENTED: Final = (0x1221, 0x1222, 0x1223)
_GROUP: Final = 0x0028 << 16
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2
_YBR: Final = {
    "YBR_FULL": (0, 128, 128),
    "YBR_PARTIAL_420": (16, 128, 128),
    "YBR_PARTIAL_422": (16, 128, 128),
}


def black(values: Array, layout: Layout, item: Item, *, little: bool) -> Any:
    """Return the value, or the values of the samples, that show black in a frame.

    Signed and floating values have no darkest one that every window shows as black and that leaves the
    image's statistics alone: theirs is the darkest of the frame, and no lighter than zero.

    Raises
    ------
    StopError
        Code ``palette_not_judged`` when a palette cannot be read.
    """
    photometric = layout.photometric
    if photometric == "PALETTE COLOR":
        return _darkest_entry(item, little=little)
    if photometric == "YBR_FULL_422":
        return (0, 0, _middle(layout), _middle(layout))
    if photometric in _YBR:
        luminance = _YBR[photometric][0] << max(layout.bits_stored - 8, 0)
        return (luminance, _middle(layout), _middle(layout))
    inverted = photometric == "MONOCHROME1"
    if layout.floating or layout.signed:
        return _darkest_of(values, layout, inverted=inverted)
    largest = ((1 << layout.bits_stored) - 1) << (layout.high_bit + 1 - layout.bits_stored)
    return largest if inverted else 0


def _middle(layout: Layout) -> int:
    return 1 << (layout.bits_stored - 1)


def _darkest_of(values: Array, layout: Layout, *, inverted: bool) -> Any:
    if layout.floating:
        finite = values[np.isfinite(values)]
        if not finite.size:
            return values.dtype.type(0)
        return max(finite.max(), 0) if inverted else min(finite.min(), 0)
    found = stored(values, layout)
    darkest = max(int(found.max()), 0) if inverted else min(int(found.min()), 0)
    return darkest << (layout.high_bit + 1 - layout.bits_stored)


def stored(values: Array, layout: Layout) -> Array:
    """Return values without the bits that lie beside the stored ones (PS3.5 8.1.1)."""
    unused = layout.bits_allocated - layout.high_bit - 1
    below = layout.high_bit + 1 - layout.bits_stored
    native = values.astype(values.dtype.newbyteorder("="))
    return native if unused + below == 0 else (native << unused) >> (unused + below)


def coloured(indices: Array, item: Item, *, little: bool) -> Array:
    """Look up stored values in the palette (PS3.3 C.7.6.3.1.5): floats of 0 to 255, a last axis of colours.

    Raises
    ------
    StopError
        Code ``palette_not_judged``.
    """
    found = []
    for number in range(3):
        table, first = _entries(item, number, little=little)
        at = np.clip(indices.astype(np.int64) - first, 0, len(table) - 1)
        wide = 256.0 if table.dtype.itemsize > 1 and table.max() > 0xFF else 1.0
        found.append(np.asarray(table)[at].astype(np.float32) / np.float32(wide))
    return np.stack(found, axis=-1)


def _darkest_entry(item: Item, *, little: bool) -> int:
    """Return the first stored value of those that the palette shows darkest."""
    tables = [_entries(item, number, little=little) for number in range(3)]
    if len({(len(table), first) for table, first in tables}) != 1:
        raise _unreadable("three tables of one size")
    brightness = sum(table.astype(np.int64) for table, _ in tables)
    return tables[0][1] + int(np.argmin(brightness))


def _entries(item: Item, number: int, *, little: bool) -> tuple[Array, int]:
    """Return a table of the palette and the first stored value that it maps."""
    order = "<" if little else ">"
    descriptor = _bytes_of(item, _COLOURS[number])
    if len(descriptor) != 6:
        raise _unreadable("a descriptor of three numbers")
    count, first, bits = struct.unpack(f"{order}HHH", descriptor)
    count = count or 1 << 16
    if _GROUP | _DATA[number] in item:
        values = _bytes_of(item, _DATA[number])
        width = 1 if bits == 8 and len(values) in {count, count + count % 2} else 2
        table = np.frombuffer(values, np.dtype(f"{order}u{width}"), min(count, len(values) // width))
    else:
        values = _bytes_of(item, _SEGMENTED[number])
        width = 1 if bits == 8 else 2
        segments = np.frombuffer(values, np.dtype(f"{order}u{width}"), len(values) // width)
        table = np.array(_expanded(segments.tolist(), count, width), np.int64)
    if len(table) != count:
        raise _unreadable("a table as long as its descriptor says")
    return table, first


def _bytes_of(item: Item, element: int) -> Bytes:
    found = item.get(_GROUP | element)
    if found is None or not isinstance(found.value, (bytes, memoryview)):
        raise _unreadable("a descriptor and a table of each colour")
    return found.value


def _unreadable(expected: str) -> StopError:
    return StopError("palette_not_judged", f"palette colour: expected {expected}")


def _expanded(words: list[int], count: int, width: int) -> list[int]:
    """Expand a segmented table (PS3.3 C.7.9.2), to at most a segment more than ``count`` entries."""
    entries: list[int] = []
    at = 0
    while at + 1 < len(words) and len(entries) < count:
        if words[at] != _INDIRECT:
            at = _segment(words, at, entries)
            continue
        parts = words[at + 2 : at + 2 + 4 // width]
        target = sum(part << (8 * width * index) for index, part in enumerate(parts)) // width
        for _ in range(min(words[at + 1], count)):
            if target + 1 >= len(words) or words[target] == _INDIRECT or len(entries) >= count:
                break
            target = _segment(words, target, entries)
        at += 2 + 4 // width
    return entries


def _segment(words: list[int], at: int, entries: list[int]) -> int:
    """Add the entries of a discrete or linear segment; return where the next one begins."""
    kind, length = words[at], words[at + 1]
    if kind == _DISCRETE:
        entries += words[at + 2 : at + 2 + length]
        return at + 2 + length
    if kind != _LINEAR or at + 2 >= len(words) or not entries:
        raise _unreadable("discrete, linear or indirect segments")
    start, end = entries[-1], words[at + 2]
    entries += [start + (end - start) * step // length for step in range(1, length + 1)]
    return at + 3
