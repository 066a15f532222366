"""What every process of a node does first and last: settings, logs, signals, signs of life."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance import figures, health, logs
from appliance.children import die_with_parent
from appliance.errors import SettingsError
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

STOP_WITHIN_S: Final = 5.0

STARTED: Final = "process.started"
STOPPED: Final = "process.stopped"
OVERDUE: Final = "process.stop_overdue"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Process:
    """A running process of a node.

    Parameters
    ----------
    name : str
        Its module's name.
    settings : Settings
    config : Path
        The configuration file, for children that read it again.
    number : int
        Which one it is of several that do the same work; 0 is the one that the supervisor starts.
    stopping : Event
        Set by SIGTERM and SIGINT.
    stop_within_s : float
        Seconds that the body has then to return.
    parent : int or None
        The process that started this one, where it ends with it.
    """

    name: str
    settings: Settings
    config: Path
    number: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    stop_within_s: float = STOP_WITHIN_S
    parent: int | None = None

    @property
    def orphaned(self) -> bool:
        """Whether the process that this one ends with is gone."""
        return self.parent is not None and os.getppid() != self.parent

    def beat(self, **detail: Any) -> None:
        """Leave a sign of life: at least every ten seconds, from the loop that does the work."""
        health.beat(self.settings, self.name, detail)
        figures.flush(figures.folder_of(self.settings))

    def loop(
        self,
        step: Callable[[], None],
        period_s: float,
        detail: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Call ``step`` every ``period_s`` seconds until told to stop, leaving signs of life with ``detail``.

        A step that raises ends the process; the supervisor starts it again.
        """
        beaten = 0.0
        while not self.stopping.is_set():
            step()
            if time.monotonic() - beaten >= min(health.BEAT_EVERY_S, max(period_s, 1.0)):
                self.beat(**(detail() if detail is not None else {}))
                beaten = time.monotonic()
            self.stopping.wait(period_s)


def run(
    name: str,
    body: Callable[[Process], None],
    argv: Sequence[str] | None = None,
    stop_within_s: Callable[[Settings], float] = lambda _: STOP_WITHIN_S,
) -> int:
    """Run a process: parse ``--config``, read settings, set up logs and signals, call ``body``.

    Returns
    -------
    int
        0 when the body ended, 2 for a wrong configuration. An exception of the body goes on: it is logged
        (see :mod:`appliance.logs`) and the interpreter exits with 1.
    """
    close_to_others()
    arguments = parse(name, argv)
    if arguments.number:
        name = f"{name}_{arguments.number}"
    if arguments.parent is not None:
        die_with_parent(signal.SIGTERM, arguments.parent)
    try:
        settings = load_settings(arguments.config)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.setup(settings.logging, name)
    process = Process(
        name,
        settings,
        arguments.config,
        arguments.number,
        stop_within_s=stop_within_s(settings),
        parent=arguments.parent,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopper(process))
    _LOG.info(STARTED, pid=os.getpid())
    try:
        body(process)
    finally:
        process.stopping.set()
        figures.flush(figures.folder_of(settings))
    _LOG.info(STOPPED)
    return 0


def close_to_others() -> None:
    """Let no file that this process makes be read by others, nor written by its group."""
    inherited = os.umask(0o077)
    os.umask(inherited | 0o027)  # the group may read where the administrator says so: the crossing


def parse(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a process: ``--config PATH [--parent PID] [--number N]``."""
    parser = argparse.ArgumentParser(prog=f"appliance.processes.{name}")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends")
    parser.add_argument("--number", type=int, default=0, help="which of several of its kind; 0: the first")
    return parser.parse_args(argv)


def _stopper(process: Process) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if not process.stopping.is_set():
            process.stopping.set()
            timer = threading.Timer(process.stop_within_s, _give_up, (process.stop_within_s,))
            timer.daemon = True
            timer.start()

    return stop


def _give_up(after_s: float) -> None:
    """End a process whose body did not return: its work is in rows and spools that outlive it."""
    _LOG.error(OVERDUE, after_s=after_s)
    os._exit(1)
