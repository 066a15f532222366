"""Processes that de-identify files side by side; one that dies is noticed and replaced.

They are started as ``python -m``, not forked and not by importing the caller's main module again, so that any
program can use them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anonymizer.batch.messages import FAILED, Answer, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.batch.worker import Setting

_TRIES: Final = 2
_FAREWELL_S: Final = 5.0
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]


class _Member:
    """A process and the task that it has."""

    def __init__(self, setting: Setting) -> None:
        self.connection, theirs = Pipe()
        environment = dict(os.environ)
        paths = [str(_PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        # NumPy's and SciPy's own threads would wait for those of the other processes.
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        # -P: the current folder may be IN, whose files are no modules.
        argv = [sys.executable, "-P", "-m", "anonymizer.batch.worker", str(theirs.fileno())]
        shared = (theirs.fileno(), setting.source, setting.target, setting.staging)
        self.process = subprocess.Popen(  # in a session of its own, since Ctrl-C is the run's to handle
            argv, pass_fds=shared, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self.task: Task | None = None
        self.send(setting)

    def send(self, message: object) -> None:
        """Send; that the process is dead is found out when its answer is read."""
        try:
            self.connection.send(message)
        except OSError:
            return

    def stop(self) -> int:
        """End the process at once and return its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Crew:
    """Runs tasks in ``jobs`` processes."""

    def __init__(self, setting: Setting, jobs: int) -> None:
        self._setting = setting
        self._members = [_Member(setting) for _ in range(jobs)]
        self._waiting: deque[Task] = deque()
        self._tries: dict[int, int] = {}

    @property
    def outstanding(self) -> int:
        """How many tasks have no answer yet."""
        return len(self._waiting) + sum(member.task is not None for member in self._members)

    def add(self, task: Task) -> None:
        """Take a task."""
        self._waiting.append(task)

    def answers(self) -> Iterator[Answer]:
        """Hand out tasks, wait until something happened, and yield the answers that came."""
        for member in self._members:
            if member.task is None and self._waiting:
                member.task = self._waiting.popleft()
                member.send(member.task)
        by_connection = {member.connection: member for member in self._members if member.task is not None}
        for ready in wait(list(by_connection)):
            if isinstance(ready, Connection):
                yield from self._answer(by_connection[ready])

    def _answer(self, member: _Member) -> Iterator[Answer]:
        try:
            answer = Answer.decode(member.connection.recv_bytes())
        except (EOFError, OSError):
            yield from self._replaced(member)
            return
        member.task = None
        self._tries.pop(answer.number, None)
        yield answer

    def _replaced(self, member: _Member) -> Iterator[Answer]:
        """Start a process in place of one that died; its file has one more try."""
        try:
            member.process.wait(timeout=_FAREWELL_S)
        except subprocess.TimeoutExpired:
            member.process.kill()
        status, task = member.stop(), member.task
        self._members[self._members.index(member)] = _Member(self._setting)
        if task is None:
            return
        tries = self._tries[task.number] = self._tries.get(task.number, 0) + 1
        if tries < _TRIES:
            self._waiting.appendleft(task)
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        reason = f"the process that read this file died twice ({how})"
        yield Answer(task.number, FAILED, "process_died", reason)

    def close(self) -> None:
        """End all processes at once."""
        for member in self._members:
            member.stop()
