"""Part 10 files as bytes by tag, read and written without judgement, as a hostile writer makes them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from pydicom.datadict import dictionary_VR

DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
IMPLICIT: Final = "1.2.840.10008.1.2"
_LONG: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PREFIX: Final = 132
_META_GROUP: Final = 2


@dataclass
class Encapsulated:
    """Encapsulated pixel data: the offset table and the fragments behind it (PS3.5 A.4)."""

    offsets: bytes
    fragments: list[bytes]


@dataclass
class Raw:
    """One element; a sequence has a list of items."""

    vr: str
    value: bytes | list[dict[int, Raw]] | Encapsulated


Item = dict[int, Raw]


@dataclass
class RawFile:
    """A file; ``behind`` is what follows the data set (behind the deflated stream, if it is deflated)."""

    meta: Item
    body: Item
    preamble: bytes = b"\0" * 128
    behind: bytes = b""
    transfer_syntax: str = field(default="")


class _Reader:
    def __init__(self, data: bytes, *, implicit: bool, little: bool) -> None:
        self.data, self.at, self.implicit = data, 0, implicit
        self.order = "<" if little else ">"

    def _unpack(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return found

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError("truncated")
        self.at += length
        return self.data[self.at - length : self.at]

    def items(self, end: int) -> list[Item]:
        """Read items up to ``end``, or to the sequence's delimiter."""
        found = []
        while self.at < end:
            group, number, length = self._unpack("HHL")
            tag = group << 16 | number
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise ValueError("no item")
            found.append(self.item(len(self.data) if length == _UNDEFINED else self.at + length))
        return found

    def item(self, end: int) -> Item:
        """Read elements up to ``end``, or to the item's delimiter."""
        found: Item = {}
        while self.at < end:
            group, number = self._unpack("HH")
            tag = group << 16 | number
            if tag == _ITEM_END:
                self.take(4)
                break
            found[tag] = self.element(tag)
        return found

    def element(self, tag: int) -> Raw:
        """Read VR, length and value."""
        if self.implicit:
            vr, (length,) = _dictionary_vr(tag), self._unpack("L")
        else:
            vr = self.take(2).decode("ascii")
            if vr in _LONG:
                self.take(2)
                (length,) = self._unpack("L")
            else:
                (length,) = self._unpack("H")
        if length == _UNDEFINED:
            return self._undefined(vr)
        if vr == "SQ":
            return Raw("SQ", self.items(self.at + length))
        return Raw(vr, self.take(length))

    def _undefined(self, vr: str) -> Raw:
        if vr in {"OB", "OW"}:
            parts: list[bytes] = []
            while True:
                group, number, length = self._unpack("HHL")
                if group << 16 | number == _SEQUENCE_END:
                    return Raw(vr, Encapsulated(parts[0], parts[1:]))
                parts.append(self.take(length))
        before, self.implicit = self.implicit, self.implicit or vr == "UN"  # PS3.5 6.2.2
        items = self.items(len(self.data))
        self.implicit = before
        return Raw("SQ", items)


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"


def read(content: bytes) -> RawFile:
    """Read a file.

    Raises
    ------
    ValueError, struct.error, zlib.error
        If it cannot be read; the message is for people who write tests.
    """
    if content[128:_PREFIX] != b"DICM":
        raise ValueError("no prefix")
    reader = _Reader(content, implicit=False, little=True)
    reader.at = _PREFIX
    meta: Item = {}
    while content[reader.at : reader.at + 2] == b"\x02\0":
        group, number = reader._unpack("HH")
        meta[group << 16 | number] = reader.element(group << 16 | number)
    syntax = bytes(meta[0x00020010].value).decode("ascii").rstrip("\0 ")  # type: ignore[arg-type]
    body = content[reader.at :]
    if syntax == DEFLATED:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    inner = _Reader(body, implicit=syntax == IMPLICIT, little=syntax != BIG_ENDIAN)
    return RawFile(meta, inner.item(len(body)), content[:128], b"", syntax)


def write(file: RawFile) -> bytes:
    """Write a file; values of odd length are padded, everything else goes out as it is."""
    meta = b"".join(
        _element(tag, raw, implicit=False, order="<")
        for tag, raw in sorted(file.meta.items())
        if tag & 0xFFFF
    )
    head = _element(0x00020000, Raw("UL", struct.pack("<L", len(meta))), implicit=False, order="<")
    order = ">" if file.transfer_syntax == BIG_ENDIAN else "<"
    body = _item(file.body, implicit=file.transfer_syntax == IMPLICIT, order=order)
    if file.transfer_syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflater.compress(body) + deflater.flush()
        body += b"\0" * (len(body) % 2)
    return file.preamble + b"DICM" + head + meta + body + file.behind


def _item(item: Item, *, implicit: bool, order: str) -> bytes:
    return b"".join(_element(tag, item[tag], implicit=implicit, order=order) for tag in sorted(item))


def _tag(tag: int, length: int, order: str) -> bytes:
    return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, length)


def _element(tag: int, raw: Raw, *, implicit: bool, order: str) -> bytes:
    value, length = _value(raw, implicit=implicit, order=order)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(order + "L", length) + value
    vr = raw.vr.encode("ascii")
    if raw.vr in _LONG:
        return head + vr + b"\0\0" + struct.pack(order + "L", length) + value
    return head + vr + struct.pack(order + "H", length) + value


def _value(raw: Raw, *, implicit: bool, order: str) -> tuple[bytes, int]:
    if isinstance(raw.value, Encapsulated):
        parts = [raw.value.offsets, *(part + b"\0" * (len(part) % 2) for part in raw.value.fragments)]
        packed = b"".join(_tag(_ITEM, len(part), order) + part for part in parts)
        return packed + _tag(_SEQUENCE_END, 0, order), _UNDEFINED
    if isinstance(raw.value, list):
        packed = b"".join(
            _tag(_ITEM, _UNDEFINED, order)
            + _item(item, implicit=implicit, order=order)
            + _tag(_ITEM_END, 0, order)
            for item in raw.value
        )
        return packed + _tag(_SEQUENCE_END, 0, order), _UNDEFINED
    padded = raw.value
    if len(padded) % 2:
        padded += b"\0" if raw.vr in {"OB", "UI", "UN"} else b" "
    return padded, len(padded)
