"""Run a coordinator: the engine's server as a supervised child, and the run controller; one per folder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance import logs
from appliance.children import adopt_orphans, collect_orphans, return_freed_memory_at_times
from appliance.federation import book as books
from appliance.federation import enrolment, members, owncerts, policy
from appliance.federation.enginehost import command, end_jobs
from appliance.federation.enginelink import EngineLink
from appliance.federation.errors import CoordinatorError
from appliance.federation.runs import RunController

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from appliance.federation.provision import Federation

STEP_S: Final = 0.5
STOP_WITHIN_S: Final = 6.0
RESTART_AFTER_S: Final = 1.0
LONGEST_RESTART_S: Final = 30.0

ENGINE_STARTED: Final = "federation.engine_started"
ENGINE_ENDED: Final = "federation.engine_ended"

_LOG = logs.logger(__name__)


class EngineServer:
    """The engine's server process, started again with backoff when it ends."""

    def __init__(self, federation: Federation, enrolling: Path) -> None:
        self._federation = federation
        self._enrolling = enrolling
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._failures = 0

    def keep(self) -> bool:
        """Start the server when it does not run; return whether one was started."""
        process = self._process
        collect_orphans(() if process is None else (process.pid,))  # job processes whose server was killed
        if process is not None and process.poll() is None:
            return False
        at = time.monotonic()
        if process is not None:
            self._note_end(process, at)
        wait_s = min(RESTART_AFTER_S * 2**self._failures, LONGEST_RESTART_S) if self._failures else 0.0
        if at - self._started < wait_s:
            return False
        self._start(at)
        return True

    def _note_end(self, process: subprocess.Popen[bytes], at: float) -> None:
        self._process = None
        self._failures = 1 if at - self._started > LONGEST_RESTART_S else self._failures + 1
        _LOG.warning(ENGINE_ENDED, code=process.returncode)

    def _start(self, at: float) -> None:
        argv = [*command("server", self._federation.server_workspace, "server"), "--parent", str(os.getpid())]
        environment = {**os.environ, policy.ROOT_VARIABLE: str(self._federation.root)}
        environment[policy.ENROLMENT_VARIABLE] = str(self._enrolling)
        self._process = subprocess.Popen(argv, env=environment, start_new_session=True)
        self._started = at
        _LOG.info(ENGINE_STARTED, pid=self._process.pid)

    def stop(self) -> None:
        """End the server and the engine's job processes."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_WITHIN_S / 2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        end_jobs()


def run(
    federation: Federation, stopping: threading.Event, on_ready: Callable[[], None] | None = None
) -> None:
    """Run the coordinator until ``stopping`` is set.

    Raises
    ------
    CoordinatorError
        If a coordinator runs on this folder already.
    """
    with _only_one(federation), tempfile.TemporaryDirectory(prefix="cloister-") as short:
        adopt_orphans()
        return_freed_memory_at_times()
        book = books.open_book(federation)
        link = EngineLink(federation.admin_workspace)
        enrolling = enrolment.serve(federation, book, Path(short) / "enrol.sock")
        server = EngineServer(federation, enrolling.path)
        controller = RunController(book, link, partial(members.active, book.engine))
        try:
            while not stopping.is_set():
                if owncerts.renew(federation):
                    server.stop()
                if server.keep():
                    link.close()
                    controller.engine_restarted()
                    if on_ready is not None:
                        on_ready()
                controller.step()
                stopping.wait(STEP_S)
        finally:
            server.stop()
            enrolling.stop()
            link.close()
            book.engine.dispose()


def open_book(federation: Federation) -> books.Book:
    """Open the coordinator's book."""
    return books.open_book(federation)


def stop_on_signals(stopping: threading.Event) -> None:
    """Let SIGTERM and SIGINT end :func:`run`."""

    def stop(*_: Any) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def leave() -> None:
    """End this process: threads that the engine's client left behind would keep it alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _only_one(federation: Federation) -> Iterator[None]:
    with (federation.root / "coordinator.lock").open("w", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CoordinatorError(f"{federation.root}: a coordinator runs on this folder already") from error
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
