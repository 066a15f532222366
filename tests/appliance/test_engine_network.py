"""A database server behind a network that goes dead: nobody is told, and nothing is acknowledged any more."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from appliance.db import engine as engines
from appliance.db.engine import make_engine
from tests.appliance.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from tests.appliance.servers import PostgreSQL

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(60)]

LIMIT_S: Final = 2
SOON_S: Final = 8.0  # the limit, the kernel's next try, and a busy machine
SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # struct sock_filter: return 0 bytes of any packet


class Line:
    """Carries TCP connections to a server's Unix socket, until it is dead.

    Then the kernel itself drops each packet that comes to its ends, before TCP sees it: a proxy that only
    stops to read would have everything acknowledged.
    """

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._ends: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def die(self) -> None:
        """Lose every packet from now on."""
        for end in (self._listener, *self._ends):
            code = ctypes.create_string_buffer(DROP_ALL)
            end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(code)))

    def close(self) -> None:
        """Close all ends."""
        for end in (self._listener, *self._ends, *self._servers):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._target)
                self._ends.append(here)
                self._servers.append(there)
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := one.recv(65536):
            other.sendall(piece)
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(postgresql: PostgreSQL) -> Iterator[Line]:
    made = Line(postgresql.folder / ".s.PGSQL.5432")
    yield made
    made.close()


@pytest.fixture
def remote(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine of the product's making over the line, with shorter limits."""
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", LIMIT_S * 1000)
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_S", LIMIT_S)
    monkeypatch.setattr(engines, "KEEPALIVE_S", 1)
    engine = make_engine(f"postgresql://cloister@127.0.0.1:{line.port}/postgres")
    yield engine
    engine.dispose(close=False)  # nobody is there to say goodbye to


def took_s(connection: Connection, statement: str) -> float:
    """Return how long a statement takes to fail."""
    started = time.monotonic()
    with pytest.raises(OperationalError):
        connection.execute(text(statement))
    return time.monotonic() - started


def test_what_is_sent_into_a_dead_network_fails_in_time(remote: Engine, line: Line) -> None:
    with remote.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        line.die()

        assert LIMIT_S * 0.5 < took_s(connection, "SELECT 1") < SOON_S


def test_an_answer_that_a_dead_network_lost_is_not_waited_for(
    remote: Engine, line: Line, postgresql: PostgreSQL
) -> None:
    """The server had acknowledged the question, so nothing that was sent is missing."""
    beside = make_engine(postgresql.url())
    working = "FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(77)%' AND state = 'active'"

    def is_working() -> bool:
        with beside.connect() as connection:
            return bool(connection.scalar(text(f"SELECT count(*) {working}")) == 1)

    def kill_line() -> None:
        wait_until(is_working, what="the server works on the question")
        line.die()

    killer = threading.Thread(target=kill_line)
    killer.start()
    try:
        with remote.connect() as connection:
            assert LIMIT_S * 0.5 < took_s(connection, "SELECT pg_sleep(77)") < SOON_S
    finally:
        killer.join()
        with beside.connect() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {working}"))
        beside.dispose()


def test_a_connection_from_the_pool_that_died_is_found_out(remote: Engine, line: Line) -> None:
    with remote.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    line.die()

    started = time.monotonic()
    with pytest.raises(OperationalError), remote.connect():
        pass

    assert time.monotonic() - started < 2 * SOON_S  # the old one, then a new one that nobody answers


def test_a_server_that_takes_its_time_is_waited_for(remote: Engine) -> None:
    started = time.monotonic()
    with remote.connect() as connection:
        connection.execute(text(f"SELECT pg_sleep({LIMIT_S * 2})"))

    assert time.monotonic() - started > LIMIT_S * 2
