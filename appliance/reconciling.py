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

REWAKE_S: Final = 15.0  # after which an empty queue means that a message was lost
REWAKE_ANYWAY_S: Final = 600.0  # after which a row is announced again whatever waits in its queue
QUEUE_FULL: Final = 20_000  # messages; more announcements help nobody and could fill the broker
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
    wake: Callable[..., bool],
    at: datetime,
    backlog: Callable[[str], int | None] | None = None,
) -> Counts:
    """Put right what messages and workers lost; call it at boot and at least every minute.

    Rows of dead workers and expired leases are queued again (or dead after their last attempt), rows past
    their deadline become dead, failed rows whose time has come are queued, and queued rows that no message
    announces any more are announced again: fifteen seconds later when their queue is empty, ten minutes later
    in any case.

    Parameters
    ----------
    engine : Engine
    model : WorkModel
    wake : callable
        ``zone.wake``: called with kind and id for jobs, with the id for rounds, after the commit; says
        whether the message was sent.
    at : datetime
        The present moment.
    backlog : callable or None
        Returns how many messages wait in the queue of a kind of work; None when nobody can say or nobody
        works on that kind here, and then none of it is announced.
    """
    table = table_of(model)
    requeued, dead = _put_right(engine, table, at)
    woken = _announce(engine, model, wake, at, backlog or (lambda _: 0))
    if requeued or dead:
        _LOG.info(RECONCILED, table=table.name, requeued=requeued, woken=woken, dead=dead)
    return Counts(requeued, woken, dead)


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


def not_announced(engine: Engine, model: WorkModel, ids: Sequence[str]) -> None:
    """Note that no message was sent for these rows, so that the next reconciliation sends one."""
    table = table_of(model)
    with writing(engine) as session:
        waiting = table.c.state == WorkState.QUEUED
        session.execute(update(table).where(table.c.id.in_(ids), waiting).values(woken_at=None))


def _announce(
    engine: Engine,
    model: WorkModel,
    wake: Callable[..., bool],
    at: datetime,
    backlog: Callable[[str], int | None],
) -> int:
    """Announce rows that nobody may know of; return how many. The first failure of a kind ends its turn."""
    table = table_of(model)
    rows = _to_announce(engine, table, at, backlog)
    if not rows:
        return 0
    with writing(engine) as session:
        session.execute(update(table).where(table.c.id.in_([row.id for row in rows])).values(woken_at=at))
    stopped: set[str] = set()
    unsent: list[str] = []
    for row in rows:
        arguments = (row.kind, row.id) if issubclass(model, JobMixin) else (row.id,)
        if row.kind in stopped or not wake(*arguments):
            stopped.add(row.kind)
            unsent.append(row.id)
    if unsent:
        not_announced(engine, model, unsent)
    return len(rows) - len(unsent)


def _to_announce(
    engine: Engine, table: Table, at: datetime, backlog: Callable[[str], int | None]
) -> Sequence[Row[Any]]:
    queued = table.c.state == WorkState.QUEUED
    with reading(engine) as session:
        kinds = session.scalars(select(table.c.kind).where(queued).distinct()).all()
    waiting = {kind: backlog(kind) for kind in kinds}
    due = [
        and_(
            table.c.kind == kind,
            or_(
                table.c.woken_at.is_(None),
                table.c.woken_at <= at - timedelta(seconds=REWAKE_ANYWAY_S if messages else REWAKE_S),
            ),
        )
        for kind, messages in waiting.items()
        if messages is not None and messages < QUEUE_FULL
    ]
    if not due:
        return []
    statement = (
        select(table)
        .where(queued, or_(*due))
        .order_by(table.c.priority, table.c.created_at)
        .limit(RECONCILE_LIMIT)
    )
    with reading(engine) as session:
        return session.execute(statement).all()
