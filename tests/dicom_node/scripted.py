"""A scripted acceptor: accepts one association, reads the request, and sends bytes that a test wrote."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.dicom_node.support import pdu

if TYPE_CHECKING:
    from collections.abc import Iterator


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _accept(abstract: str) -> bytes:
    """Return an A-ASSOCIATE-AC PDU (PS3.8 9.3.3) that accepts context 1 in explicit VR little endian."""
    del abstract
    context = struct.pack(">BBBB", 1, 0, 0, 0) + _item(0x40, b"1.2.840.10008.1.2.1")
    user = _item(0x51, struct.pack(">I", 16384)) + _item(0x52, b"1.2.3.4")
    variable = _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x21, context) + _item(0x50, user)
    return pdu(0x02, struct.pack(">HH16s16s32x", 1, 0, b"ODD".ljust(16), b"CLOISTER".ljust(16)) + variable)


def _read_pdu(connection: socket.socket) -> None:
    head = connection.recv(6, socket.MSG_WAITALL)
    if len(head) == 6:
        connection.recv(struct.unpack(">BBI", head)[2], socket.MSG_WAITALL)


@contextmanager
def scripted_acceptor(abstract: str, sent: bytes) -> Iterator[int]:
    """Listen; answer the first request with these bytes, then wait for the peer to leave. Nothing: close."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                _read_pdu(connection)
                connection.sendall(_accept(abstract))
                _read_pdu(connection)
                connection.sendall(sent)
                while sent and connection.recv(4096):
                    pass
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
        thread.join(timeout=15)
