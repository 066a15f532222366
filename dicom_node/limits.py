"""How much of this receiver one caller may take: associations at once, and instances in a minute."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.ports import Caller, Decision

_BURST_S: Final = 10.0  # of its rate, that a caller may send at once
_SLICE_S: Final = 0.5


class Limits:
    """Counts the associations of each caller, and lets those that send faster than allowed wait.

    Parameters
    ----------
    clock : callable
        Seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._admitted: dict[Any, tuple[str, int]] = {}  # by association: AE title, instances a minute
        self._due: dict[str, float] = {}  # by AE title: when its next instance would be due at its rate

    def admit(self, association: Any, caller: Caller, decision: Decision) -> bool:
        """Count an association in, unless its caller has as many as it may."""
        title = caller.calling_ae_title
        with self._lock:
            self._admitted = {one: facts for one, facts in self._admitted.items() if one.is_alive()}
            open_now = sum(known == title for known, _ in self._admitted.values())
            if decision.max_associations and open_now >= decision.max_associations:
                return False
            self._admitted[association] = title, decision.max_instances_per_minute
        return True

    def pause_s(self, association: Any) -> float:
        """Take one instance of the caller's rate, and return how long it has to wait for that."""
        with self._lock:
            title, per_minute = self._admitted.get(association, ("", 0))
            if not per_minute:
                return 0.0
            interval, now = 60.0 / per_minute, self._clock()
            due = max(self._due.get(title, 0.0), now - max(_BURST_S - interval, 0.0))
            self._due[title] = due + interval
            return max(0.0, due - now)

    def wait(self, association: Any, goes_on: Callable[[], bool]) -> None:
        """Wait until the caller's next instance is due; ``goes_on`` is asked now and then, and ends it."""
        until = self._clock() + self.pause_s(association)
        while goes_on() and (left := until - self._clock()) > 0:
            time.sleep(min(left, _SLICE_S))
