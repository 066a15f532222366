"""Command sets of the composite services, read and written by hand (PS3.7 sections 6.3, 9.3.1 and annex E).

They are always implicit VR little endian and tiny; a general data set decoder costs more than the reception.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicom_node.errors import DICOMNodeError

C_STORE_RQ: Final = 0x0001
C_STORE_RSP: Final = 0x8001
C_GET_RQ: Final = 0x0010
C_FIND_RQ: Final = 0x0020
C_MOVE_RQ: Final = 0x0021
C_CANCEL_RQ: Final = 0x0FFF
NO_DATA_SET: Final = 0x0101
_DATA_SET: Final = 0x0001

_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO: Final = 0x0120
_PRIORITY: Final = 0x0700
_COMMAND_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_ERROR_COMMENT: Final = 0x0902
_MOVE_DESTINATION: Final = 0x0600
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000
_MOVE_ORIGINATOR: Final = 0x1030
_MOVE_ORIGINATOR_MESSAGE_ID: Final = 0x1031
_REMAINING: Final = 0x1020
_COMPLETED: Final = 0x1021
_FAILED: Final = 0x1022
_WARNING: Final = 0x1023


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class CommandError(DICOMNodeError):
    """The bytes are no command set."""


@dataclass(frozen=True)
class Command:
    """The fields of a command set that the storage SCP needs; UIDs are bytes as received."""

    field: int
    message_id: int
    has_data_set: bool
    affected_sop_class_uid: bytes
    affected_sop_instance_uid: bytes


@dataclass(frozen=True)
class Response:
    """The fields of a response to a query or retrieval; counts are None where it does not give them."""

    field: int
    message_id: int
    status: int
    remaining: int | None
    completed: int | None
    failed: int | None
    warnings: int | None


def decode_response(encoded: bytes) -> Response:
    """Read the command set of a response.

    Raises
    ------
    CommandError
        When the bytes are not a command set with a status.
    """
    values = _elements(encoded)
    remaining, completed, failed, warnings = (
        _number(values, element) if values.get(element) else None
        for element in (_REMAINING, _COMPLETED, _FAILED, _WARNING)
    )
    return Response(
        field=_number(values, _COMMAND_FIELD),
        message_id=_number(values, _MESSAGE_ID_BEING_RESPONDED_TO),
        status=_number(values, _STATUS),
        remaining=remaining,
        completed=completed,
        failed=failed,
        warnings=warnings,
    )


def decode(encoded: bytes) -> Command:
    """Read a command set.

    Raises
    ------
    CommandError
        When the bytes are not a command set with a command field.
    """
    values = _elements(encoded)
    return Command(
        field=_number(values, _COMMAND_FIELD),
        message_id=_number(values, _MESSAGE_ID) if _MESSAGE_ID in values else 0,
        has_data_set=_number(values, _COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
        affected_sop_class_uid=values.get(_AFFECTED_SOP_CLASS_UID, b""),
        affected_sop_instance_uid=values.get(_AFFECTED_SOP_INSTANCE_UID, b""),
    )


def _elements(encoded: bytes) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    position = 0
    while position + 8 <= len(encoded):
        group, element, length = struct.unpack_from("<HHI", encoded, position)
        position += 8
        if group != 0 or position + length > len(encoded):
            raise CommandError("an element that is none of a command set")
        values[element] = encoded[position : position + length]
        position += length
    if position != len(encoded):
        raise CommandError("bytes behind the last element of a command set")
    return values


def _number(values: dict[int, bytes], element: int) -> int:
    raw = values.get(element, b"")
    if len(raw) != 2:
        raise CommandError(f"(0000,{element:04X}) is no 16-bit number")
    return int.from_bytes(raw, "little")


def _element(element: int, value: bytes, pad: bytes = b"\0") -> bytes:
    value += pad * (len(value) % 2)
    return struct.pack("<HHI", 0, element, len(value)) + value


def encode_store_response(request: Command, status: int, comment: str = "") -> bytes:
    """Return the command set of a C-STORE response; the UIDs go back as they came."""
    body = [
        _element(_AFFECTED_SOP_CLASS_UID, request.affected_sop_class_uid),
        _element(_COMMAND_FIELD, struct.pack("<H", C_STORE_RSP)),
        _element(_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", request.message_id)),
        _element(_COMMAND_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        _element(_STATUS, struct.pack("<H", status)),
    ]
    if comment:
        body.append(_element(_ERROR_COMMENT, comment.encode("ascii", "replace")[:64], b" "))
    body.append(_element(_AFFECTED_SOP_INSTANCE_UID, request.affected_sop_instance_uid))
    return _whole(body)


def encode_store_request(
    sop_class_uid: str,
    sop_instance_uid: str,
    message_id: int,
    priority: int,
    originator: tuple[str, int] | None = None,
) -> bytes:
    """Return the command set of a C-STORE request; ``originator`` is AE title and message id of a C-MOVE."""
    body = [
        _element(_AFFECTED_SOP_CLASS_UID, sop_class_uid.encode("ascii")),
        _element(_COMMAND_FIELD, struct.pack("<H", C_STORE_RQ)),
        _element(_MESSAGE_ID, struct.pack("<H", message_id)),
        _element(_PRIORITY, struct.pack("<H", priority)),
        _element(_COMMAND_DATA_SET_TYPE, struct.pack("<H", _DATA_SET)),
        _element(_AFFECTED_SOP_INSTANCE_UID, sop_instance_uid.encode("ascii")),
    ]
    if originator is not None:
        body.append(_element(_MOVE_ORIGINATOR, originator[0].encode("ascii", "replace")[:16], b" "))
        body.append(_element(_MOVE_ORIGINATOR_MESSAGE_ID, struct.pack("<H", originator[1])))
    return _whole(body)


def encode_request(
    field: int, sop_class_uid: str, message_id: int, priority: int, move_destination: str = ""
) -> bytes:
    """Return the command set of a C-FIND, C-GET or C-MOVE request, whose identifier follows."""
    body = [
        _element(_AFFECTED_SOP_CLASS_UID, sop_class_uid.encode("ascii")),
        _element(_COMMAND_FIELD, struct.pack("<H", field)),
        _element(_MESSAGE_ID, struct.pack("<H", message_id)),
    ]
    if move_destination:
        body.append(_element(_MOVE_DESTINATION, move_destination.encode("ascii"), b" "))
    body.append(_element(_PRIORITY, struct.pack("<H", priority)))
    body.append(_element(_COMMAND_DATA_SET_TYPE, struct.pack("<H", _DATA_SET)))
    return _whole(body)


def encode_cancel(message_id: int) -> bytes:
    """Return the command set of a C-CANCEL request (PS3.7 9.3.2.3)."""
    return _whole(
        (
            _element(_COMMAND_FIELD, struct.pack("<H", C_CANCEL_RQ)),
            _element(_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", message_id)),
            _element(_COMMAND_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        )
    )


def _whole(body: Iterable[bytes]) -> bytes:
    joined = b"".join(body)
    return _element(0x0000, struct.pack("<I", len(joined))) + joined


def encode_response(
    field: int,
    sop_class_uid: str,
    message_id: int,
    status: int,
    *,
    has_data_set: bool = False,
    numbers: Mapping[int, int] = MappingProxyType({}),
) -> bytes:
    """Return the command set of a C-FIND, C-GET or C-MOVE response.

    Parameters
    ----------
    field : int
        Command Field.
    sop_class_uid : str
    message_id : int
        Of the request.
    status : int
    has_data_set : bool
        Whether an identifier follows.
    numbers : mapping
        Further 16-bit values by element number, in their order.
    """
    kind = _DATA_SET if has_data_set else NO_DATA_SET
    return _whole(
        (
            _element(_AFFECTED_SOP_CLASS_UID, sop_class_uid.encode("ascii")),
            _element(_COMMAND_FIELD, struct.pack("<H", field)),
            _element(_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", message_id)),
            _element(_COMMAND_DATA_SET_TYPE, struct.pack("<H", kind)),
            _element(_STATUS, struct.pack("<H", status)),
            *(_element(element, struct.pack("<H", number)) for element, number in numbers.items()),
        )
    )


def p_data(context_id: int, command_set: bytes) -> bytes:
    """Return one P-DATA-TF PDU that carries a whole command set (PS3.8 9.3.5)."""
    item = struct.pack(">IBB", len(command_set) + 2, context_id, 0x03) + command_set
    return struct.pack(">BBI", 0x04, 0, len(item)) + item
