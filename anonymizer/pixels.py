"""Pixel data: does it fit its description, and is there nothing else in it (PS3.5 section 8, annex A)."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anonymizer.codestreams import clean_jpeg, clean_jpeg2000
from anonymizer.elements import Element, Fragments
from anonymizer.errors import StopError
from anonymizer.rle import clean_rle

if TYPE_CHECKING:
    from anonymizer.elements import Bytes, Item, Syntax

PIXEL_DATA: Final = 0x7FE00010
FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_PIXEL_DATA: Final = 0x7FE00009
ALL: Final = frozenset({PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA})
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
OFFSETS_AND_LENGTH: Final = frozenset({_EXTENDED_OFFSETS, _EXTENDED_LENGTHS, 0x7FE00003})
"""Where the original's frames lie: never true of the cleaned ones."""
_ROWS, _COLUMNS, _SAMPLES = 0x00280010, 0x00280011, 0x00280002
_BITS_ALLOCATED: Final = 0x00280100
_FRAMES, _PHOTOMETRIC = 0x00280008, 0x00280004
_IS_LENGTH: Final = 12

NATIVE: Final = frozenset({
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
})  # fmt: skip
JPEG: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70, 80, 81))
JPEG2000: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203))
RLE: Final = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class Description:
    """The Image Pixel attributes that give pixel data its size."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    frames: int
    photometric: str

    def native_bytes(self) -> int:
        """Return the size of uncompressed pixel data in bytes, without padding."""
        values = self.rows * self.columns * self.samples * self.frames
        if self.photometric == "YBR_FULL_422":  # two chrominance samples for two pixels (PS3.3 C.7.6.3.1.2)
            values = self.rows * self.columns * 2 * self.frames
        return (values * self.bits_allocated + 7) // 8

    def plane_bytes(self) -> int:
        """Return the size in bytes of one frame's byte plane, as RLE splits it (PS3.5 G.2)."""
        return (self.rows * self.columns * min(self.bits_allocated, 8) + 7) // 8


def _mismatch(what: str) -> StopError:
    return StopError("pixel_data_mismatch", what)


def _number(item: Item, tag: int, syntax: Syntax) -> int:
    element = item.get(tag)
    if element is None or not isinstance(element.value, (bytes, memoryview)) or len(element.value) != 2:
        raise _mismatch(f"({tag >> 16:04X},{tag & 0xFFFF:04X}): expected one unsigned short")
    return int(struct.unpack("<H" if syntax.little else ">H", element.value)[0])


def text_of(item: Item, tag: int) -> str:
    """Return a value of ASCII text, blanks stripped; empty when absent or not ASCII text."""
    element = item.get(tag)
    if element is None or not isinstance(element.value, (bytes, memoryview)):
        return ""
    return bytes(element.value).decode("ascii", "replace").strip(" \0")


def describe(item: Item, syntax: Syntax) -> Description:
    """Read the description of the pixel data.

    Raises
    ------
    StopError
        If an attribute is missing or impossible.
    """
    frames = text_of(item, _FRAMES) or "1"
    if not frames.isdecimal() or len(frames) > _IS_LENGTH or int(frames) < 1:
        raise _mismatch("NumberOfFrames (0028,0008): expected a positive number")
    found = Description(
        rows=_number(item, _ROWS, syntax),
        columns=_number(item, _COLUMNS, syntax),
        samples=_number(item, _SAMPLES, syntax),
        bits_allocated=_number(item, _BITS_ALLOCATED, syntax),
        frames=int(frames),
        photometric=text_of(item, _PHOTOMETRIC),
    )
    if 0 in {found.rows, found.columns} or found.samples not in {1, 3, 4}:
        raise _mismatch("Rows, Columns, SamplesPerPixel: expected an image")
    if found.bits_allocated not in {1, 8, 16, 24, 32, 64}:
        raise _mismatch("BitsAllocated (0028,0100): expected 1 or whole bytes")
    return found


def cleaned(original: Item, item: Item, transfer_syntax_uid: str, syntax: Syntax) -> Item:
    """Return the pixel elements that may leave, by tag; none when the instance has no pixel data.

    Parameters
    ----------
    original : Item
        The data set with the pixel data.
    item : Item
        What is left of it, with the description under which the pixel data will be read.
    transfer_syntax_uid, syntax : str, Syntax
        How the pixel data is encoded.

    Raises
    ------
    StopError
        Code ``pixel_data_mismatch``, ``pixel_data_missing`` or ``transfer_syntax_not_judged``.
    """
    present = [tag for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA) if tag in original]
    if not present:
        if _ROWS in original:
            raise StopError("pixel_data_missing", "the instance describes an image but has no pixel data")
        return {}
    if len(present) > 1:
        raise _mismatch("more than one kind of pixel data")
    element, description = original[present[0]], describe(item, syntax)
    if transfer_syntax_uid in NATIVE:
        return {element.tag: _native(element, description, little=syntax.little)}
    if element.tag != PIXEL_DATA or not isinstance(element.value, Fragments):
        raise _mismatch("compressed transfer syntax: expected encapsulated pixel data")
    frames = [
        _clean(frame, description, transfer_syntax_uid) for frame in split_frames(element.value, description)
    ]
    return encapsulated(frames)


