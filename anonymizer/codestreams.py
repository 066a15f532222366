"""Compressed frames: what they say of themselves, and a copy without comments and application segments.

JPEG (ITU-T T.81), JPEG-LS (T.87), JPEG 2000 and HTJ2K (T.800, T.814). Comments and application segments are
free text that no DICOM attribute rule reaches; every other segment must have the length that its content asks
for. Entropy-coded data is not decoded: text in it is noticed only where it stands last.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from anonymizer.errors import StopError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_U16: Final = struct.Struct(">H").unpack_from
_U32: Final = struct.Struct(">L").unpack_from
_SOF: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_JPEG_LS: Final = 0xF7
_DHT, _DQT, _DRI, _LSE, _SOS = 0xC4, 0xDB, 0xDD, 0xF8, 0xDA
_JFIF: Final = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # no density, thumbnail of no size
_ADOBE: Final = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"  # the transform follows
_TEXT_LENGTH, _TEXT_VARIETY = 12, 5  # a run of code words repeats fewer bytes than text does
_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_AFTER_LS_SCAN: Final = re.compile(rb"\xff+[\x80-\xcf\xd8-\xfe]")
_J2K_COMMENT: Final = 0x64
_J2K_MAIN: Final = frozenset({
    0x50, 0x51, 0x52, 0x53, 0x55, 0x57, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x63,
})  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A cleaned frame and the size that its own header gives."""

    content: bytes
    rows: int
    columns: int
    samples: int


def _broken(what: str) -> StopError:
    return StopError("pixel_data_mismatch", f"compressed frame: {what}")


def clean_jpeg(frame: bytes) -> Frame:
    """Copy a JPEG or JPEG-LS stream without comments, thumbnails and application segments.

    Kept of those: that there is a JFIF mark, and Adobe's and HP's colour transforms, which say how to decode.
    """
    if frame[:2] != b"\xff\xd8":
        raise _broken("expected a JPEG start of image")
    out, at, size, lossless = [b"\xff\xd8"], 2, None, False
    while True:
        while frame[at : at + 2] == b"\xff\xff":
            at += 1
        if len(frame) - at < 2 or frame[at] != 0xFF:
            raise _broken("expected a JPEG marker")
        marker = frame[at + 1]
        if marker == 0xD9:
            break
        segment = _segment(frame, at)
        at += len(segment)
        if marker in _SOF:
            size = _U16(segment, 5)[0], _U16(segment, 7)[0], segment[9]
            lossless = marker == _JPEG_LS
            _expect(len(segment) == 10 + 3 * segment[9])
            out.append(segment)
        elif marker == _SOS:
            _expect(len(segment) >= 10 and len(segment) == 8 + 2 * segment[4] <= 16)
            end = (_AFTER_LS_SCAN if lossless else _AFTER_SCAN).search(frame, at)
            if end is None:
                raise _broken("no JPEG end of image")
            _refuse_text_at_the_end(frame[at : end.start()])
            out += [segment, frame[at : end.start()]]
            at = end.end() - 2
        else:
            out.append(_kept_segment(marker, segment))
    if size is None:
        raise _broken("no JPEG frame header")
    return Frame(b"".join(out) + b"\xff\xd9", *size)


def _segment(frame: bytes, at: int) -> bytes:
    if len(frame) - at < 4:
        raise _broken("a segment is cut off")
    segment = frame[at : at + 2 + _U16(frame, at + 2)[0]]
    minimum = 10 if segment[1] in _SOF else 4
    if len(segment) < max(minimum, 2 + _U16(frame, at + 2)[0]):
        raise _broken("a segment is cut off")
    return segment


def _expect(fits: bool) -> None:
    if not fits:
        raise _broken("a segment longer or shorter than its content")


def _refuse_text_at_the_end(coded: bytes) -> None:
    """Refuse entropy-coded data that ends like text: a decoder stops before it and never tells."""
    tail = coded[-80:].rstrip(b"\0\t\r\n ")[-_TEXT_LENGTH:]
    if (
        len(tail) == _TEXT_LENGTH
        and len(set(tail)) >= _TEXT_VARIETY
        and all(0x20 <= byte < 0x7F for byte in tail)
    ):
        raise _broken("text behind the compressed image")


