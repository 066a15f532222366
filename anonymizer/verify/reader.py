"""A small reader of Part 10 files (PS3.10 7, PS3.5 7): every value with its place and character set.

It reads what is there and believes no more than it must. What it cannot follow is an error, never a silence.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR

Bytes = bytes | memoryview
Path = tuple[int, ...]
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG: Final = frozenset({
    b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV",
})  # fmt: skip
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_NATIVE: Final = frozenset({_IMPLICIT, _BIG_ENDIAN, _DEFLATED, "1.2.840.10008.1.2.1"})
_CHARSET: Final = 0x00080005
_TRANSFER_SYNTAX: Final = 0x00020010
PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_DELIMITERS: Final = {ord(c) for c in "\n\r\t\f\\^="}
_DEEPEST: Final = 32


class VerificationError(Exception):
    """A file cannot be followed, so that nothing can be said of it; the message holds no value."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value as encoded: the tags that lead to it, its VR (empty: unknown), the terms of its charset."""

    path: Path
    vr: str
    raw: Bytes
    charset: tuple[str, ...]

    def text(self) -> str:
        """Decode, with Latin-1 for what does not fit the declared character set."""
        raw = bytes(self.raw)
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        encodings = [python_encoding.get(term, "iso8859") for term in self.charset] or ["iso8859"]
        try:
            if len(encodings) == 1 and b"\x1b" not in raw:
                return raw.decode(encodings[0])
            return decode_bytes(raw, encodings, set(_DELIMITERS))
        except (UnicodeError, LookupError, ValueError):
            return raw.decode("latin-1")


@dataclass
class File:
    """A file in parts: what precedes the data set, its values, its fragments of compressed frames."""

    head: Bytes
    transfer_syntax_uid: str
    values: list[Value] = field(default_factory=list)
    fragments: list[tuple[Path, Bytes]] = field(default_factory=list)
    tail: Bytes = b""

    @property
    def native(self) -> bool:
        """Whether pixel data lies there uncompressed."""
        return self.transfer_syntax_uid in _NATIVE


@lru_cache(maxsize=16384)
def _dictionary(tag: int) -> str:
    try:
        return dictionary_VR(tag)[:2]
    except KeyError:
        return ""


class _Walk:
    """One walk through encoded elements."""

    def __init__(self, buffer: memoryview, file: File, *, implicit: bool, order: str) -> None:
        self.buffer, self.file, self.implicit = buffer, file, implicit
        self.short = struct.Struct(f"{order}HHL").unpack_from
        self.explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self.length = struct.Struct(f"{order}L").unpack_from
        self.order = order

    def elements(self, at: int, end: int, path: Path, charset: tuple[str, ...]) -> int:
        """Collect the values of a data set or item; return where it ends."""
        if len(path) > _DEEPEST:
            raise VerificationError("nested too deeply")
        while at < end:
            if end - at < 8:
                return at
            tag, vr, length, start = self.header(at)
            if tag == _ITEM_END:
                return start
            at = self.value((*path, tag), vr, length, start, end, charset)
            if tag == _CHARSET:
                terms = bytes(self.buffer[start:at]).decode("latin-1").split("\\")
                charset = tuple(term.strip(" \0") for term in terms)
        return at

    def header(self, at: int) -> tuple[int, str, int, int]:
        """Return tag, VR, length and where the value begins."""
        if self.implicit:
            group, element, length = self.short(self.buffer, at)
            return group << 16 | element, _dictionary(group << 16 | element), length, at + 8
        group, element, vr, length = self.explicit(self.buffer, at)
        tag = group << 16 | element
        if group == 0xFFFE:
            return tag, "", self.length(self.buffer, at + 4)[0], at + 8
        if vr in _LONG:
            if at + 12 > len(self.buffer):
                raise VerificationError("an element's header is cut off")
            return tag, vr.decode("ascii"), self.length(self.buffer, at + 8)[0], at + 12
        return tag, vr.decode("latin-1"), length, at + 8

    def value(self, path: Path, vr: str, length: int, start: int, end: int, charset: tuple[str, ...]) -> int:
        """Collect a value, or those inside of it; return where the next element begins."""
        if length == _UNDEFINED:
            if path[-1] in PIXELS:
                return self._fragments(path, start)
            walk = self if vr != "UN" or self.implicit else self._as_implicit()
            return walk.items(start, end, path, charset, delimited=True)
        if start + length > end:
            raise VerificationError("a value is longer than its surroundings")
        known = vr if vr not in {"", "UN"} else _dictionary(path[-1])
        if vr == "SQ":
            return self.items(start, start + length, path, charset, delimited=False)
        if known == "SQ" and not self.implicit:
            return self._as_implicit().items(start, start + length, path, charset, delimited=False)
        self.file.values.append(Value(path, known, self.buffer[start : start + length], charset))
        return start + length

    def _as_implicit(self) -> _Walk:
        return _Walk(self.buffer, self.file, implicit=True, order="<")

    def items(self, at: int, end: int, path: Path, charset: tuple[str, ...], *, delimited: bool) -> int:
        """Collect the values of a sequence's items; return where it ends."""
        while at + 8 <= end:
            group, element, length = self.short(self.buffer, at)
            tag, at = group << 16 | element, at + 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise VerificationError("a sequence holds something else than items")
            at = self.elements(at, end if length == _UNDEFINED else min(at + length, end), path, charset)
        if delimited:
            raise VerificationError("a sequence has no end")
        return end

    def _fragments(self, path: Path, at: int) -> int:
        while at + 8 <= len(self.buffer):
            group, element, length = self.short(self.buffer, at)
            tag, at = group << 16 | element, at + 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM or at + length > len(self.buffer):
                break
            self.file.fragments.append((path, self.buffer[at : at + length]))
            at += length
        raise VerificationError("compressed pixel data has no end")


def read(content: Bytes, max_inflated_bytes: int) -> File:
    """Read a file.

    Raises
    ------
    VerificationError
        If it cannot be followed.
    """
    view = memoryview(content)
    try:
        return _read(view, max_inflated_bytes)
    except (struct.error, zlib.error) as error:
        raise VerificationError("cut off or broken") from error


def _read(view: memoryview, max_inflated_bytes: int) -> File:
    if bytes(view[128:132]) != b"DICM":
        raise VerificationError("no DICM prefix")
    meta = File(view[:132], "")
    at, walk = 132, _Walk(view, meta, implicit=False, order="<")
    while bytes(view[at : at + 2]) == b"\x02\0":
        tag, vr, length, start = walk.header(at)
        at = walk.value((tag,), vr, length, start, len(view), ())
    uids = [v.text().strip(" \0") for v in meta.values if v.path == (_TRANSFER_SYNTAX,)]
    file = File(view[:at], uids[0] if uids else "")
    body = view[at:]
    if file.transfer_syntax_uid == _DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        body = memoryview(stream.decompress(body, max_inflated_bytes))
        file.tail = stream.unconsumed_tail + stream.unused_data
    order = ">" if file.transfer_syntax_uid == _BIG_ENDIAN else "<"
    end = _Walk(body, file, implicit=file.transfer_syntax_uid == _IMPLICIT, order=order).elements(
        0, len(body), (), ()
    )
    file.tail = file.tail or body[end:]
    return file
