"""When a study counts as complete: after a quiet period, or after a longest wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True)
class Waits:
    """How long the studies of a source are waited for."""

    quiet_period_s: float
    max_wait_s: float


def longest(waits: Iterable[Waits], default: Waits) -> Waits:
    """Join the waits of several sources of one study: the slowest of them decides; none: the default."""
    known = list(waits) or [default]
    return Waits(max(one.quiet_period_s for one in known), max(one.max_wait_s for one in known))


def is_complete(
    first_received_at: datetime,
    last_received_at: datetime,
    now: datetime,
    quiet_period_s: float,
    max_wait_s: float,
) -> bool:
    """Say whether nothing came for the quiet period, or the study waited long enough.

    DICOM has no end of a study on the wire (PS3.4 annex B knows instances alone), so time decides.
    A clock that was set back makes neither test true; the study then waits for the clock.

    Parameters
    ----------
    first_received_at, last_received_at : datetime
        Of the instances that no revision holds yet.
    now : datetime
        The moment up to which everything received is known.
    """
    quiet_s = (now - last_received_at).total_seconds()
    waited_s = (now - first_received_at).total_seconds()
    return quiet_s >= quiet_period_s or waited_s >= max_wait_s
