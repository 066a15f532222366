"""Servers that accept connections and make associations whose upper layer is ours."""

from __future__ import annotations

import functools
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicom_node.receiving import ReceivingDUL

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

    from dicom_node import tls
    from dicom_node.scp import StorageSCP

_MAX_HANDSHAKES: Final = 64  # at once: those that stall hold nobody else up


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """pynetdicom's server, with a longer queue of connections and a bound on their number."""

    scp: StorageSCP
    secure: tls.ServerContext | None = None
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handshakes = threading.BoundedSemaphore(_MAX_HANDSHAKES)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread: the library would do it in the one that accepts."""
        if self.secure is not None:
            if not self._handshakes.acquire(blocking=False):
                raise ConnectionRefusedError("too many TLS handshakes at once")
            try:
                request = self.scp.shake_hands(request, self.secure, str(client_address[0]))
            finally:
                self._handshakes.release()
        super().finish_request(request, client_address)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close connections far beyond the limit at once; up to it, callers get a proper rejection."""
        del request, client_address
        return len(self.ae.active_associations) < int(self.ae.maximum_associations)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Forget a connection that ended before its association began; socketserver would print."""


class SharedServer(Server):
    """A server beside others on its port: the kernel spreads connections over them."""

    def server_bind(self) -> None:
        """Share the port with processes of the same user."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class Handler(RequestHandler):  # type: ignore[misc]
    """Makes associations whose upper layer is ours."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        ReceivingDUL(association, self.server.scp.begin).take_over(self.request)
        # The library answers what is left to it, when ours has looked at the request.
        rest = association._serve_request  # noqa: SLF001
        association._serve_request = functools.partial(self.server.scp.serve, association, rest)  # noqa: SLF001
        association.run = functools.partial(self._run, association, association.run)
        return association

    def _run(self, association: Association, run: Callable[[], None]) -> None:
        """Run an association's thread to its end; where it fails the connection would stay open for ever."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 -- edge of an association
            self.server.scp.on_broken(association, error)
            association.abort(block=False)
            association.kill()
            self.server.shutdown_request(self.request)
        finally:
            self.server.scp.on_ended(association)
