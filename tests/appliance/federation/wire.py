"""A wire between a site and its coordinator that a test cuts, slows or lets fall silent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Final

CHUNK: Final = 65536
LOOK_EVERY_S: Final = 0.05
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time: what is closed is reset


class Wire:
    """Carries TCP connections to ``target``; all that its attributes say holds for open ones too.

    Attributes
    ----------
    delay_s : float
        How long each piece waits on its way, in both directions.
    bytes_per_s : float
        How much is carried in a second and direction; 0: as much as comes.
    silent : bool
        Nothing is carried, and nobody is told: connections stay open.
    bytes_up : int
        What was carried from the site to the coordinator.
    bytes_down : int
        What was carried from the coordinator to the site.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.silent = False
        self.bytes_up = self.bytes_down = 0
        self._is_cut = False
        self._target = target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name=f"wire {self.port}", daemon=True).start()

    def reset(self) -> None:
        """Reset every open connection; new ones are carried."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Reset every connection, and each new one."""
        self._is_cut = True
        self.reset()

    def mend(self) -> None:
        """Carry everything again as it comes; connections that were silent are reset."""
        was_silent, self.silent, self._is_cut = self.silent, False, False
        self.delay_s = self.bytes_per_s = 0.0
        if was_silent:
            self.reset()

    def close(self) -> None:
        """Carry nothing any longer."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        if self._is_cut:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            return
        try:
            far = socket.create_connection(self._target, 10.0)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):  # else what is sent in small pieces waits for 40 ms again and again
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far, up=True)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, *, up: bool = False) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(CHUNK):
                while self.silent:
                    time.sleep(LOOK_EVERY_S)
                wait_s = self.delay_s + (len(piece) / self.bytes_per_s if self.bytes_per_s else 0.0)
                if wait_s:
                    time.sleep(wait_s)
                sink.sendall(piece)
                if up:
                    self.bytes_up += len(piece)
                else:
                    self.bytes_down += len(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
