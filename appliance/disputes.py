"""Whose study it is: a person keeps what is stored, or takes what waits in quarantine instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, func, or_, select

from appliance import merges, quarantine, retention
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, QuarantineItem, Study
from appliance.db.engine import writing
from appliance.erasing import ERASE
from appliance.quarantine import QuarantineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

KEPT: Final = "dispute.kept_stored"
TAKEN: Final = "dispute.taken_quarantined"


def waiting(session: Session, study_id: str) -> int:
    """Return how many instances in quarantine say otherwise whose study this is."""
    return session.scalar(select(func.count()).where(*_of(study_id))) or 0


def keep_stored(zone: ClinicalZone, study_id: str, *, actor: str) -> int:
    """Discard what says otherwise whose study this is; the study goes on. Return how many items.

    Raises
    ------
    QuarantineError
        If nothing of it waits.
    """
    with writing(zone.engine) as session:
        items = _items(session, study_id)
        for item in items:
            quarantine.discard(session, zone.ledger, item.id, "wrong_patient", actor=actor)
        zone.ledger.append(session, kind=KEPT, subject_id=study_id, body={"items": len(items)}, actor=actor)
    return len(items)


def take_quarantined(zone: ClinicalZone, study_id: str, *, actor: str) -> int:
    """Delete what is stored of a study, with its results, and file what waits; return how many items.

    For a merge or a correction at the source that came again with other identifiers. Results that were
    delivered before stay where they are.

    Raises
    ------
    QuarantineError
        If nothing of it waits, or work on the study is going on.
    """
    with writing(zone.engine) as session:
        study = session.scalar(select(Study).where(Study.id == study_id).with_for_update())
        items = _items(session, study_id)
        if study is None or _is_busy(session, study_id):
            raise QuarantineError("work on the study is going on; try again in a moment")
        for item in items:
            quarantine.file_again(session, zone.ledger, item.id, actor=actor)
        zone.ledger.append(session, kind=TAKEN, subject_id=study_id, body={"items": len(items)}, actor=actor)
        job_id = retention.delete_rows(zone, session, study_id, {"by": "person"}, actor=actor)
    zone.wake(ERASE, job_id)
    return len(items)


def _items(session: Session, study_id: str) -> Sequence[QuarantineItem]:
    items = session.scalars(select(QuarantineItem).where(*_of(study_id))).all()
    if not items:
        raise QuarantineError("nothing in quarantine says otherwise whose study it is")
    return items


def _of(study_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        QuarantineItem.study_id == study_id,
        QuarantineItem.reason_code.in_(merges.DISPUTES),
        QuarantineItem.resolved_at.is_(None),
        QuarantineItem.resolution == "",
    )


def _is_busy(session: Session, study_id: str) -> bool:
    jobs = retention.jobs_of(session, study_id)
    running = select(ClinicalJob.id).where(
        ClinicalJob.id.in_(jobs),
        ClinicalJob.state == WorkState.RUNNING,
        or_(ClinicalJob.lease_until.is_(None), ClinicalJob.lease_until > now()),
    )
    return session.scalar(running.limit(1)) is not None
