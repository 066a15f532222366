"""A walk over the elements of an encoded data set that trusts nothing in it (PS3.5 section 7).

It checks that the data set is whole, to its last byte, and hands over the raw values of the wanted
top-level elements. It decodes no value, recurses nowhere, and every loop is bounded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dicom_node.errors import HeaderError
from dicom_node.part10 import LONG_VRS

if TYPE_CHECKING:
    from collections.abc import Collection
    from mmap import mmap

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

MAX_STEPS: Final = 5_000_000
MAX_DEPTH: Final = 64
MAX_VALUE_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Encoding:
    """How a data set is encoded (PS3.5 annex A)."""

    implicit: bool
    big_endian: bool = False


@dataclass(frozen=True)
class _Element:
    tag: int
    vr: bytes
    length: int
    value_at: int


def scan(data: bytes | mmap, start: int, encoding: Encoding, wanted: Collection[int]) -> dict[int, bytes]:
    """Walk a whole data set and return the raw values of the wanted top-level elements.

    Raises
    ------
    HeaderError
        ``truncated`` when an element, item or sequence does not end inside the data, ``not_a_data_set`` when
        the bytes are no elements, ``ambiguous`` when a wanted element comes twice or has no plain value,
        ``too_complex`` beyond the bounds of this module.
    """
    return _Scanner(data, encoding, frozenset(wanted)).run(start)


class _Scanner:
    """The state of one walk: a stack of open sequences and items instead of recursion."""

    def __init__(self, data: bytes | mmap, encoding: Encoding, wanted: frozenset[int]) -> None:
        self._data = data
        self._size = len(data)
        self._wanted = wanted
        self._values: dict[int, bytes] = {}
        self._open: list[tuple[int, Encoding]] = []  # (what closes it, encoding outside of it)
        self._encoding = encoding
        self._order = ">" if encoding.big_endian else "<"

    def run(self, position: int) -> dict[int, bytes]:
        if position >= self._size:
            raise HeaderError("empty", "no data set behind the file meta information")
        self._settle_vr_encoding(position)
        for _ in range(MAX_STEPS):
            if position >= self._size:
                break
            if not self._open and self._only_padding(position):
                break
            position = self._step(position)
        else:
            raise HeaderError("too_complex", f"more than {MAX_STEPS} elements")
        if self._open:
            raise HeaderError("truncated", "the data set ends inside a sequence")
        return self._values

    def _settle_vr_encoding(self, position: int) -> None:
        """Believe the first element where it contradicts the transfer syntax, as common readers do."""
        vr = self._data[position + 4 : position + 6]
        looks_explicit = len(vr) == 2 and vr.isalpha() and vr.isupper()
        if self._encoding.implicit == looks_explicit:
            self._encoding = Encoding(implicit=not looks_explicit, big_endian=self._encoding.big_endian)

    def _only_padding(self, position: int) -> bool:
        """Senders pad files with zeros; only a short tail of them counts as padding."""
        if self._data[position : position + 4].strip(b"\0"):
            return False
        return self._size - position < 4096 and not self._data[position:].strip(b"\0")

    def _step(self, position: int) -> int:
        element = self._read(position)
        if element.tag >> 16 == 0xFFFE:
            return self._delimiter(element)
        if self._open and self._open[-1][0] == SEQUENCE_END:
            raise HeaderError("not_a_data_set", "something other than an item inside a sequence")
        if element.length == UNDEFINED:
            return self._enter(element)
        end = element.value_at + element.length
        if end > self._size:
            raise HeaderError("truncated", "the data set ends inside an element")
        if not self._open and element.tag in self._wanted:
            self._keep(element, end)
        return end

    def _read(self, position: int) -> _Element:
        data, order = self._data, self._order
        if position + 8 > self._size:
            raise HeaderError("truncated", "the data set ends inside the head of an element")
        group, number = struct.unpack_from(order + "HH", data, position)
        tag = group << 16 | number
        if self._encoding.implicit or group == 0xFFFE:
            (length,) = struct.unpack_from(order + "I", data, position + 4)
            return _Element(tag, b"", length, position + 8)
        vr = bytes(data[position + 4 : position + 6])
        if not (vr.isalpha() and vr.isupper()):
            raise HeaderError("not_a_data_set", "an element without a value representation")
        if vr in LONG_VRS:
            if position + 12 > self._size:
                raise HeaderError("truncated", "the data set ends inside the head of an element")
            (length,) = struct.unpack_from(order + "I", data, position + 8)
            return _Element(tag, vr, length, position + 12)
        (length,) = struct.unpack_from(order + "H", data, position + 6)
        return _Element(tag, vr, length, position + 8)

    def _enter(self, element: _Element) -> int:
        """Open a sequence, or the fragments of encapsulated pixel data (PS3.5 7.5, A.4)."""
        if not self._open and element.tag in self._wanted:
            raise HeaderError("ambiguous", "a wanted element has no plain value")
        if element.tag in PIXEL_DATA and element.vr != b"SQ":
            return self._skip_fragments(element.value_at)
        self._push(SEQUENCE_END)
        if element.vr == b"UN":  # PS3.5 6.2.2 note 5: always implicit VR little endian inside
            self._encoding = Encoding(implicit=True, big_endian=self._encoding.big_endian)
        return element.value_at

    def _push(self, closed_by: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise HeaderError("too_complex", f"sequences nested deeper than {MAX_DEPTH} levels")
        self._open.append((closed_by, self._encoding))

    def _delimiter(self, element: _Element) -> int:
        if not self._open:
            raise HeaderError("not_a_data_set", "an item or delimiter outside any sequence")
        closed_by, outside = self._open[-1]
        if element.tag == closed_by:
            self._open.pop()
            self._encoding = outside
            return element.value_at
        if element.tag != ITEM or closed_by != SEQUENCE_END:
            raise HeaderError("not_a_data_set", "a delimiter where none belongs")
        if element.length == UNDEFINED:
            self._push(ITEM_END)
            return element.value_at
        end = element.value_at + element.length
        if end > self._size:
            raise HeaderError("truncated", "the data set ends inside an item")
        return end

    def _skip_fragments(self, position: int) -> int:
        for _ in range(MAX_STEPS):
            if position + 8 > self._size:
                raise HeaderError("truncated", "the data set ends inside encapsulated pixel data")
            group, number, length = struct.unpack_from(self._order + "HHI", self._data, position)
            tag = group << 16 | number
            position += 8
            if tag == SEQUENCE_END:
                return position
            if tag != ITEM or length == UNDEFINED:
                raise HeaderError(
                    "not_a_data_set", "encapsulated pixel data holds something other than fragments"
                )
            position += length
        raise HeaderError("too_complex", f"more than {MAX_STEPS} fragments")

    def _keep(self, element: _Element, end: int) -> None:
        if element.tag in self._values:
            raise HeaderError("ambiguous", f"{element.tag >> 16:04X},{element.tag & 0xFFFF:04X} comes twice")
        if element.length > MAX_VALUE_BYTES:
            raise HeaderError("ambiguous", "a value of the header is longer than any valid one")
        self._values[element.tag] = bytes(self._data[element.value_at : end])
