"""What a peer sends on an association that we opened, read while it comes.

pynetdicom would hold every message whole, trust a PDU's length of up to 4 GiB, queue answers without end and
write instances to the default temporary folder. Here answers wait in a bounded queue, so that a peer which
answers faster than we read has to wait, and the instances of a C-GET go from the socket to whoever takes
them, piece by piece.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dicom_node import commands
from dicom_node.errors import DICOMNodeError
from dicom_node.inbox import Announcement
from dicom_node.receiving import (
    CANNOT_UNDERSTAND,
    MAX_COMMAND_BYTES,
    MAX_CONTROL_PDU_BYTES,
    MAX_OTHER_DATA_SET_BYTES,
    ProtocolViolationError,
)
from dicom_node.waking import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

    from dicom_node.receiving import Reception

NOT_SUPPORTED: Final = 0x0122
ESTABLISHED: Final = "Sta6"
_P_DATA_TF: Final = 0x04
_TRANSPORT_CLOSED: Final = "Evt17"
_INVALID_PDU: Final = "Evt19"
_BUFFER_BYTES: Final = 256 << 10
_PDUS_A_TURN: Final = 256
_NEXT_PDU_MS: Final = 5


@dataclass(frozen=True)
class Message:
    """One response, with its data set as it came."""

    response: commands.Response
    explicit: bool
    data: bytes


class ResponseReader:
    """Reads what the peer sends, in the thread of the association's upper layer.

    Parameters
    ----------
    association : Association
    messages : queue.Queue
        Takes the responses, and None when no more can come.
    begin : callable, optional
        Takes the instances. Without it none may come.
    timeout_s : float
        How long the peer may stall inside a message.
    """

    def __init__(
        self,
        association: Association,
        messages: queue.Queue[Message | None],
        begin: Callable[[Announcement], Reception] | None,
        timeout_s: float,
    ) -> None:
        self.closing = False
        self._association = association
        self._dul = association.dul
        self._messages = messages
        self._begin = begin
        self._timeout_s = timeout_s
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._command = bytearray()
        self._context_id: int | None = None  # of the message whose data set is awaited
        self._data = bytearray()
        self._response: commands.Response | None = None
        self._request: commands.Command | None = None
        self._reception: Reception | None = None

    def read(self) -> None:
        """Read PDUs while they come; those of the upper layer itself go back to the library."""
        for _ in range(_PDUS_A_TURN):
            try:
                ended = self._read_pdu()
            except ConnectionLostError:
                self._end(_TRANSPORT_CLOSED)
                return
            except DICOMNodeError:
                self._end(_INVALID_PDU)
                return
            if ended or self._dul.to_provider_queue.queue or not self._more():
                return

    def _more(self) -> bool:
        connection = self._dul.socket.socket
        if connection is None or self._state != ESTABLISHED:
            return False
        pending = getattr(connection, "pending", None)
        if pending is not None and pending():
            return True
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        return bool(poller.poll(_NEXT_PDU_MS))

    @property
    def _state(self) -> str:
        return str(self._dul.state_machine.current_state)

    def _read_pdu(self) -> bool:
        """Read one PDU; say whether it was none of data."""
        head = bytearray(6)
        self._fill(memoryview(head))
        kind, _, length = struct.unpack(">BBI", head)
        if kind == _P_DATA_TF and self._state == ESTABLISHED:
            while length:
                length -= self._take_item(length)
            return False
        if length > MAX_CONTROL_PDU_BYTES:
            raise ProtocolViolationError("a PDU longer than any of its kind")
        body = bytearray(length)
        self._fill(memoryview(body))
        if self.closing:  # whatever it is: the connection ends
            raise ConnectionLostError("the association is given up")
        try:
            pdu, event = self._dul._decode_pdu(head + body)  # noqa: SLF001 -- as the library does next itself
        except Exception as error:  # bytes from the wire
            raise ProtocolViolationError("a PDU that cannot be read") from error
        self._discard()
        self._dul.event_queue.put(event)
        self._dul._recv_pdu.put(pdu)  # noqa: SLF001
        if self._state == ESTABLISHED:  # a release or an abort: nobody answers any more
            self._deliver(None)
        return True

    def _take_item(self, room: int) -> int:
        """Read one presentation data value item (PS3.8 9.3.5.1); return its length."""
        if room < 6:
            raise ProtocolViolationError("a P-DATA-TF PDU too short for an item")
        self._fill(self._buffer[:6])
        length, context_id, control = struct.unpack_from(">IBB", self._buffer)
        size = length - 2
        if size < 0 or 4 + length > room or context_id not in self._association._accepted_cx:  # noqa: SLF001
            raise ProtocolViolationError("an item that does not fit its PDU, or no context")
        if control & 1:
            self._take_command(context_id, size, last=bool(control & 2))
        else:
            self._take_data(context_id, size, last=bool(control & 2))
        return 4 + int(length)

    def _take_command(self, context_id: int, size: int, *, last: bool) -> None:
        if self._context_id is not None or len(self._command) + size > MAX_COMMAND_BYTES:
            raise ProtocolViolationError("a command out of turn, or longer than any")
        self._fill(self._buffer[:size])
        self._command += self._buffer[:size]
        if not last:
            return
        encoded = bytes(self._command)
        self._command.clear()
        command = commands.decode(encoded)
        if command.field == commands.C_STORE_RQ:
            self._begin_store(context_id, command)
            return
        self._response = commands.decode_response(encoded)
        if command.has_data_set:
            self._context_id = context_id
        else:
            self._finish_response(context_id)

    def _begin_store(self, context_id: int, command: commands.Command) -> None:
        if self._begin is None:
            raise ProtocolViolationError("an instance where none was asked for")
        context = self._association._accepted_cx[context_id]  # noqa: SLF001
        if not command.has_data_set:
            self._answer(context_id, command, CANNOT_UNDERSTAND, "no data set")
            return
        self._context_id, self._request = context_id, command
        if context.as_scp:
            self._reception = self._begin(
                Announcement(
                    sop_class_uid=_uid_text(command.affected_sop_class_uid),
                    sop_instance_uid=_uid_text(command.affected_sop_instance_uid),
                    transfer_syntax_uid=str(context.transfer_syntax[0]),
                )
            )

    def _take_data(self, context_id: int, size: int, *, last: bool) -> None:
        if self._context_id != context_id:
            raise ProtocolViolationError("a data set without its command")
        if self._response is not None and len(self._data) + size > MAX_OTHER_DATA_SET_BYTES:
            raise ProtocolViolationError("an answer longer than any")
        while size:
            part = self._buffer[: min(size, _BUFFER_BYTES)]
            self._fill(part)
            size -= len(part)
            if self._response is not None:
                self._data += part
            elif self._reception is not None:
                self._reception.write(part)
        if last and self._response is not None:
            self._finish_response(context_id)
        elif last:
            self._finish_store(context_id)

    def _finish_response(self, context_id: int) -> None:
        response, data = self._response, bytes(self._data)
        self._response, self._context_id = None, None
        self._data.clear()
        syntax = self._association._accepted_cx[context_id].transfer_syntax[0]  # noqa: SLF001
        if response is not None:
            self._deliver(Message(response, not syntax.is_implicit_VR, data))

    def _finish_store(self, context_id: int) -> None:
        request, reception = self._request, self._reception
        self._request = self._reception = self._context_id = None
        status, comment = (NOT_SUPPORTED, "") if reception is None else reception.finish()
        if request is not None:
            self._answer(context_id, request, status, comment)

    def _answer(self, context_id: int, request: commands.Command, status: int, comment: str) -> None:
        response = commands.encode_store_response(request, status, comment)
        self._dul.socket.send(commands.p_data(context_id, response))

    def _deliver(self, message: Message | None) -> None:
        """Hand a message on; while nobody takes it the peer waits, unless we gave it up."""
        while not self.closing:
            try:
                self._messages.put(message, timeout=0.1)
            except queue.Full:
                continue
            return

    def _fill(self, view: memoryview) -> None:
        connection = self._dul.socket.socket
        deadline = time.monotonic() + self._timeout_s
        done = 0
        try:
            while done < len(view):
                count = 0 if connection is None else connection.recv_into(view[done:])
                if not count:
                    raise ConnectionLostError("the connection ended")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                done += count
                if time.monotonic() > deadline:
                    raise ConnectionLostError("the peer stalls inside a message")
        except OSError as error:
            raise ConnectionLostError("the connection failed") from error

    def _end(self, event: str) -> None:
        self._discard()
        self._dul.event_queue.put(event)
        self._deliver(None)

    def _discard(self) -> None:
        reception, self._reception, self._request = self._reception, None, None
        self._context_id, self._response = None, None
        self._command.clear()
        self._data.clear()
        if reception is not None:
            reception.discard()


def _uid_text(raw: bytes) -> str:
    return raw.rstrip(b"\0 ").decode("ascii", "replace")
