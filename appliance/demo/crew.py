"""The processes that the demonstration starts: each in a session of its own, all ended together.

A child subreaper: what a child leaves behind becomes our child, so nobody escapes (prctl(2)).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from appliance import forking
from appliance.children import adopt_orphans, die_with_parent
from appliance.demo.proc import descendants, name_of
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Many small processes on few cores: one thread and one allocator arena each.
LEAN: Final = {**forking.LEAN, "OMP_NUM_THREADS": "1"}
POLITE_S: Final = 7.0
FORCED_S: Final = 2.0


class CrewError(ApplianceError):
    """A process ended that should run, or failed at what it was to do."""


@dataclass
class Member:
    """One started process; what it writes to standard output and error lies in two files."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path
    log: Path
    standing: bool = False

    def check(self) -> None:
        """Raise CrewError if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise CrewError(f"{self.name} ended with {code}; its log is {self.log}")

    def lines(self) -> list[str]:
        """Return the complete lines that it wrote to standard output so far."""
        text = self.out.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()


@dataclass
class Crew:
    """Starts processes and ends them, grandchildren included; a context manager.

    Parameters
    ----------
    logs : Path
        Folder that receives ``NAME.out`` and ``NAME.log``.
    """

    logs: Path
    members: list[Member] = field(default_factory=list)
    _others: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        adopt_orphans()
        self._others = frozenset(descendants())
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def standing(self) -> list[Member]:
        """Those that are to run until the end."""
        return [member for member in self.members if member.standing]

    def start(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        standing: bool = False,
    ) -> Member:
        """Start ``python ARGV`` and return at once; it gets SIGTERM should we die.

        A ``standing`` one is to run until the end: see :attr:`standing`.
        """
        out, log = self.logs / f"{name}.out", self.logs / f"{name}.log"
        us = os.getpid()
        with out.open("wb") as stdout, log.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, **LEAN, **(environment or {})},
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, us),  # noqa: PLW1509 - one prctl call
            )
        member = Member(name, process, out, log, standing)
        self.members.append(member)
        return member

    def run(self, name: str, argv: Sequence[str], timeout_s: float) -> str:
        """Run ``python ARGV`` to its end and return its standard output.

        Raises
        ------
        CrewError
            If it fails, or is not done in time: it is then killed.
        """
        return self.result(self.start(name, argv), timeout_s)

    def result(self, member: Member, timeout_s: float) -> str:
        """Wait for a program to end and return its standard output; raises like :meth:`run`."""
        name = member.name
        try:
            code = member.process.wait(timeout=max(timeout_s, 0.1))
        except subprocess.TimeoutExpired as error:
            self._signal(member, signal.SIGKILL)
            raise CrewError(
                f"{name} was not done after {timeout_s:.0f} s; its log is {member.log}"
            ) from error
        finally:
            if member.process.poll() is not None:
                self.members.remove(member)
        if code != 0:
            tail = member.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise CrewError(f"{name} ended with {code}; its log is {member.log} ({' '.join(tail)[:300]})")
        return member.out.read_text(encoding="utf-8")

    def stop(self) -> list[str]:
        """End everything within 9 s: SIGTERM to those we started, then SIGKILL to whoever is left.

        Children that this process had before are left alone.

        Returns
        -------
        list of str
            What had to be killed.
        """
        for member in self.members:
            if member.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    member.process.terminate()
        deadline = time.monotonic() + POLITE_S
        while time.monotonic() < deadline and self._left():
            time.sleep(0.05)
        killed = []
        deadline = time.monotonic() + FORCED_S
        while time.monotonic() < deadline and (left := self._left()):
            for pid in left:
                killed.append(name_of(pid))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.members.clear()
        return killed

    def _left(self) -> list[int]:
        """Reap what has ended and return the descendants that have not."""
        for member in self.members:
            member.process.poll()
        ours = {member.process.pid for member in self.members}
        for pid in descendants(without=self._others):
            if pid not in ours:  # an orphan that came to us, or a grandchild that is not ours to reap
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return [pid for pid in descendants(without=self._others) if not _is_zombie(pid)]

    def _signal(self, member: Member, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(member.process.pid, number)
        member.process.wait(timeout=5)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
