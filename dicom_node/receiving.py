"""The receiving path below the storage SCP: C-STORE fragments go from the socket straight to the inbox.

pynetdicom negotiates the association, runs the state machine and serves C-ECHO. Its way of a C-STORE request
would hold the whole data set in memory several times, read it in pieces of 4 KiB, trust a PDU's length of up
to 4 GiB, wait without end for a caller that stalls inside a PDU, and pass each message through two polling
threads. So P-DATA-TF PDUs of an established association are read here instead, in the upper layer's own
thread: nothing but one buffer per association is in memory, and the answer leaves as soon as the inbox
says that the instance is durable.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA

from dicom_node import commands
from dicom_node.association_request import A_ASSOCIATE_RQ, BrokenRequestError, read_part
from dicom_node.errors import DICOMNodeError
from dicom_node.waking import (
    TRANSPORT_CLOSED,
    Attention,
    ConnectionLostError,
    NotifyingQueue,
    WakingSocket,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from pynetdicom.association import Association

_ABORT: Final = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # invalid value of a PDU's parameter
_P_DATA_TF: Final = 0x04
_AWAITING_REQUEST: Final = "Sta2"
_ESTABLISHED: Final = "Sta6"
_SENDING: Final = frozenset({"Sta6", "Sta8"})
_INVALID_PDU: Final = "Evt19"
_ENDS: Final = frozenset({TRANSPORT_CLOSED, _INVALID_PDU})

MAX_CONTROL_PDU_BYTES: Final = 1 << 20
MAX_COMMAND_BYTES: Final = 1 << 16
MAX_OTHER_DATA_SET_BYTES: Final = 4 << 20
MAX_WAITING_MESSAGES: Final = 4
_BUFFER_BYTES: Final = 256 << 10
CANNOT_UNDERSTAND: Final = 0xC000


class ProtocolViolationError(DICOMNodeError):
    """The peer does not speak DICOM as the association says."""


class Reception(Protocol):
    """One instance on its way into the inbox."""

    def write(self, fragment: memoryview) -> None:
        """Take bytes of the data set. Never raises: a failure shows in the status."""

    def finish(self) -> tuple[int, str]:
        """Make the instance durable; return status and error comment."""

    def discard(self) -> None:
        """Forget the instance: its association ended before the data set did."""


class ReceivingDUL(DULServiceProvider):  # type: ignore[misc]
    """The upper layer of one association, with the way of C-STORE requests replaced."""

    def __init__(self, assoc: Association, begin: Callable[[Any, int, commands.Command], Reception]) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0
        self._begin = begin
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._command = bytearray()
        self._request: tuple[int, commands.Command] | None = None
        self._reception: Reception | None = None
        self._forwarded: int | None = None  # bytes of another message's data set so far
        self.wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._wake_open = True
        self._serving = False
        self._active_at = time.monotonic()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the association count as busy while it answers a request, however long its peer is silent."""
        self._serving = True
        try:
            yield
        finally:
            self._active_at = time.monotonic()
            self._serving = False

    def is_quiet(self, for_s: float) -> bool:
        """Whether nothing was under way for so long: no instance, no request."""
        at_work = self._serving or self._reception is not None
        return not at_work and time.monotonic() - self._active_at > for_s

    def take_over(self, plain: socket.socket) -> None:
        """Take the place of the upper layer that pynetdicom made for the association."""
        association, attention = self.assoc, Attention()
        association._reactor_checkpoint = attention  # noqa: SLF001
        self.to_user_queue = NotifyingQueue(attention)
        association.dimse.msg_queue = NotifyingQueue(attention)
        association.dul = self
        association.set_socket(WakingSocket(association, plain, self.wake_read, association.network_timeout))
        # The setters hand these to the timers of the upper layer, which is a new one now.
        association.acse_timeout = association.acse_timeout
        association.network_timeout = association.network_timeout

    def wake(self) -> None:
        """End the wait for the peer: the local user has something."""
        with self._wake_lock, contextlib.suppress(BlockingIOError):
            if self._wake_open:
                os.write(self._wake_write, b"\0")

    def send_pdu(self, primitive: Any) -> None:
        """Hand a primitive to the upper layer and wake it."""
        super().send_pdu(primitive)
        self.wake()

    def kill_dul(self) -> None:
        """End the thread."""
        super().kill_dul()
        self.wake()

    def stop_dul(self) -> bool:
        """End the thread when the state machine is idle."""
        if self.state_machine.current_state != "Sta1":
            return False
        self.kill_dul()
        self.join()
        return True

    def run_reactor(self) -> None:
        """Run until the association ends; an instance that did not come whole leaves nothing behind."""
        try:
            super().run_reactor()
        except InvalidEventError:  # two ends at once, such as an abort of ours and one of the peer's
            self.socket.close()
            self.assoc.dimse.msg_queue.put((None, None))
        except Exception:  # noqa: BLE001 -- edge of an association: a PDU whose values the library refuses
            self._give_up()
        finally:
            self._discard()
            with self._wake_lock:  # a number that is closed may already belong to another file
                self._wake_open = False
                os.close(self.wake_read)
                os.close(self._wake_write)

    def _give_up(self) -> None:
        """End the association with an A-ABORT of the provider (PS3.8 9.3.8), without the state machine."""
        with contextlib.suppress(OSError):
            self.socket.send(_ABORT)
        self.socket.close()
        self.assoc.is_aborted, self.assoc.is_established = True, False
        self.to_user_queue.put(None)
        self.assoc.dimse.msg_queue.put((None, None))

    def _process_recv_primitive(self) -> bool:
        """Take the next primitive of the local user; data for an association that is over is dropped."""
        waiting = self.to_provider_queue.queue
        while waiting and isinstance(waiting[0], P_DATA) and self.state_machine.current_state not in _SENDING:
            self.to_provider_queue.get()
        return bool(super()._process_recv_primitive())

    def _read_pdu_data(self) -> None:
        """Read one PDU, and all that follow it of the same instance, before anything else is looked at."""
        self._read_pdu()
        if self.state_machine.current_state == _AWAITING_REQUEST and not _ENDS.isdisjoint(
            self.event_queue.queue
        ):
            # The association's thread would wait for a request until its time is up, and hold a place.
            self.to_user_queue.put(None)
        while self._reception is not None and not self._is_called_away():
            self._read_pdu()
        self._active_at = time.monotonic()

    def _is_called_away(self) -> bool:
        return bool(self._kill_thread or self.event_queue.queue or self.to_provider_queue.queue)

    def _read_pdu(self) -> None:
        """Read one PDU: data ones of an established association here, all others as pynetdicom does."""
        try:
            head = self.socket.recv(6)
        except OSError:
            head = bytearray()
        if len(head) < 6:
            self._lose()
            return
        kind, _, length = struct.unpack(">BBI", head)
        if kind == _P_DATA_TF and self.state_machine.current_state == _ESTABLISHED:
            self._receive_data(length)
        elif length > MAX_CONTROL_PDU_BYTES:
            self._discard()
            self.event_queue.put(_INVALID_PDU)
        else:
            self.socket.pushed_back = bytes(head)
            if kind != A_ASSOCIATE_RQ or self._read_request(length):
                super()._read_pdu_data()

    def _read_request(self, length: int) -> bool:
        """Let the library see what of an A-ASSOCIATE-RQ is read here; say whether it came whole."""
        try:
            whole = bytes(self.socket.recv(6 + length))
        except OSError:
            whole = b""
        if len(whole) < 6 + length:
            self._lose()
            return False
        try:
            part = read_part(whole[6:])
        except BrokenRequestError:
            self.event_queue.put(_INVALID_PDU)
            return False
        self.socket.pushed_back = struct.pack(">BBI", A_ASSOCIATE_RQ, 0, len(part)) + part
        return True

    def _lose(self) -> None:
        self._discard()
        self.event_queue.put(TRANSPORT_CLOSED)

    def _receive_data(self, length: int) -> None:
        try:
            while length:
                length -= self._receive_item(length)
        except ConnectionLostError:
            self._discard()
            self.event_queue.put(TRANSPORT_CLOSED)
        except DICOMNodeError:
            self._discard()
            self.event_queue.put(_INVALID_PDU)

    def _receive_item(self, room: int) -> int:
        """Read one presentation data value item (PS3.8 9.3.5.1); return its length."""
        if room < 6:
            raise ProtocolViolationError("a P-DATA-TF PDU too short for an item")
        self.socket.fill(self._buffer[:6])
        item_length, context_id, control = struct.unpack_from(">IBB", self._buffer)
        size = item_length - 2
        if size < 0 or 4 + item_length > room:
            raise ProtocolViolationError("an item longer than its P-DATA-TF PDU")
        if context_id not in self.assoc._accepted_cx:  # noqa: SLF001
            raise ProtocolViolationError("a presentation context that was not accepted")
        if control & 1:
            self._take_command(context_id, size, last=bool(control & 2))
        else:
            self._take_data(context_id, size, last=bool(control & 2))
        return 4 + int(item_length)

    def _take_command(self, context_id: int, size: int, *, last: bool) -> None:
        if self._request is not None or self._forwarded is not None:
            raise ProtocolViolationError("a command before the data set of the last one ended")
        if len(self._command) + size > MAX_COMMAND_BYTES:
            raise ProtocolViolationError("a command set longer than any")
        self.socket.fill(self._buffer[:size])
        self._command += self._buffer[:size]
        if not last:
            return
        encoded = bytes(self._command)
        self._command.clear()
        command = commands.decode(encoded)
        if command.field != commands.C_STORE_RQ:
            self._forwarded = 0 if command.has_data_set else None
            self._forward(context_id, b"\x03" + encoded)
        elif command.has_data_set:
            self._request = (context_id, command)
            self._reception = self._begin(self.assoc, context_id, command)
        else:
            self._answer(context_id, command, CANNOT_UNDERSTAND, "no data set")

    def _take_data(self, context_id: int, size: int, *, last: bool) -> None:
        if self._forwarded is not None:
            self._take_other_data(context_id, size, last=last)
            return
        if self._request is None or self._reception is None or self._request[0] != context_id:
            raise ProtocolViolationError("a data set without its command")
        while size:
            part = self._buffer[: min(size, _BUFFER_BYTES)]
            self.socket.fill(part)
            self._idle_timer.restart()
            self._reception.write(part)
            size -= len(part)
        if last:
            status, comment = self._reception.finish()
            command = self._request[1]
            self._request = self._reception = None
            self._answer(context_id, command, status, comment)

    def _take_other_data(self, context_id: int, size: int, *, last: bool) -> None:
        self._forwarded = (self._forwarded or 0) + size
        if self._forwarded > MAX_OTHER_DATA_SET_BYTES:
            raise ProtocolViolationError("a data set longer than any of its service")
        if last:
            self._forwarded = None
        fragment = bytearray(1 + size)
        fragment[0] = 0x02 if last else 0x00
        self.socket.fill(memoryview(fragment)[1:])
        self._forward(context_id, bytes(fragment))

    def _forward(self, context_id: int, fragment: bytes) -> None:
        """Leave a message of another service to pynetdicom."""
        if self.assoc.dimse.msg_queue.qsize() > MAX_WAITING_MESSAGES:
            raise ProtocolViolationError("more requests than were negotiated before an answer")
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context_id, fragment]]
        try:
            self.assoc.dimse.receive_primitive(primitive)
        except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, EOFError) as error:
            raise ProtocolViolationError("a message that cannot be read") from error

    def _answer(self, context_id: int, command: commands.Command, status: int, comment: str) -> None:
        response = commands.encode_store_response(command, status, comment)
        self.socket.send(commands.p_data(context_id, response))

    def _discard(self) -> None:
        reception, self._reception, self._request = self._reception, None, None
        self._command.clear()
        if reception is not None:
            reception.discard()
