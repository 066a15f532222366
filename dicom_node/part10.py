"""The file meta information that we write and read (PS3.10 section 7.1).

Facts of the reception travel in the file itself, as private information (0002,0102), so that an inbox entry
is one file that one rename publishes, and a lost database can be rebuilt from the stored files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dicom_node.errors import HeaderError

IMPLEMENTATION_CLASS_UID: Final = "2.25.227466834180474012893402823187905173217"
IMPLEMENTATION_VERSION_NAME: Final = "CLOISTER_1"
PRIVATE_CREATOR_UID: Final = "2.25.121833287104839517254306187234907625181"

_PREFIX: Final = bytes(128) + b"DICM"
LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
MAX_META_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class FileMeta:
    """File meta information as read: raw values by element number, and where the data set starts."""

    values: dict[int, bytes]
    data_offset: int

    def uid(self, element: int) -> str:
        """Return a UID, or an empty string where it is missing or no ASCII text."""
        raw = self.values.get(element, b"").rstrip(b"\0 ")
        return raw.decode("ascii") if raw.isascii() else ""


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in {b"SH", b"AE"} else b"\0"
    if vr in LONG_VRS:
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def encode(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    called_ae_title: str,
    private: bytes,
) -> bytes:
    """Return preamble, prefix and file meta information; ``private`` ends up as the last bytes."""
    body = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", sop_class_uid.encode("ascii")),
            _element(0x0003, b"UI", sop_instance_uid.encode("ascii")),
            _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii")),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
            _element(0x0016, b"AE", calling_ae_title.encode("ascii", "replace")[:16]),
            _element(0x0018, b"AE", called_ae_title.encode("ascii", "replace")[:16]),
            _element(0x0100, b"UI", PRIVATE_CREATOR_UID.encode("ascii")),
            _element(0x0102, b"OB", private),
        )
    )
    return _PREFIX + _element(0x0000, b"UL", struct.pack("<I", len(body))) + body


def encode_plain(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and file meta information that say nothing of who sent the instance."""
    body = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", sop_class_uid.encode("ascii")),
            _element(0x0003, b"UI", sop_instance_uid.encode("ascii")),
            _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii")),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        )
    )
    return _PREFIX + _element(0x0000, b"UL", struct.pack("<I", len(body))) + body


def decode(head: bytes) -> FileMeta:
    """Read the file meta information from the first bytes of a Part 10 file.

    The group length is not trusted: the group ends where the next element is of another group.

    Raises
    ------
    HeaderError
        ``not_part10`` without the prefix, ``bad_file_meta`` when an element leaves the bytes given.
    """
    if head[128:132] != b"DICM":
        raise HeaderError("not_part10", "no DICM prefix; expected a Part 10 file (PS3.10 7.1)")
    values: dict[int, bytes] = {}
    position = 132
    while position + 8 <= len(head):
        group, number, vr, short_length = struct.unpack_from("<HH2sH", head, position)
        if group != 2:
            break
        position += 8
        length = short_length
        if vr in LONG_VRS:
            if position + 4 > len(head):
                raise HeaderError("bad_file_meta", "file meta information ends inside an element")
            (length,) = struct.unpack_from("<I", head, position)
            position += 4
        if position + length > len(head):
            raise HeaderError("bad_file_meta", "a file meta element is longer than the file meta information")
        values[number] = head[position : position + length]
        position += length
    return FileMeta(values, position)
