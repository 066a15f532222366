"""A round's row as work: when it starts anew, when it is announced again, how others see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from appliance.db.base import WorkState, now

if TYPE_CHECKING:
    from appliance.db.research import Round

REWAKE_S: Final = 10.0
MAX_ATTEMPTS: Final = 4
REVIVE_AFTER_S: Final = 10.0
MAX_REVIVALS: Final = 3  # of one round before its deadline


@dataclass(frozen=True)
class RoundView:
    """A round's row as the engine's process sees it; ``halted``: the gate's code where nothing may leave."""

    round_id: str
    state: str
    reason: str | None
    progress: dict[str, Any]
    samples: int
    metrics: dict[str, Any]
    train_seconds: float | None
    halted: str = ""


def view(row: Round, halted: str = "") -> RoundView:
    """Return a row as the engine's process sees it."""
    return RoundView(
        row.id,
        row.state,
        row.reason,
        dict(row.progress),
        row.samples,
        dict(row.metrics),
        row.train_seconds,
        halted,
    )


def revive(row: Round, deadline: datetime) -> bool:
    """Give a round another chance, since it is asked for again; return whether it got one.

    One that nobody worked on in time starts anew, and so does one that was halted, now that it is admitted
    again. One that died before its deadline is tried again too, a few times and not at once: the coordinator
    would give the run up before that deadline.
    """
    if _starts_anew(row):
        row.attempts, row.max_attempts = 0, MAX_ATTEMPTS
    elif _may_try_again(row):
        row.max_attempts += MAX_ATTEMPTS
    else:
        return False
    row.state, row.reason, row.next_try_at, row.halted_by = WorkState.QUEUED, None, None, None
    row.deadline_at, row.woken_at = deadline, now()
    return True


def would_revive(row: Round) -> bool:
    """Whether :func:`revive` would give this round another chance now."""
    return _starts_anew(row) or _may_try_again(row)


def _starts_anew(row: Round) -> bool:
    late = row.deadline_at is not None and row.deadline_at <= now()
    stopped = row.state == WorkState.DEAD and row.halted_by is not None
    return stopped or (late and row.state in {WorkState.QUEUED, WorkState.FAILED, WorkState.DEAD})


def is_forgotten(row: Round) -> bool:
    """Whether a queued row was announced so long ago that the message is probably lost."""
    if row.state != WorkState.QUEUED:
        return False
    return row.woken_at is None or now() - row.woken_at > timedelta(seconds=REWAKE_S)


def _may_try_again(row: Round) -> bool:
    """Whether a dead row has rested and has revivals left; each raises ``max_attempts``, which so counts."""
    rested = now() - row.updated_at >= timedelta(seconds=REVIVE_AFTER_S)
    return row.state == WorkState.DEAD and rested and row.max_attempts < MAX_ATTEMPTS * (1 + MAX_REVIVALS)
