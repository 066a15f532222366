"""What of an A-ASSOCIATE-RQ is read here (PS3.8 9.3.2, PS3.7 annex D.3.3).

Items of unknown types are to be ignored (PS3.8 9.3.1), which pynetdicom does not do. What is known and not
supported is ignored with them, since leaving it out of the answer says so: with no window for asynchronous
operations there is one operation at a time, with no answer on extended negotiation nothing was extended,
and with none on the user's identity nobody checked it. So a password in there is never decoded.
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

A_ASSOCIATE_RQ: Final = 0x01
_FIXED_BYTES: Final = 68  # version, AE titles, reserved
_WHOLE: Final = 0
_CONTEXT: Final = 0x20
_USER_INFORMATION: Final = 0x50
_READ: Final[Mapping[int, frozenset[int]]] = MappingProxyType(
    {
        _WHOLE: frozenset({0x10, _CONTEXT, _USER_INFORMATION}),
        _CONTEXT: frozenset({0x30, 0x40}),  # abstract syntax, transfer syntax
        _USER_INFORMATION: frozenset({0x51, 0x52, 0x54}),  # length of PDUs, implementation class, roles
    }
)
_BEFORE_SUB_ITEMS: Final = MappingProxyType({_CONTEXT: 4, _USER_INFORMATION: 0})


class BrokenRequestError(DICOMNodeError):
    """An A-ASSOCIATE-RQ whose items do not fill it, or a context that proposes nothing."""


def read_part(body: bytes) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU, less its head of six bytes, without the items that are not read.

    Raises
    ------
    BrokenRequestError
    """
    if len(body) < _FIXED_BYTES:
        raise BrokenRequestError("an A-ASSOCIATE-RQ too short for its AE titles")
    return body[:_FIXED_BYTES] + b"".join(_kept(body[_FIXED_BYTES:], _WHOLE))


def _kept(items: bytes, within: int) -> Iterator[bytes]:
    for kind, value in _split(items):
        if kind not in _READ[within]:
            continue
        ahead = _BEFORE_SUB_ITEMS.get(kind, len(value))
        kept = value[:ahead] + b"".join(_kept(value[ahead:], kind))
        if kind == _CONTEXT:
            _check(kept[ahead:])
        yield struct.pack(">BBH", kind, 0, len(kept)) + kept


def _check(sub_items: bytes) -> None:
    """Expect an abstract syntax and transfer syntaxes (PS3.8 table 9-13)."""
    syntaxes = list(_split(sub_items))
    if {kind for kind, _ in syntaxes} != _READ[_CONTEXT] or not all(value for _, value in syntaxes):
        raise BrokenRequestError("a presentation context without its abstract or transfer syntax")


def _split(items: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(items):
        if at + 4 > len(items):
            raise BrokenRequestError("an item of an A-ASSOCIATE-RQ without its length")
        kind, _, length = struct.unpack_from(">BBH", items, at)
        at += 4
        if at + length > len(items):
            raise BrokenRequestError("an item longer than what it is in")
        yield kind, items[at : at + length]
        at += length
