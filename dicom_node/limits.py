"""How much of this node's receivers one caller may take: associations at once, and instances in a minute."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.ports import Caller, Decision, Places

TOO_MANY_ASSOCIATIONS: Final = "too_many_associations"
TOO_MANY_OF_CALLER: Final = "too_many_of_this_caller"
BURST_S: Final = 10.0  # of its rate, that a caller may send at once
_SLICE_S: Final = 0.5


class NoPlaceError(DICOMNodeError):
    """There is no place for another association; ``reason`` is a code."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def next_due(due: float, now: float, per_minute: int) -> tuple[float, float]:
    """Take one instance of a rate.

    Parameters
    ----------
    due : float
        When the caller's next instance is due; what lies far back counts as the start of a burst.
    now : float
    per_minute : int
        Above zero.

    Returns
    -------
    tuple of float
        How long to wait, in seconds, and when the instance after it is due.
    """
    interval = 60.0 / per_minute
    due = max(due, now - max(BURST_S - interval, 0.0))
    return max(0.0, due - now), due + interval


def check(of_caller: int, in_all: int, max_of_caller: int, max_in_all: int) -> None:
    """Compare counts with their bounds; 0 is none.

    Raises
    ------
    NoPlaceError
    """
    if max_of_caller and of_caller >= max_of_caller:
        raise NoPlaceError(TOO_MANY_OF_CALLER)
    if max_in_all and in_all >= max_in_all:
        raise NoPlaceError(TOO_MANY_ASSOCIATIONS)


class LocalPlaces:
    """The places of a receiver that is the only one.

    Parameters
    ----------
    clock : callable
        Seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._taken: dict[int, str] = {}
        self._due: dict[str, float] = {}

    def enter(self, title: str, max_of_caller: int, max_in_all: int) -> int:
        """Take a place for an association; see :class:`dicom_node.ports.Places`."""
        with self._lock:
            of_caller = sum(known == title for known in self._taken.values())
            check(of_caller, len(self._taken), max_of_caller, max_in_all)
            place = next(self._numbers)
            self._taken[place] = title
        return place

    def leave(self, place: int) -> None:
        """Give a place back."""
        with self._lock:
            self._taken.pop(place, None)

    def pause_s(self, title: str, per_minute: int) -> float:
        """Take one instance of a caller's rate, and return how long it has to wait for that."""
        with self._lock:
            pause, self._due[title] = next_due(self._due.get(title, 0.0), self._clock(), per_minute)
        return pause


class Limits:
    """Gives each association of a receiver its place, and lets callers that are too fast wait.

    Parameters
    ----------
    places : Places
        Those of all receivers together.
    max_associations : int
        In all; 0: no bound.
    """

    def __init__(self, places: Places, max_associations: int) -> None:
        self._places = places
        self._max_associations = max_associations
        self._admitted: dict[Any, tuple[int, str, int]] = {}  # by association: place, AE title, rate

    def admit(self, association: Any, caller: Caller, decision: Decision) -> None:
        """Count an association in.

        Raises
        ------
        NoPlaceError
            When its caller, or all together, have as many as they may.
        """
        title = caller.calling_ae_title
        place = self._places.enter(title, decision.max_associations, self._max_associations)
        self._admitted[association] = place, title, decision.max_instances_per_minute

    def leave(self, association: Any) -> None:
        """Count an association out, if it was counted in."""
        place, *_ = self._admitted.pop(association, (None,))
        if place is not None:
            self._places.leave(place)

    def wait(self, association: Any, goes_on: Callable[[], bool]) -> None:
        """Wait until the caller's next instance is due; ``goes_on`` is asked now and then, and ends it."""
        _, title, per_minute = self._admitted.get(association, (0, "", 0))
        if not per_minute:
            return
        until = time.monotonic() + self._places.pause_s(title, per_minute)
        while goes_on() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
