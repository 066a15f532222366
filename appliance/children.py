"""Linux process control: children that die with their parent, orphans that come back to us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import signal
    from collections.abc import Container, Mapping

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
LARGEST_KEPT_BYTES: Final = 16 * 2**20  # with more, gaps between them cost a large model half its size
_LARGEST_PIECE_BYTES: Final = 32 * 2**20  # the C library's own limit
RETURN_EVERY_S: Final = 60.0
_NEVER: Final = 2**31 - 1


def die_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Ask the kernel to signal this process when its parent ends (prctl(2), PR_SET_PDEATHSIG).

    The kernel forgets this in a child of this process; each must ask for itself.

    Parameters
    ----------
    number : Signals
        The signal.
    parent_pid : int or None
        The parent as it was at the start; if it has ended already, the signal is sent at once.
    """
    _prctl(_PR_SET_PDEATHSIG, int(number))
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def collect_orphans(own: Container[int]) -> None:
    """Collect adopted children that have ended; not this process's ``own``, whose exit codes are wanted."""
    for pid in children_of(os.getpid()):
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def keep_freed_arrays() -> None:
    """Let this process use the memory of freed arrays again (mallopt(3)) until :func:`return_freed_memory`.

    Each step of a training frees and takes the same arrays: had they gone back to the system, taking and
    clearing their pages would double the time of a large network. A C library without that stays as it is.
    """
    _mallopt({_M_MMAP_THRESHOLD: LARGEST_KEPT_BYTES, _M_TRIM_THRESHOLD: _NEVER})


def keep_freed_pieces() -> None:
    """Let all threads of this process use the memory of freed pieces of models again (mallopt(3)).

    For processes that pass models on: a thread takes a piece in, another frees it, and had each a pool of its
    own, every piece would be new pages. Call it before there are threads.
    """
    _mallopt({_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _LARGEST_PIECE_BYTES, _M_TRIM_THRESHOLD: _NEVER})


def _mallopt(options: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def return_freed_memory() -> None:
    """Give the system what this process has freed (malloc_trim(3)); a C library without that keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_freed_memory_at_times(every_s: float = RETURN_EVERY_S) -> None:
    """Have a thread give back what a process has freed that runs for ever and passes models on."""

    def keep_returning() -> None:
        while True:
            time.sleep(every_s)
            return_freed_memory()

    threading.Thread(target=keep_returning, name="return-memory", daemon=True).start()


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended just now
            found.extend(int(word) for word in path.read_text(encoding="ascii").split())
    return found


def descendants_of(pid: int) -> list[int]:
    """Return all living descendants of a process, parents before children."""
    found: list[int] = []
    waiting = children_of(pid)
    while waiting:
        child = waiting.pop()
        found.append(child)
        waiting.extend(children_of(child))
    return found


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def send_group_signal(group: int, number: signal.Signals) -> None:
    """Signal a process group that may have ended already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def set_name(name: str) -> None:
    """Name this process for ``ps`` and ``top`` (prctl(2), PR_SET_NAME): the first 15 characters."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)
