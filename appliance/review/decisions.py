"""Decisions on what de-identification stopped: drafted, decided, confirmed by a second person, withdrawn.

A draft is tried out first: a person releases only what was shown to leave. Where ``four_eyes`` is set, a
release stands when somebody else has confirmed it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from anonymizer import verdicts
from anonymizer.errors import VerdictError
from appliance.db.base import new_id, now
from appliance.db.clinical import ClinicalJob, Decision, DecisionState, QuarantineItem, StudyRevision
from appliance.errors import ApplianceError
from appliance.quarantine import PROPOSED, RELEASING, SEEN
from appliance.review import scopes
from appliance.review.scopes import KEEP, RELEASE, STAGE, Place, place_of
from appliance.work import enqueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from anonymizer.verdicts import Verdict
    from appliance.ledger import Ledger

REVIEW: Final = "review"
MADE: Final = "decision.made"
DECISION_PROPOSED: Final = "decision.proposed"
CONFIRMED: Final = "decision.confirmed"
REFUSED: Final = "decision.refused"
WITHDRAWN: Final = "decision.withdrawn"
DONE: Final = "done"
WAITING: Final = "waiting"
RELEASED: Final = "released"
_PRIORITY: Final = 2  # a person waits for it
_OF_MACHINE: Final = frozenset({"(0008,0070)", "(0008,1090)"})  # the same in all that a scope reaches


class DecisionError(ApplianceError):
    """A decision that cannot be made; the message is for the person."""


@dataclass(frozen=True)
class Desk:
    """Where decisions are made: one transaction, the ledger, the person, and whether two are needed."""

    session: Session
    ledger: Ledger
    actor: str
    four_eyes: bool = False


def draft(desk: Desk, item_id: str, verdict: Verdict) -> str:
    """Let a verdict on an item be tried out; return the id of the job to wake.

    An item has one draft; a new one takes the place of the old.

    Raises
    ------
    DecisionError
        If the item is not open, or not one that can be released by a person.
    """
    session = desk.session
    item = _open(session, item_id)
    place = _place(session, item)
    row = session.scalar(
        select(Decision).where(
            Decision.quarantine_item_id == item.id, Decision.state == DecisionState.DRAFTED
        )
    )
    if row is None:
        row = _row(item, place)
        session.add(row)
    row.verdict = verdict.as_json()
    row.trial = {"state": WAITING, "number": row.trial.get("number", 0) + 1}
    session.flush()
    key = f"{REVIEW}:{row.id}:{row.trial['number']}"
    job_id = enqueue(session, ClinicalJob, REVIEW, row.id, key, priority=_PRIORITY, max_attempts=2)
    if job_id is None:
        raise DecisionError("it is being tried out already")
    return job_id


def decide(desk: Desk, decision_id: str, scope: str, number: int) -> list[str]:
    """Release what a draft was tried out to release; return jobs to wake, none while it waits for a second.

    Parameters
    ----------
    number : int
        Of the trial that the person saw: somebody else may have drafted anew since.

    Raises
    ------
    DecisionError
        If the trial did not release it, is not the one that was seen, or the scope is none that fits.
    """
    row = _decision(desk.session, decision_id, DecisionState.DRAFTED, "drafted")
    item = _open(desk.session, row.quarantine_item_id)
    if row.trial.get("state") != DONE or row.trial.get("outcome") != RELEASED:
        raise DecisionError("it was not shown to leave: look at what would leave first")
    if row.trial["number"] != number:
        raise DecisionError("it was drafted anew since: look at what would leave now")
    place = _place(desk.session, item)
    _check_scope(scope, place)
    if scope != scopes.INSTANCE and verdicts.parse(row.verdict).standing - _OF_MACHINE:
        raise DecisionError(
            "what says nothing of the patient here may say something elsewhere: decide for the instance"
        )
    row.outcome, row.scope = RELEASE, scope
    row.decided_by, row.decided_at = desk.actor, now()
    if desk.four_eyes:
        row.state = DecisionState.PROPOSED
        item.resolution = PROPOSED
        _record(desk, DECISION_PROPOSED, row)
        return []
    return _stand(desk, row, item, place, MADE)


def confirm(desk: Desk, decision_id: str) -> list[str]:
    """Agree to a proposed release, as another person than who proposed it; return the jobs to wake."""
    row = _decision(desk.session, decision_id, DecisionState.PROPOSED, "proposed")
    if row.decided_by == desk.actor:
        raise DecisionError("a second person confirms it, not the one who proposed it")
    item = _proposed(desk.session, row)
    row.confirmed_by = desk.actor
    return _stand(desk, row, item, _place(desk.session, item), CONFIRMED)


def refuse(desk: Desk, decision_id: str) -> None:
    """Turn a proposed release down, or take it back; its item is open again."""
    row = _decision(desk.session, decision_id, DecisionState.PROPOSED, "proposed")
    _proposed(desk.session, row).resolution = ""
    _end(desk, row, DecisionState.REFUSED, REFUSED)


def withdraw(desk: Desk, decision_id: str) -> None:
    """End a decision: what comes from now on waits for a person again. What it released has left."""
    row = _decision(desk.session, decision_id, DecisionState.STANDING, "in force")
    _end(desk, row, DecisionState.WITHDRAWN, WITHDRAWN)


def keep(desk: Desk, item_id: str, scope: str) -> int:
    """Keep inside what a scope holds, now and for a series or machine from now on; return of how many items.

    Raises
    ------
    DecisionError
        If the item is not open, or the scope none that fits.
    """
    item = _open(desk.session, item_id)
    place = _place(desk.session, item)
    _check_scope(scope, place)
    row = _row(item, place)
    row.outcome, row.scope, row.state = KEEP, scope, DecisionState.STANDING
    row.decided_by, row.decided_at = desk.actor, now()
    desk.session.add(row)
    desk.session.flush()
    items = desk.session.scalars(scopes.waiting(place, item.reason_code, scope)).all()
    for one in items:
        one.resolved_at, one.resolution = now(), SEEN
    _record(desk, MADE, row, items=len(items))
    return len(items)


def _stand(desk: Desk, row: Decision, item: QuarantineItem, place: Place, kind: str) -> list[str]:
    """Put a release in force for all items it reaches, and queue their studies."""
    item.resolution = ""
    desk.session.flush()
    items = desk.session.scalars(scopes.waiting(place, row.reason_code, row.scope)).all()
    for one in items:
        one.resolution = RELEASING
    row.state = DecisionState.STANDING
    _record(desk, kind, row, items=len(items))
    return _queue(desk.session, row.id, {one.study_id for one in items if one.study_id})


def _queue(session: Session, decision_id: str, study_ids: Iterable[str]) -> list[str]:
    jobs = []
    for study_id in sorted(study_ids):
        revision = session.scalar(
            select(StudyRevision)
            .where(StudyRevision.study_id == study_id, StudyRevision.deidentification_state != "")
            .order_by(StudyRevision.number.desc())
            .limit(1)
        )
        if revision is not None:
            key = f"{STAGE}:{revision.id}:{decision_id}"
            jobs.append(enqueue(session, ClinicalJob, STAGE, revision.id, key, priority=_PRIORITY))
    return [job for job in jobs if job is not None]


def _end(desk: Desk, row: Decision, state: DecisionState, kind: str) -> None:
    row.state, row.ended_by, row.ended_at = state, desk.actor, now()
    _record(desk, kind, row)


def _record(desk: Desk, kind: str, row: Decision, **more: int) -> None:
    verdict = verdicts.parse(row.verdict)
    body: dict[str, Any] = {
        "outcome": row.outcome,
        "scope": row.scope,
        "code": row.reason_code,
        "accepted": sorted(verdict.accepted),
        "boxes": len(verdict.boxes),
        "removed": _codes(verdict.removed),
        "standing": _codes(verdict.standing),
        "item": row.quarantine_item_id,
        **more,
    }
    desk.ledger.append(desk.session, kind=kind, subject_id=row.id, body=body, actor=desk.actor)


def _codes(places: Iterable[str]) -> list[str]:
    """Write places as the ledger takes them: ``tag.00081110.00081155``."""
    return sorted(f"tag.{verdicts.name_of(place)}" for place in places)


def _row(item: QuarantineItem, place: Place) -> Decision:
    return Decision(
        id=new_id(),
        quarantine_item_id=item.id,
        reason_code=item.reason_code,
        machine=asdict(place.machine),
        verdict=verdicts.NONE.as_json(),
        trial={},
        study_id=item.study_id,
        series_id=place.series_id,
        instance_id=place.instance_id,
    )


def _open(session: Session, item_id: str) -> QuarantineItem:
    item = session.get(QuarantineItem, item_id)
    if item is None or item.resolved_at is not None or item.resolution:
        raise DecisionError("it is gone or was decided already")
    if item.stage != STAGE or item.instance_id is None:
        raise DecisionError("only what de-identification stopped can be decided here")
    return item


def _proposed(session: Session, row: Decision) -> QuarantineItem:
    item = session.get(QuarantineItem, row.quarantine_item_id)
    if item is None or item.resolution != PROPOSED:
        raise DecisionError("its item is gone or was decided otherwise")
    return item


def _place(session: Session, item: QuarantineItem) -> Place:
    found = place_of(session, item.instance_id or "")
    if found is None:
        raise DecisionError("its instance is gone")
    return found


def _check_scope(scope: str, place: Place) -> None:
    if scope not in scopes.SCOPES:
        raise DecisionError(f"the scope: expected one of {', '.join(scopes.SCOPES)}")
    if scope == scopes.MACHINE and not place.machine.is_named:
        raise DecisionError("the machine: expected instances that name manufacturer and model")


def _decision(session: Session, decision_id: str, state: DecisionState, word: str) -> Decision:
    row = session.get(Decision, decision_id)
    if row is None or row.state != state:
        raise DecisionError(f"the decision: expected one that is {word}")
    return row


def verdict_of(content: dict[str, Any]) -> Verdict:
    """Read a verdict that a person typed.

    Raises
    ------
    DecisionError
        Naming the field and what was expected.
    """
    try:
        return verdicts.parse(content)
    except VerdictError as error:
        raise DecisionError(str(error)) from error
