"""Real servers that tests start and stop: the embedded Redis, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from appliance import broker, node
from appliance.db.base import new_id
from appliance.processes import _redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.settings import Settings, Zone

POSTGRESQL_PROGRAMS = Path("/usr/lib/postgresql")


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0, what: str = "condition") -> None:
    """Wait for a condition; fail the test when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@dataclass
class RedisServer:
    """The embedded Redis of one zone, as the node configures it."""

    settings: Settings
    zone: Zone
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start it and wait until it answers."""
        configuration = _redis.write_configuration(self.settings, self.zone)
        self.process = subprocess.Popen(
            [_redis.server_program(), configuration], process_group=0, stdout=subprocess.DEVNULL
        )
        wait_until(self.answers, what=f"{self.zone} redis answers")

    def answers(self) -> bool:
        """Whether it answers a ping."""
        try:
            with broker.connect(node.redis_url(self.settings, self.zone)) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        """Kill it without warning."""
        if self.process is not None:
            end_group(self.process)
            self.process = None

    def forget_everything(self) -> None:
        """Delete what a stopped server would read back."""
        for path in (self.settings.zone_root(self.zone) / "redis").glob("*.aof"):
            path.unlink()


@contextlib.contextmanager
def running_tcp_redis(folder: Path) -> Iterator[str]:
    """Run a Redis server on a free port of the loopback, as a hospital would have one, and give its URL."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    argv = [str(_redis.server_program()), *options]
    process = subprocess.Popen(argv, process_group=0, stdout=subprocess.DEVNULL)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_until(lambda: broker.backlog(url, ("x",)) is not None, what="redis answers")
        yield url
    finally:
        end_group(process)


def postgresql_program(name: str) -> Path:
    """Return a PostgreSQL server program; without one fail in CI and skip elsewhere."""
    found = sorted(POSTGRESQL_PROGRAMS.glob(f"*/bin/{name}"))
    if found:
        return found[-1]
    if os.environ.get("CI") == "true":
        pytest.fail(f"{POSTGRESQL_PROGRAMS}: no {name}; install postgresql")
    pytest.skip(f"{POSTGRESQL_PROGRAMS}: no {name}")


@dataclass(frozen=True)
class PostgreSQL:
    """A running server of this test session, on a Unix socket."""

    folder: Path

    def url(self, database: str = "postgres") -> str:
        """Return the URL of one database."""
        return f"postgresql+psycopg://cloister@/{database}?host={self.folder}"

    def new_database(self, name: str | None = None, template: str = "template1") -> str:
        """Make a database, empty or a copy of another, and return its URL."""
        name = name or f"t{new_id()}"
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self.url(name)


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server; as root it runs as the package's own user, since it refuses root."""
    initdb, postgres = postgresql_program("initdb"), postgresql_program("postgres")
    user = pwd.getpwnam("postgres").pw_name if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="cl-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", "cloister", "-A", "trust", "-E", "UTF8", "--no-sync"],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        process = subprocess.Popen(
            [postgres, "-D", data, *options],
            user=user,
            cwd=folder,
            process_group=0,
            stderr=subprocess.DEVNULL,
        )
        try:
            server = PostgreSQL(folder)
            wait_until(lambda: _answers(server), 30, "postgresql answers")
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            end_group(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(server: PostgreSQL) -> bool:
    engine = create_engine(server.url())
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()