def _native(element: Element, description: Description, *, little: bool) -> Element:
    value = element.value
    if isinstance(value, (Fragments, tuple)):
        raise _mismatch("native transfer syntax: expected pixel data of defined length")
    expected = description.native_bytes()
    if len(value) not in {expected, expected + expected % 2}:
        raise _mismatch("pixel data is longer or shorter than Rows, Columns, frames and bits say")
    if not little and element.vr == "OW" and description.bits_allocated <= 8 and len(value) != expected:
        last = value[expected - 1 :]  # a word whose second byte comes first (PS3.5 8.1.2)
        return Element(element.tag, element.vr, bytes(value[: expected - 1]) + b"\0" + bytes(last[1:]))
    return Element(element.tag, element.vr, _zero_padded(value, expected))


def _zero_padded(value: Bytes, expected: int) -> Bytes:
    return value if len(value) == expected else bytes(value[:expected]) + b"\0"


def split_frames(value: Fragments, description: Description) -> list[bytes]:
    """Return one byte string per frame."""
    fragments = value.fragments
    if len(fragments) == description.frames:
        return [bytes(fragment) for fragment in fragments]
    if description.frames == 1 and fragments:
        return [b"".join(fragments)]
    offsets = struct.unpack(f"<{len(value.offsets) // 4}L", value.offsets[: len(value.offsets) // 4 * 4])
    if len(offsets) != description.frames:
        raise _mismatch("fragments cannot be told apart into frames")
    starts, at = {}, 0
    for number, fragment in enumerate(fragments):
        starts[at] = number
        at += 8 + len(fragment)
    if any(offset not in starts for offset in offsets) or list(offsets) != sorted(set(offsets)) or offsets[0]:
        raise _mismatch("the basic offset table does not point at fragments")
    bounds = [*(starts[offset] for offset in offsets), len(fragments)]
    return [b"".join(fragments[a:b]) for a, b in itertools.pairwise(bounds)]


def _clean(frame: bytes, description: Description, transfer_syntax_uid: str) -> bytes:
    if transfer_syntax_uid == RLE:
        planes = description.samples * max(description.bits_allocated // 8, 1)
        return clean_rle(frame, planes, description.plane_bytes())
    if transfer_syntax_uid in JPEG:
        found = clean_jpeg(frame)
    elif transfer_syntax_uid in JPEG2000:
        found = clean_jpeg2000(frame)
    else:
        raise StopError(
            "transfer_syntax_not_judged", "the transfer syntax's pixel data cannot be looked into"
        )
    if (found.rows, found.columns, found.samples) != (
        description.rows,
        description.columns,
        description.samples,
    ):
        raise _mismatch("the compressed frame's own size is not the one that the attributes give")
    return found.content


def encapsulated(frames: list[bytes], widest_offset: int = 0xFFFFFFFF) -> Item:
    """Return the elements that hold one fragment per frame, with the offsets of these frames (PS3.5 A.4).

    The basic offset table's numbers are 32 bits wide; frames that lie further away are found by an extended
    offset table, and the basic one is then empty.
    """
    padded = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    offsets, at = [], 0
    for frame in padded:
        offsets.append(at)
        at += 8 + len(frame)
    if at <= widest_offset:
        basic = struct.pack(f"<{len(offsets)}L", *offsets)
        return {PIXEL_DATA: Element(PIXEL_DATA, "OB", Fragments(basic, tuple(padded)))}
    lengths = [len(frame) for frame in padded]
    return {
        _EXTENDED_OFFSETS: _very_longs(_EXTENDED_OFFSETS, offsets),
        _EXTENDED_LENGTHS: _very_longs(_EXTENDED_LENGTHS, lengths),
        PIXEL_DATA: Element(PIXEL_DATA, "OB", Fragments(b"", tuple(padded))),
    }


def _very_longs(tag: int, numbers: list[int]) -> Element:
    return Element(tag, "OV", struct.pack(f"<{len(numbers)}Q", *numbers))
