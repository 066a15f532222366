"""A walk over the elements of an encoded data set that trusts nothing in it (PS3.5 section 7).

It checks that the data set is whole, to its last byte, and hands over the raw values of the wanted
top-level elements. It decodes no value, recurses nowhere, and every loop is bounded. It only ever goes
forward, so a data set that is inflated on the way need not be held as a whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from dicom_node.errors import HeaderError
from dicom_node.part10 import LONG_VRS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from mmap import mmap

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

MAX_STEPS: Final = 5_000_000
MAX_DEPTH: Final = 64
MAX_VALUE_BYTES: Final = 1 << 16
MAX_PADDING_BYTES: Final = 4096
_HEAD_BYTES: Final = 12  # of the longest head of an element


@dataclass(frozen=True)
class Encoding:
    """How a data set is encoded (PS3.5 annex A)."""

    implicit: bool
    big_endian: bool = False


class _Element(NamedTuple):
    tag: int
    vr: bytes
    length: int
    value_at: int


def scan(
    data: bytes | mmap,
    start: int,
    encoding: Encoding,
    wanted: Collection[int],
    more: Callable[[], bytes] | None = None,
) -> dict[int, bytes]:
    """Walk a whole data set and return the raw values of the wanted top-level elements.

    Parameters
    ----------
    data : bytes or mmap
        What there is of it at first.
    start : int
        Where it begins in ``data``.
    encoding : Encoding
    wanted : collection of int
        Tags.
    more : callable or None
        Returns the bytes that follow, piece by piece, and nothing at the end.

    Raises
    ------
    HeaderError
        ``truncated`` when an element, item or sequence does not end inside the data, ``not_a_data_set`` when
        the bytes are no elements, ``ambiguous`` when a wanted element comes twice or has no plain value,
        ``too_complex`` beyond the bounds of this module.
    """
    return _Scanner(data, encoding, frozenset(wanted), more).run(start)


class _Scanner:
    """The state of one walk: a stack of open sequences and items instead of recursion."""

    def __init__(
        self,
        data: bytes | mmap,
        encoding: Encoding,
        wanted: frozenset[int],
        more: Callable[[], bytes] | None,
    ) -> None:
        self._data: bytes | mmap = data
        self._size = len(data)
        self._more = more
        self._wanted = wanted
        self._values: dict[int, bytes] = {}
        self._open: list[tuple[int, Encoding]] = []  # (what closes it, encoding outside of it)
        self._encoding = encoding
        order = ">" if encoding.big_endian else "<"
        self._explicit = struct.Struct(order + "HH2sH")
        self._implicit = struct.Struct(order + "HHI")
        self._long = struct.Struct(order + "I")
        self._steps = MAX_STEPS

    def run(self, position: int) -> dict[int, bytes]:
        position = self._reach(position, _HEAD_BYTES)
        if position >= self._size:
            raise HeaderError("empty", "no data set behind the file meta information")
        self._settle_vr_encoding(position)
        while position < self._size:
            if not self._open and not self._data[position : position + 4].strip(b"\0"):
                position = self._reach(position, MAX_PADDING_BYTES)
                if self._only_padding(position):
                    break
            self._spend()
            position = self._reach(self._step(position), _HEAD_BYTES)
        if self._open:
            raise HeaderError("truncated", "the data set ends inside a sequence")
        return self._values

    def _reach(self, position: int, wanted: int) -> int:
        """Let so many bytes from a position on be there, if the data set has them; return where they are."""
        if self._more is None or position + wanted <= self._size:
            return position
        window = bytearray(self._data[position:])
        skipped = max(position - self._size, 0)
        while len(window) < wanted:
            piece = self._more()
            if not piece:
                break
            window += piece[skipped:]
            skipped = max(skipped - len(piece), 0)
        if skipped:
            raise HeaderError("truncated", "the data set ends inside an element")
        self._data = bytes(window)
        self._size = len(window)
        return 0

    def _spend(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise HeaderError("too_complex", f"more than {MAX_STEPS} elements")

    def _settle_vr_encoding(self, position: int) -> None:
        """Believe the first element where it contradicts the transfer syntax, as common readers do."""
        vr = self._data[position + 4 : position + 6]
        looks_explicit = len(vr) == 2 and vr.isalpha() and vr.isupper()
        if self._encoding.implicit == looks_explicit:
            self._encoding = Encoding(implicit=not looks_explicit, big_endian=self._encoding.big_endian)

    def _only_padding(self, position: int) -> bool:
        """Senders pad files with zeros; only a short tail of them counts as padding."""
        return self._size - position < MAX_PADDING_BYTES and not self._data[position:].strip(b"\0")

    def _step(self, position: int) -> int:
        element = self._read(position)
        if element.tag >> 16 == 0xFFFE:
            return self._delimiter(element)
        if self._open and self._open[-1][0] == SEQUENCE_END:
            raise HeaderError("not_a_data_set", "something other than an item inside a sequence")
        if element.length == UNDEFINED:
            return self._enter(element)
        if not self._open and element.tag in self._wanted:
            return self._keep(element)
        return self._behind(element)

    def _behind(self, element: _Element) -> int:
        end = element.value_at + element.length
        if end > self._size and self._more is None:
            raise HeaderError("truncated", "the data set ends inside an element")
        return end

    def _read(self, position: int) -> _Element:
        data = self._data
        if position + 8 > self._size:
            raise HeaderError("truncated", "the data set ends inside the head of an element")
        if self._encoding.implicit:
            group, number, length = self._implicit.unpack_from(data, position)
            return _Element(group << 16 | number, b"", length, position + 8)
        group, number, vr, length = self._explicit.unpack_from(data, position)
        tag = group << 16 | number
        if group == 0xFFFE:
            (length,) = self._long.unpack_from(data, position + 4)
            return _Element(tag, b"", length, position + 8)
        if vr in LONG_VRS:
            if position + 12 > self._size:
                raise HeaderError("truncated", "the data set ends inside the head of an element")
            (length,) = self._long.unpack_from(data, position + 8)
            return _Element(tag, vr, length, position + 12)
        if not (vr.isalpha() and vr.isupper()):
            raise HeaderError("not_a_data_set", "an element without a value representation")
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
        return self._behind(element)

    def _skip_fragments(self, position: int) -> int:
        while True:
            self._spend()
            position = self._reach(position, 8)
            if position + 8 > self._size:
                raise HeaderError("truncated", "the data set ends inside encapsulated pixel data")
            group, number, length = self._implicit.unpack_from(self._data, position)
            tag = group << 16 | number
            position += 8
            if tag == SEQUENCE_END:
                return position
            if tag != ITEM or length == UNDEFINED:
                raise HeaderError(
                    "not_a_data_set", "encapsulated pixel data holds something other than fragments"
                )
            position += length

    def _keep(self, element: _Element) -> int:
        if element.tag in self._values:
            raise HeaderError("ambiguous", f"{element.tag >> 16:04X},{element.tag & 0xFFFF:04X} comes twice")
        if element.length > MAX_VALUE_BYTES:
            raise HeaderError("ambiguous", "a value of the header is longer than any valid one")
        start = self._reach(element.value_at, element.length)
        end = start + element.length
        if end > self._size:
            raise HeaderError("truncated", "the data set ends inside an element")
        self._values[element.tag] = bytes(self._data[start:end])
        return end
