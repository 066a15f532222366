"""The DICOM file format (PS3.10 section 7): read with suspicion, written anew."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anonymizer import elements, pixels
from anonymizer.elements import Element, Item, Syntax, syntax_of
from anonymizer.errors import DecodingError, StopError

if TYPE_CHECKING:
    from anonymizer.elements import Bytes

IMPLEMENTATION_CLASS_UID: Final = "2.25.257264406471364830126409213904551289474"
IMPLEMENTATION_VERSION_NAME: Final = "CLOISTER"
_PREFIX_END: Final = 132
_SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_EXPLICIT: Final = Syntax(implicit=False, little=True)
_READABLE: Final = pixels.NATIVE | pixels.JPEG | pixels.JPEG2000 | {pixels.RLE}


@dataclass(frozen=True)
class File:
    """A file as read; preamble and file meta information end here."""

    item: Item
    sop_class_uid: str
    transfer_syntax_uid: str
    syntax: Syntax


def read(content: Bytes, max_inflated_bytes: int = elements.MAX_INFLATED_BYTES) -> File:
    """Read a file.

    Parameters
    ----------
    content : bytes or memoryview
        The file.
    max_inflated_bytes : int
        Most bytes of a data set that was deflated.

    Raises
    ------
    DecodingError
        Code ``not_dicom``, ``truncated``, ``malformed`` or ``inflated_too_large``.
    StopError
        Code ``transfer_syntax_not_judged``.
    """
    view = memoryview(content)
    if bytes(view[128:_PREFIX_END]) != b"DICM":
        raise DecodingError("not_dicom", "expected the DICM prefix of PS3.10 7.1")
    end = _meta_end(view)
    meta = elements.read(view[_PREFIX_END:end], _EXPLICIT)
    transfer_syntax_uid = pixels.text_of(meta, _TRANSFER_SYNTAX)
    if transfer_syntax_uid not in _READABLE:
        raise StopError("transfer_syntax_not_judged", "TransferSyntaxUID (0002,0010): expected a known one")
    body: Bytes = view[end:]
    if transfer_syntax_uid == elements.DEFLATED:
        body = elements.inflate(body, max_inflated_bytes)
    syntax = syntax_of(transfer_syntax_uid)
    return File(elements.read(body, syntax), pixels.text_of(meta, _SOP_CLASS), transfer_syntax_uid, syntax)


def _meta_end(view: memoryview) -> int:
    """Return where group 0002 ends; its group length is often wrong and is not believed."""
    at, size = _PREFIX_END, len(view)
    while at + 8 <= size and bytes(view[at : at + 2]) == b"\x02\0":
        long_form = bytes(view[at + 4 : at + 6]) in elements.LONG_VRS
        if long_form:
            if at + 12 > size:
                break
            at += 12 + struct.unpack_from("<L", view, at + 8)[0]
        else:
            at += 8 + struct.unpack_from("<H", view, at + 6)[0]
    return min(at, size)


def _ui(tag: int, uid: str) -> Element:
    return Element(tag, "UI", uid.encode("ascii"))


def write(item: Item, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> list[Bytes]:
    """Encode a file with a preamble of zeros and file meta information of our own (PS3.10 7.1)."""
    meta = elements.write([
        Element(0x00020001, "OB", b"\0\1"),
        _ui(_SOP_CLASS, sop_class_uid),
        _ui(_SOP_INSTANCE, sop_instance_uid),
        _ui(_TRANSFER_SYNTAX, transfer_syntax_uid),
        _ui(0x00020012, IMPLEMENTATION_CLASS_UID),
        Element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
    ], _EXPLICIT)  # fmt: skip
    length = elements.write([Element(0x00020000, "UL", struct.pack("<L", sum(map(len, meta))))], _EXPLICIT)
    body = elements.write((item[tag] for tag in sorted(item)), syntax_of(transfer_syntax_uid))
    if transfer_syntax_uid == elements.DEFLATED:
        body = [elements.deflate(b"".join(body))]
    return [b"\0" * 128 + b"DICM", *length, *meta, *body]
