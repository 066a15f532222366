"""The reconciler: puts right what messages and workers lost, so that nothing stays "running" for ever."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, Row, Table, and_, or_, select, update

from appliance import logs, owners
from appliance.db.base import JobMixin, WorkState
from appliance.db.engine import reading, writing
from appliance.db.work_tables import WorkModel, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

REWAKE_S: Final = 15.0
RECONCILE_LIMIT: Final = 500
RECONCILED: Final = "work.reconciled"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Counts:
    """What one reconciliation did."""

    requeued: int  # taken back from dead workers and expired leases
    woken: int
    dead: int


def reconcile(
    engine: Engine,
    model: WorkModel,
    wake: Callable[..., None],
    at: datetime,
    backlog: Callable[[], int | None] | None = None,
) -> Counts:
    """Put right what messages and workers lost; call it at boot and at least every minute.

    Rows of dead workers and expired leases are queued again (or dead after their last attempt), rows past
    their deadline become dead, failed rows whose time has come are queued, and queued rows that no message
    announces any more are announced again.

    Parameters
    ----------
    engine : Engine
    model : WorkModel
    wake : callable
        ``zone.wake``: called with kind and id for jobs, with the id for rounds, after the commit.
    at : datetime
        The present moment.
    backlog : callable or None
        Returns how many messages wait in the broker: while some do, no row is announced a second time; None
        when the broker is away, and then nothing is announced.
    """
    table = table_of(model)
    requeued, dead = _put_right(engine, table, at)
    waiting = backlog() if backlog is not None else 0
    announce = [] if waiting is None else _to_announce(engine, table, at, forgotten_too=waiting == 0)
    if announce:
        with writing(engine) as session:
            ids = [row.id for row in announce]
            session.execute(update(table).where(table.c.id.in_(ids)).values(woken_at=at))
    for row in announce:
        wake(row.kind, row.id) if issubclass(model, JobMixin) else wake(row.id)
    if requeued or dead:
        _LOG.info(RECONCILED, table=table.name, requeued=requeued, woken=len(announce), dead=dead)
    return Counts(requeued, len(announce), dead)


def _put_right(engine: Engine, table: Table, at: datetime) -> tuple[int, int]:
    """Take back lost rows, bury late ones, queue those whose next try has come; return (queued, buried)."""
    with reading(engine) as session:
        running = session.execute(select(table).where(table.c.state == WorkState.RUNNING)).all()
    lost = [
        row
        for row in running
        if row.lease_until is None or row.lease_until < at or owners.is_dead(row.lease_owner)
    ]
    requeued = 0
    with writing(engine) as session:
        dead = bury_late(session, table, at)
        for row in lost:
            taken, died = _take_back(session, table, row, at)
            requeued, dead = requeued + taken, dead + died
        session.execute(
            update(table)
            .where(table.c.state == WorkState.FAILED, table.c.next_try_at <= at)
            .values(state=WorkState.QUEUED, woken_at=None, next_try_at=None)
        )
    return requeued, dead


def bury_late(session: Session, table: Table, at: datetime) -> int:
    """Make waiting rows dead whose deadline has passed; return how many."""
    waiting = table.c.state.in_([WorkState.QUEUED, WorkState.FAILED])
    statement = (
        update(table)
        .where(waiting, table.c.deadline_at <= at)
        .values(state=WorkState.DEAD, reason="its deadline passed")
        .returning(table.c.id)
    )
    return len(session.execute(statement).all())


def _take_back(session: Session, table: Table, row: Row[Any], at: datetime) -> tuple[int, int]:
    """Queue a lost row again, or bury it after its last attempt; return (queued, buried)."""
    late = row.deadline_at is not None and row.deadline_at <= at
    over = row.attempts >= row.max_attempts or late
    reason = "its worker died or stopped reporting"
    values = {"state": WorkState.DEAD if over else WorkState.QUEUED, "reason": reason}
    held = and_(
        table.c.id == row.id, table.c.state == WorkState.RUNNING, table.c.lease_owner == row.lease_owner
    )
    unrenewed = (
        table.c.lease_until == row.lease_until
        if row.lease_until is not None
        else table.c.lease_until.is_(None)
    )
    statement = (
        update(table)
        .where(held, unrenewed)
        .values(**values, lease_owner=None, lease_until=None, woken_at=None)
        .returning(table.c.id)
    )
    if session.execute(statement).first() is None:
        return 0, 0
    return (0, 1) if over else (1, 0)


def _to_announce(engine: Engine, table: Table, at: datetime, *, forgotten_too: bool) -> Sequence[Row[Any]]:
    fresh = table.c.woken_at.is_(None)
    forgotten = table.c.woken_at <= at - timedelta(seconds=REWAKE_S)
    condition = or_(fresh, forgotten) if forgotten_too else fresh
    statement = (
        select(table)
        .where(table.c.state == WorkState.QUEUED, condition)
        .order_by(table.c.priority, table.c.created_at)
        .limit(RECONCILE_LIMIT)
    )
    with reading(engine) as session:
        return session.execute(statement).all()
