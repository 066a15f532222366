"""Work as rows: enqueue once, claim with a lease, heartbeat, finish or fail, reconcile.

The row is the truth. A Celery message only wakes a worker up; it may be lost or come twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Engine, Row, Table, and_, event, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from appliance import logs, owners
from appliance.db import faults
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.work_tables import JobModel, WorkModel, table_of
from appliance.errors import ApplianceError
from appliance.reconciling import Counts, bury_late, reconcile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy.orm import Session

__all__ = [
    "Claim",
    "Counts",
    "JobModel",
    "LeaseLostError",
    "WorkModel",
    "backoff_s",
    "candidates",
    "claimed",
    "enqueue",
    "reconcile",
    "retry",
]

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 900.0

CLAIM_LOST: Final = "work.claim_lost"
WORK_FAILED: Final = "work.failed"
WORK_DEAD: Final = "work.dead"
OUTCOME_UNSAID: Final = "work.outcome_unsaid"  # the database failed too

_LOG = logs.logger(__name__)


class LeaseLostError(ApplianceError):
    """The row is no longer ours: the lease ran out, or a person or the reconciler took it."""


def enqueue(
    session: Session,
    model: JobModel,
    kind: str,
    subject_id: str,
    dedupe_key: str,
    priority: int = 5,
    deadline_s: float | None = None,
    max_attempts: int = 5,
) -> str | None:
    """Insert a job in the caller's writing transaction; return its id, or None when the key exists already.

    After the commit the caller wakes a worker with ``zone.wake(kind, job_id)``, else the reconciler does.
    """
    table = table_of(model)
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = (
        insert(table)
        .values(
            kind=kind,
            subject_id=subject_id,
            dedupe_key=dedupe_key,
            priority=priority,
            max_attempts=max_attempts,
            deadline_at=None if deadline_s is None else now() + timedelta(seconds=deadline_s),
        )
        .on_conflict_do_nothing(index_elements=["dedupe_key"])
        .returning(table.c.id)
    )
    found = session.execute(statement).scalar()
    return None if found is None else str(found)


def candidates(engine: Engine, model: JobModel, kinds: Iterable[str], row_id: str) -> list[str]:
    """Return which rows a message about ``row_id`` should lead to: each may be gone when it is claimed.

    The message only wakes a worker up, and queues are first in, first out. So the most urgent row of the same
    queue that waits comes first if it is more urgent, then the one that the message names, then whatever
    waits: with as many messages as rows, every row has its turn.
    """
    table = table_of(model)
    waiting = (
        select(table.c.id, table.c.priority)
        .where(table.c.kind.in_(list(kinds)), table.c.state == WorkState.QUEUED, table.c.id != row_id)
        .order_by(table.c.priority, table.c.created_at)
        .limit(1)
    )
    with reading(engine) as session:
        other = session.execute(waiting).first()
        named = session.scalar(select(table.c.priority).where(table.c.id == row_id))
    if other is None:
        return [row_id]
    if named is None or other.priority < named:
        return [other.id, row_id]
    return [row_id, other.id]


def backoff_s(attempts: int) -> float:
    """Return the seconds to wait after the given number of attempts: 5, 10, 20 ... at most 900."""
    return float(min(FIRST_RETRY_S * 2 ** max(attempts - 1, 0), LONGEST_RETRY_S))


@dataclass
class Claim:
    """A row that this process works on, until it says how that ended.

    ``row`` holds the columns as they were claimed (``kind``, ``subject_id``, ``attempts`` ...).
    """

    engine: Engine
    model: WorkModel
    row_id: str
    token: str
    lease_s: float
    row: Row[Any]
    ended: bool = False
    lease_until: datetime = field(init=False)  # as last stored

    def __post_init__(self) -> None:
        """Take the lease as it was claimed."""
        self.lease_until = self.row.lease_until

    @property
    def subject_id(self) -> str:
        """Row id of what the work is about."""
        return str(self.row.subject_id)

    @property
    def last_attempt(self) -> bool:
        """Whether a failure now makes the row dead."""
        return bool(self.row.attempts >= self.row.max_attempts)

    def heartbeat(self, progress: dict[str, Any] | None = None, **columns: Any) -> None:
        """Renew the lease and, if given, store progress and other columns of the row.

        Raises
        ------
        LeaseLostError
            If the row is no longer ours; stop working then.
        """
        until = now() + timedelta(seconds=self.lease_s)
        values: dict[str, Any] = {**columns, "lease_until": until}
        if progress is not None:
            values["progress"] = progress
        self._change(values)
        self.lease_until = until

    def finish(self, session: Session | None = None, *, note: str | None = None) -> None:
        """Mark the row done; with ``session`` in the caller's writing transaction, beside its results.

        ``note`` says what a person should know of it all the same, and is shown where reasons are.

        Raises
        ------
        LeaseLostError
            If the row is no longer ours; the caller's transaction must not commit.
        """
        self._end({"state": WorkState.DONE, "reason": note}, session)

    def fail(self, reason: str, retry_in_s: float | None = None) -> None:
        """Mark the row failed, to be tried again later; after the last attempt it is dead.

        Parameters
        ----------
        reason : str
            What went wrong, without any patient's value; staff read it.
        retry_in_s : float or None
            When to try again; None backs off exponentially.
        """
        if self.last_attempt:
            self.die(reason)
            return
        wait_s = backoff_s(self.row.attempts) if retry_in_s is None else retry_in_s
        _LOG.warning(
            WORK_FAILED, row_id=self.row_id, attempts=self.row.attempts, reason=reason, retry_in_s=wait_s
        )
        next_try = now() + timedelta(seconds=wait_s)
        self._end({"state": WorkState.FAILED, "reason": reason, "next_try_at": next_try})

    def postpone(self, reason: str, retry_in_s: float, session: Session | None = None) -> None:
        """Put the row back for a while because something else comes first; this was no attempt."""
        values = {"state": WorkState.FAILED, "reason": reason, "attempts": self.row.attempts - 1}
        self._end({**values, "next_try_at": now() + timedelta(seconds=retry_in_s)}, session)

    def die(self, reason: str, session: Session | None = None) -> None:
        """Mark the row dead, with ``session`` as :meth:`finish` does: a person decides."""
        _LOG.error(WORK_DEAD, row_id=self.row_id, attempts=self.row.attempts, reason=reason)
        self._end({"state": WorkState.DEAD, "reason": reason}, session)

    def _end(self, values: dict[str, Any], session: Session | None = None) -> None:
        self._change({**values, "lease_owner": None, "lease_until": None}, session)
        if session is None:
            self.ended = True
        else:
            event.listen(session, "after_commit", self._committed, once=True)

    def _committed(self, session: Session) -> None:
        del session
        self.ended = True

    def _change(self, values: dict[str, Any], session: Session | None = None) -> None:
        table = table_of(self.model)
        ours = and_(
            table.c.id == self.row_id, table.c.lease_owner == self.token, table.c.state == WorkState.RUNNING
        )
        statement = update(table).where(ours).values(**values).returning(table.c.id)
        if session is not None:
            held = session.execute(statement).first()
        else:
            with writing(self.engine) as own:
                held = own.execute(statement).first()
        if held is None:
            raise LeaseLostError(f"{table.name} {self.row_id}: the lease was lost")


class claimed(AbstractContextManager["Claim | None"]):  # noqa: N801 - read as: with claimed(...)
    """Claim a row for the length of a ``with`` block; gives None when there is nothing to do.

    There is nothing to do when the row is done, dead, running elsewhere, waiting for its next try or unknown.
    An exception that leaves the block is stored as a failure (class, and the message only of our own errors)
    and goes no further, a block that ends without an outcome as well: nothing counts as done unsaid.

    Parameters
    ----------
    engine : Engine
    model : WorkModel
    row_id : str
    owner : str
        Role of this process, for people; the process itself is identified besides.
    lease_s : float
        After so long without a heartbeat others may take the row.
    """

    def __init__(self, engine: Engine, model: WorkModel, row_id: str, owner: str, lease_s: float) -> None:
        self._engine = engine
        self._model = model
        self._row_id = row_id
        self._token = owners.token(owner)
        self._lease_s = lease_s
        self._claim: Claim | None = None

    def __enter__(self) -> Claim | None:
        """Claim."""
        with writing(self._engine) as session:
            row = _take(session, table_of(self._model), self._row_id, self._token, self._lease_s)
        if row is not None:
            self._claim = Claim(self._engine, self._model, self._row_id, self._token, self._lease_s, row)
        return self._claim

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Store the outcome of a block that did not say how it ended."""
        claim = self._claim
        swallow = error is None or isinstance(error, Exception)
        if isinstance(error, LeaseLostError):
            _LOG.warning(CLAIM_LOST, row_id=self._row_id, reason=str(error))
        elif claim is not None and not claim.ended:
            self._fail(claim, error)
        elif error is not None:
            _LOG.error(WORK_FAILED, row_id=self._row_id, exc_info=error)
        return swallow

    def _fail(self, claim: Claim, error: BaseException | None) -> None:
        try:
            if error is None:
                claim.fail("the work ended without an outcome")
            elif isinstance(error, Exception):
                _LOG.error(WORK_FAILED, row_id=self._row_id, exc_info=error)
                claim.fail(logs.safe_reason(error))
            else:
                claim.fail("interrupted", retry_in_s=0)
        except LeaseLostError as lost:
            _LOG.warning(CLAIM_LOST, row_id=self._row_id, reason=str(lost))
        except faults.PASSING as failure:  # the reconciler takes the row when its lease is over
            _LOG.error(OUTCOME_UNSAID, row_id=self._row_id, reason=faults.name_of(failure))