def _kept_segment(marker: int, segment: bytes) -> bytes:
    body = segment[4:]
    if marker in _CHECKS:
        _expect(_CHECKS[marker](body))
        return segment
    if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        return _JFIF
    if marker == 0xEE and body[:5] == b"Adobe" and len(body) == 12 and body[11] <= 2:
        return _ADOBE + body[11:]
    if marker == 0xE8 and body[:4] == b"mrfx" and len(body) == 5:
        return segment
    if marker == 0xFE or 0xE0 <= marker <= 0xEF:
        return b""
    raise _broken("a JPEG segment of unknown kind")


def _huffman_tables(body: bytes) -> bool:
    """Tell whether these are Huffman tables: lengths that make a code, each symbol once (T.81 B.2.4.2)."""
    while len(body) >= 17:
        kind, lengths = body[0], body[1:17]
        symbols = body[17 : 17 + sum(lengths)]
        room = sum(count << 16 - bits for bits, count in enumerate(lengths, 1))
        if kind & 0xEC or room > 1 << 16 or not len(set(symbols)) == len(symbols) == sum(lengths):
            return False
        if kind < 0x10 and any(symbol > 16 for symbol in symbols):
            return False
        body = body[17 + len(symbols) :]
    return not body


def _quantization_tables(body: bytes) -> bool:
    """Tell whether these are tables of 64 numbers of 8 or 16 bits (T.81 B.2.4.1)."""
    while body:
        size = 1 + (128 if body[0] >> 4 else 64)
        if body[0] & 0xEC or len(body) < size:
            return False
        body = body[size:]
    return True


_CHECKS: Final[Mapping[int, Callable[[bytes], bool]]] = MappingProxyType(
    {
        _DHT: _huffman_tables,
        _DQT: _quantization_tables,
        _DRI: lambda body: len(body) in {2, 3, 4},  # T.81 B.2.4.4; JPEG-LS allows longer ones (T.87 C.2.5)
        _LSE: lambda body: body[:1] == b"\1" and len(body) == 11,  # preset coding parameters (T.87 C.2.4.1.1)
    }
)


def clean_jpeg2000(frame: bytes) -> Frame:
    """Copy a JPEG 2000 codestream without the comments of its main header.

    A comment in a tile-part header would need the lengths in other markers rewritten: refused.
    """
    if frame[:4] != b"\xff\x4f\xff\x51" or len(frame) < 42:
        raise _broken("expected a JPEG 2000 codestream")
    out, at = [frame[:2]], 2
    while frame[at : at + 2] != b"\xff\x90":
        segment = _segment(frame, at)
        if segment[0] != 0xFF or (segment[1] not in _J2K_MAIN and segment[1] != _J2K_COMMENT):
            raise _broken("a JPEG 2000 segment of unknown kind")
        at += len(segment)
        if segment[1] != _J2K_COMMENT:
            out.append(segment)
    size = out[1]
    if len(size) < 41:
        raise _broken("the JPEG 2000 size segment is cut off")
    _expect(len(size) == 40 + 3 * _U16(size, 38)[0])
    width, height, left, top = struct.unpack_from(">4L", size, 6)
    out += _tile_parts(frame, at)
    return Frame(b"".join(out) + b"\xff\xd9", height - top, width - left, _U16(size, 38)[0])


def _tile_parts(frame: bytes, at: int) -> list[bytes]:
    """Check every tile-part and return them; a last one of open length gets its length (T.800 A.4.2)."""
    found: list[bytes] = []
    while frame[at : at + 2] == b"\xff\x90":
        length = _U32(frame, at + 6)[0] if len(frame) >= at + 12 else 0
        end = at + length if length else frame.find(b"\xff\xd9", at)
        if not at + 14 <= end <= len(frame):
            raise _broken("a JPEG 2000 tile-part is cut off")
        _expect(_U16(frame, at + 2)[0] == 10)
        header = at + 12
        while frame[header : header + 2] != b"\xff\x93":
            segment = _segment(frame, header)
            if segment[0] != 0xFF or segment[1] == _J2K_COMMENT or header + len(segment) > end:
                raise _broken("a JPEG 2000 tile-part header with a comment or out of bounds")
            header += len(segment)
        _refuse_text_at_the_end(frame[header + 2 : end])
        found.append(frame[at : at + 6] + struct.pack(">L", end - at) + frame[at + 10 : end])
        at = end
    if frame[at : at + 2] != b"\xff\xd9":
        raise _broken("no JPEG 2000 end of codestream")
    return found
