"""The process tree under this process: who is in it, and how much memory it takes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final, Self

_PROC: Final = Path("/proc")
_KIB_PER_MIB: Final = 1024
_PAUSE_PER_LOOK: Final = 10


def descendants(root: int | None = None, without: frozenset[int] = frozenset()) -> list[int]:
    """Return the process ids of all descendants of a process (ours by default), zombies included.

    Those in ``without`` are left out, with all that is below them.
    """
    children: dict[int, list[int]] = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdigit():
            parent = _parent(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [os.getpid() if root is None else root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in without:
                found.append(child)
                waiting.append(child)
    return found


def pss_kib(pid: int) -> int:
    """Return a process's proportional set size (its share of shared pages included), 0 when it is gone."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def name_of(pid: int) -> str:
    """Return the module or program that a process runs, for people."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    text = [word.decode("utf-8", "replace") for word in words if word]
    own = _own_name(pid)
    if own and not own.startswith(("python", "cloister")):
        return own
    if "-m" in text[:-1]:
        return text[text.index("-m") + 1]
    return Path(text[0]).name if text else "ended"


def _own_name(pid: int) -> str:
    """Return the name that a process gave itself (prctl(2), PR_SET_NAME), or that of its program."""
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


class PeakMemory:
    """Watches the summed PSS of this process and its descendants; a context manager.

    Parameters
    ----------
    interval_s : float
        Between two looks; more where a look takes over a tenth of it, since the kernel walks all pages.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.peak_mib = 0.0
        self.processes = 0
        self.at_peak: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def look(self) -> float:
        """Look now; return the sum in MiB."""
        pids = [os.getpid(), *descendants()]
        shares = {pid: pss_kib(pid) / _KIB_PER_MIB for pid in pids}
        total = sum(shares.values())
        if total > self.peak_mib:
            self.peak_mib = total
            self.processes = len(pids)
            by_name: dict[str, float] = {}
            for pid, mib in shares.items():
                name = name_of(pid)
                by_name[name] = round(by_name.get(name, 0.0) + mib, 1)
            self.at_peak = dict(sorted(by_name.items(), key=lambda item: -item[1]))
        return total

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._done.wait(pause_s):
            began = time.thread_time()
            self.look()
            pause_s = max(self._interval_s, _PAUSE_PER_LOOK * (time.thread_time() - began))
