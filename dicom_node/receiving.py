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
import queue
import select
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from dicom_node import commands, tls
from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

_P_DATA_TF: Final = 0x04
_AWAITING_REQUEST: Final = "Sta2"
_ESTABLISHED: Final = "Sta6"
_SENDING: Final = frozenset({"Sta6", "Sta8"})
_TRANSPORT_CLOSED: Final = "Evt17"
_INVALID_PDU: Final = "Evt19"

MAX_CONTROL_PDU_BYTES: Final = 1 << 20
MAX_COMMAND_BYTES: Final = 1 << 16
MAX_OTHER_DATA_SET_BYTES: Final = 4 << 20
MAX_WAITING_MESSAGES: Final = 4
_BUFFER_BYTES: Final = 256 << 10
_IDLE_WAIT_MS: Final = 100
CANNOT_UNDERSTAND: Final = 0xC000


class ProtocolViolationError(DICOMNodeError):
    """The peer does not speak DICOM as the association says."""


class ConnectionLostError(DICOMNodeError):
    """The connection ended, or stalled, inside a PDU."""


class Reception(Protocol):
    """One instance on its way into the inbox."""

    def write(self, fragment: memoryview) -> None:
        """Take bytes of the data set. Never raises: a failure shows in the status."""

    def finish(self) -> tuple[int, str]:
        """Make the instance durable; return status and error comment."""

    def discard(self) -> None:
        """Forget the instance: its association ended before the data set did."""


class Attention(threading.Event):
    """The checkpoint at which an association's own loop pauses: passes when there is something to look at.

    pynetdicom's loop passes it every millisecond, which costs a core for some dozens of idle associations.
    """

    def __init__(self) -> None:
        super().__init__()
        self._something = threading.Event()
        self.set()

    def notify(self) -> None:
        """Let the loop look."""
        self._something.set()

    def set(self) -> None:
        """Open the checkpoint, and let the loop look at what its association has become."""
        super().set()
        self._something.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the checkpoint is open, then for something to look at, or a moment."""
        passed = super().wait(timeout)
        self._something.wait(_IDLE_WAIT_MS / 1000)
        self._something.clear()
        return passed


class NotifyingQueue(queue.Queue[Any]):
    """A queue whose reader is an association's own loop."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._attention = attention

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item and say so."""
        super().put(item, block, timeout)
        self._attention.notify()


class WakingSocket(AssociationSocket):  # type: ignore[misc]
    """A socket whose ``ready`` sleeps until there is something to do, and whose reads have a deadline."""

    def __init__(self, assoc: Association, plain: socket.socket, wake_read: int, timeout_s: float) -> None:
        super().__init__(assoc, client_socket=plain)
        self.wake_read = wake_read
        self.timeout_s = timeout_s
        self.pushed_back: bytes = b""
        self.tls = isinstance(plain, ssl.SSLSocket)
        self.certificate_sha256 = tls.fingerprint(plain) if isinstance(plain, ssl.SSLSocket) else ""
        # An accepted socket has no time-out of its own: a peer that stalls inside a PDU would hold it.
        plain.settimeout(timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def ready(self) -> bool:
        """Wait for data of the peer, for a primitive of the local user, or for a moment."""
        if self.socket is None or not self._is_connected:
            return False
        dul = self.assoc.dul
        if self.pushed_back:
            return True
        if dul.to_provider_queue.queue or dul.event_queue.queue:
            return False
        pending = getattr(self.socket, "pending", None)
        if pending is not None and pending():
            return True
        try:
            return self._wait()
        except (OSError, ValueError):
            self.event_queue.put(_TRANSPORT_CLOSED)
            return False

    def _wait(self) -> bool:
        poller = select.poll()
        handle = self.socket.fileno()
        poller.register(handle, select.POLLIN)
        poller.register(self.wake_read, select.POLLIN)
        woken = {descriptor for descriptor, _ in poller.poll(_IDLE_WAIT_MS)}
        if self.wake_read in woken:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_read, 512)
        return handle in woken

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly so many bytes, or fewer when the connection ends."""
        data = bytearray(nr_bytes)
        taken = min(len(self.pushed_back), nr_bytes)
        data[:taken] = self.pushed_back[:taken]
        self.pushed_back = self.pushed_back[taken:]
        return data[: taken + self._fill(memoryview(data)[taken:])]

    def fill(self, view: memoryview) -> None:
        """Fill the whole view.

        Raises
        ------
        ConnectionLostError
            When the connection ends or the time-out passes before that.
        """
        try:
            if self._fill(view) == len(view):
                return
        except OSError as error:
            raise ConnectionLostError("the connection failed inside a PDU") from error
        raise ConnectionLostError("the connection ended inside a PDU")

    def _fill(self, view: memoryview) -> int:
        deadline = time.monotonic() + self.timeout_s
        done = 0
        while done < len(view):
            count = self.socket.recv_into(view[done:])
            if not count:
                break
            # Many senders write a PDU in pieces with Nagle's algorithm on: without an acknowledgement at once
            # each piece waits 40 ms. The kernel forgets this option, so it is set after every read.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            done += count
            if time.monotonic() > deadline:
                raise TimeoutError("the peer sends slower than the network time-out allows")
        return done


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
        finally:
            self._discard()
            with self._wake_lock:  # a number that is closed may already belong to another file
                self._wake_open = False
                os.close(self.wake_read)
                os.close(self._wake_write)

    def _process_recv_primitive(self) -> bool:
        """Take the next primitive of the local user; data for an association that is over is dropped."""
        waiting = self.to_provider_queue.queue
        while waiting and isinstance(waiting[0], P_DATA) and self.state_machine.current_state not in _SENDING:
            self.to_provider_queue.get()
        return bool(super()._process_recv_primitive())

    def _read_pdu_data(self) -> None:
        """Read one PDU, and all that follow it of the same instance, before anything else is looked at."""
        self._read_pdu()
        while self._reception is not None and not self._is_called_away():
            self._read_pdu()

    def _is_called_away(self) -> bool:
        return bool(self._kill_thread or self.event_queue.queue or self.to_provider_queue.queue)

    def _read_pdu(self) -> None:
        """Read one PDU: data ones of an established association here, all others as pynetdicom does."""
        try:
            head = self.socket.recv(6)
        except OSError:
            head = bytearray()
        if len(head) < 6:
            self._discard()
            if self.state_machine.current_state == _AWAITING_REQUEST:
                # The association's thread would wait for a request until its time is up, and hold a place.
                self.to_user_queue.put(None)
            self.event_queue.put(_TRANSPORT_CLOSED)
            return
        kind, _, length = struct.unpack(">BBI", head)
        if kind == _P_DATA_TF and self.state_machine.current_state == _ESTABLISHED:
            self._receive_data(length)
        elif length > MAX_CONTROL_PDU_BYTES:
            self._discard()
            self.event_queue.put(_INVALID_PDU)
        else:
            self.socket.pushed_back = bytes(head)
            super()._read_pdu_data()

    def _receive_data(self, length: int) -> None:
        try:
            while length:
                length -= self._receive_item(length)
        except ConnectionLostError:
            self._discard()
            self.event_queue.put(_TRANSPORT_CLOSED)
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
