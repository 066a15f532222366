"""A bound on the speed of what is sent or fetched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_PAUSE_S: Final = 1.0


def _nothing() -> None:
    """Do nothing while waiting."""


class Throttle:
    """Holds bytes back so that no more than so many pass in a second.

    Parameters
    ----------
    max_kib_per_s : int
        0: no bound.
    while_waiting : callable
        Called at least once a second while bytes are held back, such as to say that the work goes on.
    """

    def __init__(self, max_kib_per_s: int, while_waiting: Callable[[], None] = _nothing) -> None:
        self._bytes_per_s = max_kib_per_s * 1024
        self._while_waiting = while_waiting
        self._due_at = time.monotonic()

    def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        if not self._bytes_per_s:
            return
        now = time.monotonic()
        self._due_at = max(self._due_at, now - 1.0) + count / self._bytes_per_s
        while (left_s := self._due_at - time.monotonic()) > 0:
            self._while_waiting()
            time.sleep(min(left_s, _LONGEST_PAUSE_S))
