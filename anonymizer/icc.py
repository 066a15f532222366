"""ICC profiles (ICC.1:2022, ISO 15076-1): the numbers that colours need stay, their texts go."""

from __future__ import annotations

import struct
from typing import Final

_HEADER_BYTES, _ENTRY_BYTES = 128, 12
_SIGNATURE_AT, _SIGNATURE = 36, b"acsp"
_MAX_TAGS: Final = 256
_NUMERIC: Final = frozenset({
    b"XYZ ", b"chrm", b"clro", b"curf", b"curv", b"mAB ", b"mBA ", b"meas", b"mft1", b"mft2", b"mpet",
    b"para", b"sf32", b"sig ", b"uf32", b"ui08", b"ui16", b"ui32", b"ui64", b"view",
})  # fmt: skip
"""Type signatures whose content is numbers; texts, names and dates are none of them."""
_MAKER_AND_MODEL: Final = slice(48, 56)
_CREATOR_AND_ID: Final = slice(80, 128)
_DATE: Final = slice(24, 36)


def cleaned(profile: bytes) -> bytes | None:
    """Return a profile whose texts, dates and makers are zeros; None when it is no profile.

    Parameters
    ----------
    profile : bytes
        The value of (0028,2000), padding included.
    """
    if len(profile) < _HEADER_BYTES + 4 or profile[_SIGNATURE_AT : _SIGNATURE_AT + 4] != _SIGNATURE:
        return None
    size, count = struct.unpack_from(">L", profile)[0], struct.unpack_from(">L", profile, _HEADER_BYTES)[0]
    table_end = _HEADER_BYTES + 4 + count * _ENTRY_BYTES
    if count > _MAX_TAGS or not table_end <= size <= len(profile):
        return None
    out = bytearray(size)
    out[:table_end] = profile[:table_end]
    for part in (_DATE, _MAKER_AND_MODEL, _CREATOR_AND_ID):
        out[part] = bytes(len(out[part]))
    for number in range(count):
        at, length = struct.unpack_from(">4xLL", profile, _HEADER_BYTES + 4 + number * _ENTRY_BYTES)
        if at < table_end or length < 8 or at + length > size:
            return None
        kept = length if profile[at : at + 4] in _NUMERIC else 4
        out[at : at + kept] = profile[at : at + kept]
    return bytes(out)