def retry(session: Session, model: WorkModel, row_id: str) -> bool:
    """Queue a dead or failed row again with all its attempts; return whether it was one.

    Wake it after the commit.
    """
    table = table_of(model)
    statement = (
        update(table)
        .where(table.c.id == row_id, table.c.state.in_([WorkState.DEAD, WorkState.FAILED]))
        .values(
            state=WorkState.QUEUED,
            attempts=0,
            reason=None,
            next_try_at=None,
            woken_at=None,
            deadline_at=None,
            lease_owner=None,
            lease_until=None,
        )
        .returning(table.c.id)
    )
    return session.execute(statement).first() is not None


def _take(session: Session, table: Table, row_id: str, token: str, lease_s: float) -> Row[Any] | None:
    """Claim by one guarded UPDATE; the guard holds the owner that we saw, so a race has one winner."""
    at = now()
    seen = session.execute(select(table).where(table.c.id == row_id)).first()
    if seen is None:
        return None
    if seen.deadline_at is not None and seen.deadline_at <= at:
        bury_late(session, table, at)
        return None
    if seen.attempts >= seen.max_attempts:
        return None  # a running one is the reconciler's to bury
    available: list[ColumnElement[bool]] = [
        table.c.state == WorkState.QUEUED,
        and_(table.c.state == WorkState.FAILED, table.c.next_try_at <= at),
        and_(table.c.state == WorkState.RUNNING, table.c.lease_until < at),
    ]
    if owners.is_dead(seen.lease_owner):
        available.append(and_(table.c.state == WorkState.RUNNING, table.c.lease_owner == seen.lease_owner))
    return session.execute(
        update(table)
        .where(table.c.id == row_id, or_(*available))
        .values(
            state=WorkState.RUNNING,
            lease_owner=token,
            lease_until=at + timedelta(seconds=lease_s),
            attempts=table.c.attempts + 1,
            next_try_at=None,
        )
        .returning(*table.c)
    ).first()
