"""A storage SCP that stores nothing: what a sender can do when nobody keeps what it sends.

It accepts every presentation context with its first transfer syntax, reads PDUs with as few system calls as
they allow, and answers each C-STORE request with success. One process for each association.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import Final

ASSOCIATE_RQ: Final = 0x01
P_DATA: Final = 0x04
RELEASE_RQ: Final = 0x05
MAX_PDU_BYTES: Final = 131072
_BUFFER: Final = memoryview(bytearray(1 << 20))


def main() -> None:
    """Listen on a free port of the loopback interface, print it, and serve until killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(server.getsockname()[1], flush=True)  # noqa: T201 - read by who started it
    while True:
        peer, _ = server.accept()
        if os.fork():
            peer.close()
            continue
        server.close()
        serve(peer)
        os._exit(0)


def serve(peer: socket.socket) -> None:
    """Serve one association until its peer has gone."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while _fill(peer, _BUFFER[:6]):
        kind, length = struct.unpack_from(">BxI", _BUFFER)
        if kind == ASSOCIATE_RQ:
            peer.sendall(accepted(_take(peer, length)))
        elif kind == P_DATA:
            _take_data(peer, length)
        elif kind == RELEASE_RQ:
            _take(peer, length)
            peer.sendall(struct.pack(">BxI4x", 0x06, 4))
        else:
            return


def accepted(request: bytes) -> bytes:
    """Return the A-ASSOCIATE-AC PDU (PS3.8 table 9-17) that takes all that is asked for."""
    items = [_item(0x10, b"1.2.840.10008.3.1.1.1")]
    offset = 68
    while offset + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, offset)
        if kind == 0x20:
            body = request[offset + 4 : offset + 4 + length]
            items.append(_item(0x21, bytes([body[0], 0, 0, 0]) + _item(0x40, _first_transfer_syntax(body))))
        offset += 4 + length
    user = _item(0x51, struct.pack(">I", MAX_PDU_BYTES)) + _item(0x52, b"1.2.3")
    body = request[:68] + b"".join(items) + _item(0x50, user)
    return struct.pack(">BxI", 0x02, len(body)) + body


def _first_transfer_syntax(context: bytes) -> bytes:
    offset = 4
    while offset + 4 <= len(context):
        kind, length = struct.unpack_from(">BxH", context, offset)
        if kind == 0x40:
            return context[offset + 4 : offset + 4 + length]
        offset += 4 + length
    raise ValueError("a presentation context without a transfer syntax")


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


_command = bytearray()


def _take_data(peer: socket.socket, length: int) -> None:
    while length:
        _fill(peer, _BUFFER[:6])
        size, context, control = struct.unpack_from(">IBB", _BUFFER)
        length -= 4 + size
        if control & 1:
            _command.extend(_take(peer, size - 2))
        else:
            _skip(peer, size - 2)
            if control & 2:
                peer.sendall(_answer(context))
                _command.clear()


def _answer(context: int) -> bytes:
    """Return a C-STORE response (PS3.7 table 9.3-2) in a P-DATA-TF PDU."""
    asked = _elements(bytes(_command))
    body = b""
    for element, value in (
        (0x0002, asked[0x0002]),
        (0x0100, struct.pack("<H", 0x8001)),
        (0x0120, asked[0x0110]),
        (0x0800, struct.pack("<H", 0x0101)),
        (0x0900, struct.pack("<H", 0)),
        (0x1000, asked[0x1000]),
    ):
        body += struct.pack("<HHI", 0, element, len(value)) + value
    body = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    return struct.pack(">BxIIBB", P_DATA, len(body) + 6, len(body) + 2, context, 3) + body


def _elements(command: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset < len(command):
        element, length = struct.unpack_from("<2xHI", command, offset)
        found[element] = command[offset + 8 : offset + 8 + length]
        offset += 8 + length
    return found


def _take(peer: socket.socket, size: int) -> bytes:
    _fill(peer, _BUFFER[:size])
    return bytes(_BUFFER[:size])


def _skip(peer: socket.socket, size: int) -> None:
    while size:
        part = min(size, len(_BUFFER))
        _fill(peer, _BUFFER[:part])
        size -= part


def _fill(peer: socket.socket, view: memoryview) -> bool:
    """Fill the view; False when the peer has gone before its first byte."""
    done = 0
    while done < len(view):
        count = peer.recv_into(view[done:])
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if not count:
            if done:
                raise ConnectionError("the peer has gone inside a PDU")
            return False
        done += count
    return True


if __name__ == "__main__":
    main()
