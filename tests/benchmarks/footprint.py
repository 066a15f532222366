"""What processes of a federation hold in memory and what its wires carry, looked at while it works."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.appliance.federation.wire import Wire

LOOK_EVERY_S: Final = 0.5
# What a process shares is counted page by page: at each look that took a tenth of two processors.
SHARES_EVERY: Final = 5
KIB_PER_MIB: Final = 1024
Processes = dict[str, dict[str, list[int]]]
"""Place (a site's name, or ``coordinator``) to role to process numbers."""


@dataclass(frozen=True)
class Memory:
    """One process, in MiB: resident, the largest so far, its own anonymous pages.

    ``processor_s``: what it computed so far.
    """

    resident: float
    largest: float
    anonymous: float
    processor_s: float


@dataclass
class Footprint:
    """Looks at every process and wire while a run goes on.

    Attributes
    ----------
    peaks : dict
        Largest resident set of any process of a role, in MiB, shared pages counted whole.
    together : dict
        Largest sum over a place's processes at one moment, in MiB, each shared page counted once.
    """

    processes: Callable[[], Processes]
    wires: Mapping[str, Wire]
    look_every_s: float = LOOK_EVERY_S
    peaks: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    together: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self._looks: dict[tuple[str, int], list[tuple[float, float, float]]] = defaultdict(list)
        self._carried: list[tuple[float, int, int]] = []
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="footprint")

    def __enter__(self) -> Self:
        for roles in self.processes().values():
            for pid in (pid for pids in roles.values() for pid in pids):
                forget_peak(pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._count = 0
        self._look()  # what the last round's end has left

    def _keep_looking(self) -> None:
        while not self._over.wait(self.look_every_s):
            self._look()

    def _look(self) -> None:
        at = time.time()
        wires = self.wires.values()
        self._carried.append((at, sum(w.bytes_up for w in wires), sum(w.bytes_down for w in wires)))
        with_shares = self._count % SHARES_EVERY == 0
        self._count += 1
        for place, roles in self.processes().items():
            for role, pids in roles.items():
                for pid in pids:
                    self._look_at(at, role, pid)
            if with_shares:
                together = sum(share_of(pid) for pids in roles.values() for pid in pids)
                self.together[place] = max(self.together[place], together)

    def _look_at(self, at: float, role: str, pid: int) -> None:
        memory = memory_of(pid)
        if memory is not None:
            self.peaks[role] = max(self.peaks[role], memory.largest)
            self._looks[role, pid].append((at, memory.anonymous, memory.processor_s))

    def bytes_per_round(self, ends: list[float]) -> tuple[float, float]:
        """Return what a site sent and received per round, between the ends of the first and last round.

        Parameters
        ----------
        ends : list of float
            When rounds ended, in seconds since the epoch; two at least.
        """
        at, up, down = np.array(self._carried).T
        count = (len(ends) - 1) * len(self.wires)
        carried = [np.interp(ends[-1], at, total) - np.interp(ends[0], at, total) for total in (up, down)]
        return float(carried[0] / count), float(carried[1] / count)

    def processor_s_per_round(self, ends: list[float]) -> dict[str, float]:
        """Return by role what its processes computed per round: it says the same on a busy machine."""
        total: dict[str, float] = defaultdict(float)
        for (role, _), looks in self._looks.items():
            at, _, computed = np.array(looks).T
            total[role] += float(np.interp(ends[-1], at, computed) - np.interp(ends[0], at, computed))
        return {role: seconds / (len(ends) - 1) for role, seconds in total.items()}

    def slopes(self, first: float, last: float, rounds: int) -> dict[str, float]:
        """Return by role how many MiB of its own a process grew in so many rounds between two moments.

        The straight line through all looks at it decides, the steepest process stands for its role. A
        process that lived for less than half of that time says nothing and is left out.
        """
        found: dict[str, float] = {}
        for (role, _), looks in self._looks.items():
            at, size, _ = np.array([look for look in looks if first <= look[0] <= last] or [(0, 0, 0)]).T
            if np.ptp(at) >= (last - first) / 2:
                slope = float(np.polyfit(at - first, size, 1)[0]) * (last - first)
                found[role] = max(found.get(role, -np.inf), slope)
        return {role: round(slope * 100 / rounds, 1) for role, slope in sorted(found.items())}


def memory_of(pid: int) -> Memory | None:
    """Return what proc(5) says of a process; None when it has ended."""
    try:
        status = _fields(Path(f"/proc/{pid}/status"))
        times = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        computed = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        return Memory(status["VmRSS"], status["VmHWM"], status["RssAnon"], computed)
    except (OSError, KeyError, ValueError):
        return None


def share_of(pid: int) -> float:
    """Return a process's share of all pages in MiB, 0 when it has ended; the kernel looks at every page."""
    try:
        return _fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"]
    except (OSError, KeyError, ValueError):
        return 0.0


def forget_peak(pid: int) -> None:
    """Let a process's largest resident set begin anew (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _fields(path: Path) -> dict[str, float]:
    """Return the fields that are sizes, in MiB."""
    parts = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {words[0].rstrip(":"): int(words[1]) / KIB_PER_MIB for words in parts if words[-1:] == ["kB"]}
