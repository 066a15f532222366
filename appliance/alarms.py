"""Alarms: something that staff should look at, raised once, until it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, select

from appliance import logs
from appliance.db.base import now
from appliance.db.clinical import Alarm
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

ACKNOWLEDGED: Final = "alarm.acknowledged"
RAISED: Final = "alarm.raised"
OVER: Final = "alarm.over"

_LOG = logs.logger(__name__)


class AlarmError(ApplianceError):
    """An alarm that cannot be acknowledged."""


def still_open(session: Session, kind: str | None = None) -> list[Alarm]:
    """Return the alarms that are not over, oldest first."""
    statement = select(Alarm).where(Alarm.over_at.is_(None)).order_by(Alarm.raised_at, Alarm.id)
    return list(session.scalars(statement if kind is None else statement.where(Alarm.kind == kind)))


def raise_once(
    session: Session, kind: str, subject: str, detail: Mapping[str, Any], at: datetime | None = None
) -> bool:
    """Raise an alarm in the caller's writing transaction; return False where it is raised already."""
    subject = subject[:80]
    same = (Alarm.kind == kind, Alarm.subject == subject, Alarm.over_at.is_(None))
    if session.scalar(select(Alarm.id).where(*same)) is not None:
        return False
    alarm = Alarm(kind=kind, subject=subject, detail=dict(detail), raised_at=at or now())
    session.add(alarm)
    session.flush()
    _LOG.warning(RAISED, alarm_id=alarm.id, kind=kind)
    return True


def end(alarm: Alarm, at: datetime) -> None:
    """Say that what the alarm was about is over."""
    alarm.over_at = at
    _LOG.info(OVER, alarm_id=alarm.id, kind=alarm.kind)


def acknowledge(session: Session, ledger: Ledger, alarm_id: str, actor: str) -> None:
    """Note that a person has seen an alarm; it stays until it is over.

    Raises
    ------
    AlarmError
        When there is no such alarm, or somebody has acknowledged it.
    """
    alarm = session.get(Alarm, alarm_id)
    if alarm is None:
        raise AlarmError("there is no such alarm")
    if alarm.acknowledged_by is not None:
        raise AlarmError("the alarm is acknowledged already")
    alarm.acknowledged_by = actor
    ledger.append(session, kind=ACKNOWLEDGED, subject_id=alarm.id, body={"kind": alarm.kind}, actor=actor)


def forget(session: Session, before: datetime) -> None:
    """Forget alarms that were over before a moment, in the caller's writing transaction."""
    session.execute(delete(Alarm).where(Alarm.over_at < before))
