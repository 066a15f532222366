"""The end of a receiver: associations may finish what they are at, within a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUIET_S: Final = 1.0  # an association at which nothing happened for so long is between two messages
_LOOK_EVERY_S: Final = 0.02


def end(active: Callable[[], Sequence[Any]], *, drain_s: float, grace_s: float) -> None:
    """End all associations.

    Parameters
    ----------
    active : callable
        Gives those that are open.
    drain_s : float
        Seconds in which those at work may go on until their peers release them. One without work is aborted
        at once: its peer loses nothing, and hears that it has to associate anew.
    grace_s : float
        Seconds for the abort of the others to arrive; then their connections are closed.
    """
    deadline = time.monotonic() + drain_s
    while (still := active()) and time.monotonic() < deadline:
        for association in still:
            if association.is_established and association.dul.is_quiet(QUIET_S):
                association.abort(block=False)
        time.sleep(_LOOK_EVERY_S)
    for association in active():
        association.abort(block=False)
    deadline = time.monotonic() + grace_s
    while active() and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    for association in active():
        association.dul.socket._shutdown_socket()  # noqa: SLF001 -- wakes a read that waits for its peer
