"""An association that sleeps until there is something to do, in the place of pynetdicom's polling."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from pynetdicom.transport import AssociationSocket

from dicom_node import tls
from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from pynetdicom.association import Association

TRANSPORT_CLOSED: Final = "Evt17"
_IDLE_WAIT_MS: Final = 100


class ConnectionLostError(DICOMNodeError):
    """The connection ended, or stalled, inside a PDU."""


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
            self.event_queue.put(TRANSPORT_CLOSED)
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
