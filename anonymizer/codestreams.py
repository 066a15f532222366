"""Compressed frames: what they say of themselves, and a copy without comments and application segments.

JPEG (ITU-T T.81), JPEG-LS (T.87), JPEG 2000 and HTJ2K (T.800, T.814), RLE (PS3.5 annex G). Comments and
application segments are free text that no DICOM attribute rule reaches.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from anonymizer.errors import StopError

_U16: Final = struct.Struct(">H").unpack_from
_U32: Final = struct.Struct(">L").unpack_from
_SOF: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_TABLES: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xF8})  # DHT, DAC, DQT, DRI, LSE
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

    Kept of those: JFIF (without thumbnail), Adobe's and HP's colour transform marks, which say how to decode.
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
            lossless = marker == 0xF7
            out.append(segment)
        elif marker == 0xDA:
            end = (_AFTER_LS_SCAN if lossless else _AFTER_SCAN).search(frame, at)
            if end is None:
                raise _broken("no JPEG end of image")
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


def _kept_segment(marker: int, segment: bytes) -> bytes:
    if marker in _TABLES:
        return segment
    body = segment[4:]
    if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        return b"\xff\xe0\x00\x10" + body[:12] + b"\0\0"  # thumbnail of no size
    if (marker == 0xEE and body[:5] == b"Adobe" and len(body) == 12) or (
        marker == 0xE8 and body[:4] == b"mrfx" and len(body) == 5
    ):
        return segment
    if marker == 0xFE or 0xE0 <= marker <= 0xEF:
        return b""
    raise _broken("a JPEG segment of unknown kind")


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
    width, height, left, top = struct.unpack_from(">4L", size, 6)
    start = at
    at = _tile_parts(frame, at)
    out.append(frame[start:at] + b"\xff\xd9")
    return Frame(b"".join(out), height - top, width - left, _U16(size, 38)[0])


def _tile_parts(frame: bytes, at: int) -> int:
    """Check every tile-part header; return where the end of the codestream is."""
    while frame[at : at + 2] == b"\xff\x90":
        length = _U32(frame, at + 6)[0] if len(frame) >= at + 12 else 0
        end = at + length if length else frame.rfind(b"\xff\xd9")
        if not at + 14 <= end <= len(frame):
            raise _broken("a JPEG 2000 tile-part is cut off")
        header = at + 12
        while frame[header : header + 2] != b"\xff\x93":
            segment = _segment(frame, header)
            if segment[0] != 0xFF or segment[1] == _J2K_COMMENT or header + len(segment) > end:
                raise _broken("a JPEG 2000 tile-part header with a comment or out of bounds")
            header += len(segment)
        at = end
    if frame[at : at + 2] != b"\xff\xd9":
        raise _broken("no JPEG 2000 end of codestream")
    return at


def check_rle(frame: bytes, segments: int) -> bytes:
    """Check the RLE header (PS3.5 G.5): number of segments, ascending offsets within the frame."""
    if len(frame) < 64:
        raise _broken("the RLE header is cut off")
    count, *offsets = struct.unpack_from("<16L", frame)
    used = offsets[:count]
    if count != segments or any(offsets[count:]) or used[:1] != [64] or used != sorted(set(used)):
        raise _broken("the RLE header does not fit the image's description")
    if used[-1] >= len(frame):
        raise _broken("an RLE segment is cut off")
    return frame
