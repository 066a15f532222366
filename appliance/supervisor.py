"""The supervisor: starts a node's processes, keeps them running, ends them all.

They end within eight seconds; the receiver has ``dicom.drain_s`` more for associations that are at work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from appliance import children, health, logs, node
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from appliance.settings import Settings, Zone

GRACE_S: Final = 5.0  # from SIGTERM to SIGKILL
REDIS_GRACE_S: Final = 0.8
KILL_GRACE_S: Final = 0.4
FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 30.0
STEADY_AFTER_S: Final = 60.0  # a process that ran so long starts again with the first backoff
HUNG_AFTER_S: Final = 180.0
START_WITHIN_S: Final = 600.0  # until the first sign of life; a full inbox takes its time
REDIS_WAIT_S: Final = 5.0

CHILD_STARTED: Final = "supervisor.child_started"
CHILD_ENDED: Final = "supervisor.child_ended"
CHILD_HUNG: Final = "supervisor.child_hung"
ORPHAN_ENDED: Final = "supervisor.orphan_ended"
STOPPING: Final = "supervisor.stopping"
STOPPED: Final = "supervisor.stopped"

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOG = logs.logger(__name__)


class AlreadyRunningError(ApplianceError):
    """Another supervisor holds this node."""


@dataclass
class Child:
    """One process that is kept running."""

    name: str
    pid: int | None = None
    started_at: float = 0.0  # monotonic
    started_wall: float = 0.0
    restarts: int = 0
    failures: int = 0  # in a row
    start_again_at: float = 0.0  # monotonic

    def backoff_s(self) -> float:
        """Return how long to wait before the next start."""
        return float(min(FIRST_BACKOFF_S * 2 ** max(self.failures - 1, 0), LONGEST_BACKOFF_S))


def spawner(command: Callable[[str], list[str]]) -> Callable[[str], int]:
    """Return a function that starts a program for a name, in a process group of its own."""

    def start(name: str) -> int:
        argv = command(name)
        return os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigmask=[],
            setsigdef=[*_STOP_SIGNALS, signal.SIGPIPE, signal.SIGCHLD],
        )

    return start


class Supervisor:
    """Keeps the processes of a node running until a signal.

    Every process leads a process group of its own. Orphans come back to us (child subreaper), so that nothing
    that a process started outlives it. Our own sudden death reaches every process through PR_SET_PDEATHSIG.

    Parameters
    ----------
    settings : Settings
    processes : sequence of str
        Names, see :func:`appliance.health.processes`.
    start : callable
        Starts the process of a name as a child of ours that leads a process group, and returns its number;
        see :func:`appliance.forking.forker` and :func:`spawner`.
    zone : Zone or None
        The only zone that runs here; None for both.
    start_within_s : float
        A process without a sign of life so long after its start is hung.
    """

    def __init__(
        self,
        settings: Settings,
        processes: Sequence[str],
        start: Callable[[str], int],
        zone: Zone | None = None,
        start_within_s: float = START_WITHIN_S,
    ) -> None:
        self._start_within_s = start_within_s
        self._settings = settings
        self._children = {name: Child(name) for name in processes}
        self._start_process = start
        self._zone = zone
        self._stop_requested = False
        self._known_orphans: set[int] = set()

    def run(self) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP; then end everything.

        Raises
        ------
        AlreadyRunningError
            If a supervisor runs this node (or this zone of it) already.
        """
        with self._alone(), self._signals() as woken:
            children.adopt_orphans()
            self._clear_leftovers()
            try:
                self._start_redis_first()
                while not self._stop_requested:
                    self._tend()
                    woken(self._pause_s())
            finally:
                self._end_all()

    def stop(self) -> None:
        """Ask :meth:`run` to end; for signal handlers."""
        self._stop_requested = True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        zones: list[Zone] = [self._zone] if self._zone is not None else ["clinical", "research"]
        with contextlib.ExitStack() as stack:
            for zone in zones:
                path = self._settings.zone_root(zone) / "supervisor.lock"
                file = stack.enter_context(path.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    message = f"{path}: held by another supervisor; this node runs already"
                    raise AlreadyRunningError(message) from error
            yield

    @contextlib.contextmanager
    def _signals(self) -> Iterator[Callable[[float], None]]:
        """Give a function that waits for a signal, at most so long."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: self.stop()) for number in _STOP_SIGNALS}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)

        def wait(timeout_s: float) -> None:
            select.select([reader], [], [], timeout_s)
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)

        try:
            yield wait
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(reader)
            os.close(writer)

    def _clear_leftovers(self) -> None:
        """Forget ports and signs of life of an earlier run of these processes."""
        run_dir = node.run_dir(self._settings)
        for name in self._children:
            (run_dir / "health" / f"{name}.json").unlink(missing_ok=True)
        if self._zone is None:
            for path in (run_dir / "ports").glob("*"):
                path.unlink(missing_ok=True)

    def _start_redis_first(self) -> None:
        """Start the embedded Redis servers and give them a moment; if it takes longer, the others wait."""
        waited_for: list[Path] = []
        for zone in ("clinical", "research"):
            child = self._children.get(f"{zone}_redis")
            if child is not None:
                socket = node.redis_socket(self._settings, zone)
                socket.unlink(missing_ok=True)
                waited_for.append(socket)
                self._start(child)
        deadline = time.monotonic() + REDIS_WAIT_S
        while not (self._stop_requested or all(socket.exists() for socket in waited_for)):
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)

    def _tend(self) -> None:
        """Reap what ended, start what should run, end what hangs."""
        changed = self._reap()
        at = time.monotonic()
        for child in self._children.values():
            if self._stop_requested:
                return
            if child.pid is None and child.start_again_at <= at:
                self._start(child)
                changed = True
            elif child.pid is not None:
                self._end_if_hung(child, child.pid)
        self._known_orphans = self._orphans()
        if changed:
            self._write_table()

    def _pause_s(self) -> float:
        """Return how long nothing needs to be done, at most a few seconds."""
        at = time.monotonic()
        due = [child.start_again_at - at for child in self._children.values() if child.pid is None]
        return max(0.0, min([*due, 5.0]))

    def _start(self, child: Child) -> None:
        child.pid = self._start_process(child.name)
        child.started_at, child.started_wall = time.monotonic(), time.time()
        _LOG.info(CHILD_STARTED, child=child.name, pid=child.pid, restarts=child.restarts)

    def _reap(self) -> bool:
        """Collect all ended children and orphans; return whether one of ours was among them."""
        ours = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ours
            if pid == 0:
                return ours
            for child in self._children.values():
                if child.pid == pid:
                    self._ended(child, pid, os.waitstatus_to_exitcode(status))
                    ours = True

    def _ended(self, child: Child, pid: int, code: int) -> None:
        """Plan the next start and end what the process left behind."""
        ran_s = time.monotonic() - child.started_at
        child.pid = None
        child.restarts += 1
        child.failures = 1 if ran_s >= STEADY_AFTER_S else child.failures + 1
        child.start_again_at = time.monotonic() + child.backoff_s()
        if not self._stop_requested:
            _LOG.warning(CHILD_ENDED, child=child.name, pid=pid, exit_code=code, again_in_s=child.backoff_s())
        children.send_group_signal(pid, signal.SIGKILL)
        for orphan in self._orphans() - self._known_orphans:
            _LOG.warning(ORPHAN_ENDED, child=child.name, pid=orphan)
            children.send_signal(orphan, signal.SIGKILL)

    def _orphans(self) -> set[int]:
        ours = {child.pid for child in self._children.values()}
        return {pid for pid in children.children_of(os.getpid()) if pid not in ours}

    def _end_if_hung(self, child: Child, pid: int) -> None:
        """Kill a process whose signs of life stopped; its work is in rows and spools that outlive it."""
        if child.name in health.REDIS_PROCESSES:
            return  # the server program leaves none
        last = health.last_beat(self._settings, child.name)
        if last is not None and last.pid == pid:
            silent_s, limit_s = last.age_s, HUNG_AFTER_S
        else:
            silent_s, limit_s = time.monotonic() - child.started_at, self._start_within_s
        if silent_s > limit_s:
            _LOG.error(CHILD_HUNG, child=child.name, pid=pid, silent_s=round(silent_s))
            children.send_group_signal(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        """End all processes, Redis after those who use it, and everything that they left."""
        self._stop_requested = True
        _LOG.info(STOPPING)
        redis = [child for child in self._children.values() if child.name in health.REDIS_PROCESSES]
        others = [child for child in self._children.values() if child.name not in health.REDIS_PROCESSES]
        receivers = [child for child in others if child.name in health.RECEIVERS]
        self._tell(others)
        self._end([child for child in others if child not in receivers], GRACE_S)
        self._end(receivers, self._settings.dicom.drain_s)
        self._tell(redis)
        self._end(redis, REDIS_GRACE_S)
        self._end_descendants()
        self._write_table()
        _LOG.info(STOPPED)

    def _tell(self, group: Sequence[Child]) -> None:
        for child in group:
            if child.pid is not None:
                children.send_signal(child.pid, signal.SIGTERM)

    def _end(self, group: Sequence[Child], grace_s: float) -> None:
        """Wait until all have ended that were told to; kill those that have not by then."""
        self._wait_for(group, grace_s)
        for child in group:
            if child.pid is not None:
                children.send_group_signal(child.pid, signal.SIGKILL)
        self._wait_for(group, KILL_GRACE_S)

    def _wait_for(self, group: Sequence[Child], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._reap()
            if all(child.pid is None for child in group):
                return
            time.sleep(0.02)

    def _end_descendants(self) -> None:
        """Kill until nobody is left; what loses its parent becomes our child and is next."""
        deadline = time.monotonic() + 2 * KILL_GRACE_S
        while time.monotonic() < deadline:
            left = children.descendants_of(os.getpid())
            if not left:
                return
            for pid in left:
                children.send_signal(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.01)

    def _write_table(self) -> None:
        """Write ``processes.json`` for the panel, ``doctor`` and people."""
        table: dict[str, Any] = {
            child.name: {"pid": child.pid, "restarts": child.restarts, "started_at": child.started_wall}
            for child in self._children.values()
        }
        name = "processes.json" if self._zone is None else f"processes.{self._zone}.json"
        path = node.run_dir(self._settings) / name
        temporary = path.with_name(f".{name}.{os.getpid()}")
        temporary.write_text(json.dumps({"supervisor": os.getpid(), "processes": table}), encoding="utf-8")
        temporary.replace(path)
