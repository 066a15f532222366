"""RLE frames (PS3.5 annex G): exactly the runs that make the image, and nothing behind them."""

from __future__ import annotations

import struct
from typing import Final

from anonymizer.errors import StopError

_HEADER_BYTES: Final = 64
_NO_RUN: Final = 128


def _broken(what: str) -> StopError:
    return StopError("pixel_data_mismatch", f"compressed frame: {what}")


def clean_rle(frame: bytes, segments: int, segment_bytes: int) -> bytes:
    """Copy an RLE frame without what its segments do not need.

    Parameters
    ----------
    frame : bytes
        The frame, header first.
    segments : int
        How many byte planes the image's description asks for.
    segment_bytes : int
        Length of each plane, decoded.

    Raises
    ------
    StopError
        If the header does not fit, or a segment decodes to another length.
    """
    if len(frame) < _HEADER_BYTES:
        raise _broken("the RLE header is cut off")
    count, *offsets = struct.unpack_from("<16L", frame)
    used = offsets[:count]
    if count != segments or any(offsets[count:]) or used[:1] != [64] or used != sorted(set(used)):
        raise _broken("the RLE header does not fit the image's description")
    if used[-1] >= len(frame):
        raise _broken("an RLE segment is cut off")
    kept, starts, at = [], [], _HEADER_BYTES
    for start, end in zip(used, [*used[1:], len(frame)], strict=True):
        segment = frame[start : _runs_end(frame, start, end, segment_bytes)]
        kept.append(segment + b"\0" * (len(segment) % 2))
        starts.append(at)
        at += len(kept[-1])
    return struct.pack("<16L", count, *starts, *offsets[count:]) + b"".join(kept)


def _runs_end(frame: bytes, at: int, end: int, wanted: int) -> int:
    """Return where the runs that decode to ``wanted`` bytes end (PS3.5 G.3.2)."""
    decoded = 0
    while decoded < wanted and at < end:
        control = frame[at]
        if control < _NO_RUN:
            decoded += control + 1
            at += control + 2
        elif control > _NO_RUN:
            decoded += 257 - control
            at += 2
        else:
            at += 1
    if decoded != wanted or at > end:
        raise _broken("an RLE segment decodes to another length than the image's description gives")
    return at
