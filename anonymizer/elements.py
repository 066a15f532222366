"""Encoded data elements: a strict reader and a writer (PS3.5 section 7, PS3.10 section 7).

The reader takes no liberty: a length that leads outside, an unknown value representation or trailing bytes
stop it, because bytes that two readers understand differently are a hiding place. Values stay the bytes that
they were.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pydicom.datadict import dictionary_VR

from anonymizer.errors import DecodingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Bytes = bytes | memoryview
UNDEFINED: Final = 0xFFFFFFFF
_PIXEL_REPRESENTATION: Final = 0x00280103
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT_VRS: Final = frozenset({
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
})  # fmt: skip
_NAMES: Final = {vr: vr.decode("ascii") for vr in LONG_VRS | _SHORT_VRS}
_LONG_NAMES: Final = frozenset(_NAMES[vr] for vr in LONG_VRS)
MAX_DEPTH: Final = 24
MAX_INFLATED_BYTES: Final = 512 * 1024**2
_MAX_RATIO: Final = 200
_ANY_RATIO_BYTES: Final = 64 * 1024**2  # empty images and masks deflate to next to nothing
_READ_BYTES, _CHUNK_BYTES = 64 * 1024, 1024**2

IMPLICIT: Final = "1.2.840.10008.1.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"


@dataclass(frozen=True, slots=True)
class Fragments:
    """Encapsulated pixel data (PS3.5 A.4): the basic offset table's bytes, then the fragments."""

    offsets: Bytes
    fragments: tuple[Bytes, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """A data element. ``vr`` is empty where the encoding tells none and the dictionary knows none."""

    tag: int
    vr: str
    value: Bytes | Fragments | tuple[Item, ...]


Item = dict[int, Element]


@dataclass(frozen=True, slots=True)
class Syntax:
    """How elements are encoded."""

    implicit: bool
    little: bool


def syntax_of(transfer_syntax_uid: str) -> Syntax:
    """Return the encoding of a transfer syntax; all but three are explicit VR little endian."""
    return Syntax(implicit=transfer_syntax_uid == IMPLICIT, little=transfer_syntax_uid != BIG_ENDIAN)


@lru_cache(maxsize=16384)
def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _vr_of(tag: int) -> str:
    """Return the dictionary's VR, the first of several."""
    return _dictionary_vr(tag)[:2]


def _vr_within(tag: int, before: Item) -> str:
    """Return the dictionary's VR; of US or SS the one that PixelRepresentation, which comes first, tells."""
    vr = _dictionary_vr(tag)
    representation = before.get(_PIXEL_REPRESENTATION) if vr == "US or SS" else None
    return "SS" if representation is not None and representation.value == b"\1\0" else vr[:2]


class _Reader:
    """Reads elements from one buffer."""

    def __init__(self, buffer: memoryview, syntax: Syntax) -> None:
        self.buffer = buffer
        self.implicit = syntax.implicit
        self.little = syntax.little
        order = "<" if syntax.little else ">"
        self.tag_length = struct.Struct(f"{order}HHL").unpack_from
        self.tag_vr_length = struct.Struct(f"{order}HH2sH").unpack_from
        self.long_length = struct.Struct(f"{order}L").unpack_from

    def header(self, at: int, end: int) -> tuple[int, str, int, int]:
        """Return tag, VR, length and where the value begins."""
        if end - at < 8:
            raise DecodingError("truncated", f"element at byte {at}: the header is cut off")
        if self.implicit:
            group, element, length = self.tag_length(self.buffer, at)
            tag = group << 16 | element
            return tag, _vr_of(tag), length, at + 8
        group, element, vr, short = self.tag_vr_length(self.buffer, at)
        tag = group << 16 | element
        if group == 0xFFFE:
            return tag, "", self.long_length(self.buffer, at + 4)[0], at + 8
        if vr in _SHORT_VRS:
            return tag, _NAMES[vr], short, at + 8
        if vr not in LONG_VRS:
            raise DecodingError(
                "malformed", f"element at byte {at}: expected a value representation of PS3.5 6.2"
            )
        if end - at < 12:
            raise DecodingError("truncated", f"element at byte {at}: the header is cut off")
        return tag, _NAMES[vr], self.long_length(self.buffer, at + 8)[0], at + 12

    def elements(self, at: int, end: int, depth: int, *, delimited: bool) -> tuple[Item, int]:
        """Read elements up to ``end``, or to an item's delimiter when ``delimited``."""
        if depth > MAX_DEPTH:
            raise DecodingError(
                "malformed", f"element at byte {at}: nested deeper than {MAX_DEPTH} sequences"
            )
        found: Item = {}
        last = -1
        while at < end:
            tag, vr, length, start = self.header(at, end)
            if tag == _ITEM_END and delimited:
                return found, start
            if tag <= last:
                raise DecodingError(
                    "malformed", f"element at byte {at}: not in ascending order of tags (PS3.5 7.1)"
                )
            last = tag
            value, at = self.value(tag, vr, length, start, end, depth)
            if isinstance(value, tuple):
                vr = "SQ"
            elif vr == "UN" and self.little:
                vr = _vr_within(tag, found) or vr  # PS3.5 6.2.2 note 2: the value is as in implicit VR
            found[tag] = Element(tag, vr, value)
        if delimited:
            raise DecodingError("truncated", "an item of undefined length has no end")
        return found, at

    def value(
        self, tag: int, vr: str, length: int, start: int, end: int, depth: int
    ) -> tuple[Bytes | Fragments | tuple[Item, ...], int]:
        """Read one value; return it and where the next element begins."""
        if length == UNDEFINED:
            if vr in {"OB", "OW"}:
                return self.fragments(start, end)
            if vr == "UN" and not self.implicit:
                return self.unknown().items(start, end, depth, delimited=True)
            if vr not in {"SQ", ""}:
                raise DecodingError(
                    "malformed", f"element at byte {start}: undefined length is for sequences"
                )
            return self.items(start, end, depth, delimited=True)
        stop = start + length
        if stop > end:
            raise DecodingError("truncated", f"element at byte {start}: its value is cut off")
        if vr == "SQ" and tag & 0x10000 == 0:
            return self.items(start, stop, depth, delimited=False)[0], stop
        if vr == "UN" and not self.implicit and _vr_of(tag) == "SQ":
            return self.unknown().items(start, stop, depth, delimited=False)[0], stop
        return self.buffer[start:stop], stop

    def unknown(self) -> _Reader:
        """Return a reader for the inside of a UN value: implicit VR little endian (PS3.5 6.2.2)."""
        if not self.little:
            raise DecodingError("malformed", "a sequence of unknown VR in big endian")
        return _Reader(self.buffer, Syntax(implicit=True, little=True))

    def items(self, at: int, end: int, depth: int, *, delimited: bool) -> tuple[tuple[Item, ...], int]:
        """Read the items of a sequence."""
        found: list[Item] = []
        while at < end:
            tag, length, start = self.item_header(at, end)
            if tag == _SEQUENCE_END and delimited:
                return tuple(found), start
            if tag != _ITEM:
                raise DecodingError("malformed", f"item at byte {at}: expected an item tag")
            if length == UNDEFINED:
                item, at = self.elements(start, end, depth + 1, delimited=True)
            elif start + length > end:
                raise DecodingError("truncated", f"item at byte {at}: cut off")
            else:
                item, at = self.elements(start, start + length, depth + 1, delimited=False)
            found.append(item)
        if delimited:
            raise DecodingError("truncated", "a sequence of undefined length has no end")
        return tuple(found), at

    def fragments(self, at: int, end: int) -> tuple[Fragments, int]:
        """Read encapsulated pixel data."""
        found: list[Bytes] = []
        while True:
            tag, length, start = self.item_header(at, end)
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM or length == UNDEFINED:
                raise DecodingError("malformed", f"fragment at byte {at}: expected an item of defined length")
            if start + length > end:
                raise DecodingError("truncated", f"fragment at byte {at}: cut off")
            found.append(self.buffer[start : start + length])
            at = start + length
        if not found:
            raise DecodingError("malformed", "encapsulated pixel data: no basic offset table")
        return Fragments(found[0], tuple(found[1:])), start

    def item_header(self, at: int, end: int) -> tuple[int, int, int]:
        """Return tag, length and where the content begins."""
        if end - at < 8:
            raise DecodingError("truncated", f"item at byte {at}: the header is cut off")
        group, element, length = self.tag_length(self.buffer, at)
        return group << 16 | element, length, at + 8


def read(buffer: Bytes, syntax: Syntax) -> Item:
    """Read a data set.

    Raises
    ------
    DecodingError
        Code ``truncated`` or ``malformed``.
    """
    view = memoryview(buffer)
    return _Reader(view, syntax).elements(0, len(view), 0, delimited=False)[0]


def inflate(buffer: Bytes, max_bytes: int = MAX_INFLATED_BYTES) -> memoryview:
    """Undo deflation (PS3.5 A.5), within a limit; never hold more than the limit and a chunk.

    Parameters
    ----------
    buffer : bytes or memoryview
        The deflated data set.
    max_bytes : int
        Most bytes of the data set; well below that a stream may not grow more than two hundredfold.

    Raises
    ------
    DecodingError
        Code ``malformed`` for a broken or cut-off stream, ``inflated_too_large`` beyond the limit.
    """
    limit = min(max_bytes, max(_ANY_RATIO_BYTES, _MAX_RATIO * len(buffer)))
    content = bytearray()
    for chunk in _inflated(memoryview(buffer)):
        content += chunk
        if len(content) > limit:
            raise DecodingError("inflated_too_large", "deflated data set: larger than the limit")
    return memoryview(content)


def _inflated(buffer: memoryview) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for at in range(0, len(buffer), _READ_BYTES):
            waiting: Bytes = buffer[at : at + _READ_BYTES]
            while waiting and not stream.eof:
                yield stream.decompress(waiting, _CHUNK_BYTES)
                waiting = stream.unconsumed_tail
        while not stream.eof and (rest := stream.decompress(b"", _CHUNK_BYTES)):
            yield rest
    except zlib.error as error:
        raise DecodingError("malformed", "deflated data set: a broken stream") from error
    if not stream.eof:
        raise DecodingError("malformed", "deflated data set: an incomplete stream")


def deflate(content: bytes) -> bytes:
    """Deflate, padded to even length (PS3.5 A.5)."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = stream.compress(content) + stream.flush()
    return packed + b"\0" * (len(packed) % 2)


class _Writer:
    """Encodes elements into a list of chunks."""

    def __init__(self, syntax: Syntax) -> None:
        self.implicit = syntax.implicit
        order = "<" if syntax.little else ">"
        self.tag_length: Callable[..., bytes] = struct.Struct(f"{order}HHL").pack
        self.short: Callable[..., bytes] = struct.Struct(f"{order}HH2sH").pack
        self.long: Callable[..., bytes] = struct.Struct(f"{order}HH2sHL").pack

    def header(self, tag: int, vr: str, length: int) -> bytes:
        """Encode tag, VR and length."""
        group, element = tag >> 16, tag & 0xFFFF
        if self.implicit:
            return self.tag_length(group, element, length)
        if vr in _LONG_NAMES:
            return self.long(group, element, vr.encode("ascii"), 0, length)
        if length > 0xFFFF:
            raise DecodingError("malformed", f"({group:04X},{element:04X}): value longer than its VR allows")
        return self.short(group, element, vr.encode("ascii"), length)

    def element(self, element: Element) -> Iterator[Bytes]:
        """Encode one element."""
        value = element.value
        if isinstance(value, tuple):
            content = [chunk for item in value for chunk in self.item(item)]
            yield self.header(element.tag, "SQ", sum(map(len, content)))
            yield from content
        elif isinstance(value, Fragments):
            yield self.header(element.tag, element.vr, UNDEFINED)
            for fragment in (value.offsets, *value.fragments):
                yield self.tag_length(0xFFFE, 0xE000, len(fragment))
                yield fragment
            yield self.tag_length(0xFFFE, 0xE0DD, 0)
        else:
            padding = len(value) % 2
            yield self.header(element.tag, element.vr, len(value) + padding)
            yield value
            if padding:
                yield b"\0" if element.vr in {"OB", "UI", "UN", ""} else b" "

    def item(self, item: Item) -> Iterator[Bytes]:
        """Encode one item with its length."""
        content = [chunk for tag in sorted(item) for chunk in self.element(item[tag])]
        yield self.tag_length(0xFFFE, 0xE000, sum(map(len, content)))
        yield from content


def write(elements: Iterable[Element], syntax: Syntax) -> list[Bytes]:
    """Encode elements in the order given; return the chunks."""
    writer = _Writer(syntax)
    return [chunk for element in elements for chunk in writer.element(element)]
