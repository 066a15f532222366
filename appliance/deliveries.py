"""Deliveries as staff see them, by destination, and what staff may do with one; without any identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, case, func, select, update

from appliance import breakers, work
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, Result
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery, Peer
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

STATES: Final = ("queued", "delivered", "withheld", "dead")
PROOFS: Final = ("stored", "committed", "read_back")
BY_STAFF: Final = "withheld by staff"

DELIVERY_RETRIED: Final = "delivery.retried"
RESULT_WITHHELD: Final = "result.withheld"

_SHORTEST: Final = 6
_HELD_BACK: Final = (WorkState.QUEUED, WorkState.FAILED, WorkState.DEAD)
_URGENCY: Final = case({"dead": 0, "queued": 1, "withheld": 2}, value=Delivery.state, else_=3)


class DeliveryError(ApplianceError):
    """Something that cannot be done with a delivery; the message says why."""


@dataclass(frozen=True)
class DeliveryRow:
    """A result on its way to one destination."""

    id: str
    result_id: str
    study_id: str
    destination: str
    kind: str
    state: str
    reason: str | None
    attempts: int
    next_try_at: datetime | None
    proof: str
    proved_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime


@dataclass(frozen=True)
class DestinationRow:
    """How the deliveries to one destination stand; ``rests_until`` is set while it is left alone."""

    name: str
    enabled: bool
    queued: int
    dead: int
    withheld: int
    delivered: int
    stored: int
    committed: int
    read_back: int
    failures: int
    rests_until: datetime | None


def listed(
    session: Session, destination: str = "", state: str = "", limit: int = 50, offset: int = 0
) -> tuple[DeliveryRow, ...]:
    """Return deliveries, what needs a person first, then the newest."""
    job = and_(ClinicalJob.subject_id == Delivery.id, ClinicalJob.kind == "deliver")
    statement = (
        select(Delivery, Peer.name, Result.study_id, Result.kind, ClinicalJob)
        .join(Peer, Peer.id == Delivery.peer_id)
        .join(Result, Result.id == Delivery.result_id)
        .join(ClinicalJob, job, isouter=True)
        .where(*_conditions(destination, state))
        .order_by(_URGENCY, Delivery.created_at.desc(), Delivery.id)
        .limit(limit)
        .offset(offset)
    )
    return tuple(
        DeliveryRow(
            id=delivery.id,
            result_id=delivery.result_id,
            study_id=study_id,
            destination=name,
            kind=kind,
            state=delivery.state,
            reason=delivery.reason,
            attempts=found.attempts if found is not None else 0,
            next_try_at=found.next_try_at if found is not None and delivery.state == "queued" else None,
            proof=delivery.proof,
            proved_at=delivery.proved_at,
            delivered_at=delivery.delivered_at,
            created_at=delivery.created_at,
        )
        for delivery, name, study_id, kind, found in session.execute(statement)
    )


def total(session: Session, destination: str = "", state: str = "") -> int:
    """Count deliveries."""
    statement: Select[Any] = select(func.count(Delivery.id)).join(Peer, Peer.id == Delivery.peer_id)
    return session.scalar(statement.where(*_conditions(destination, state))) or 0


def destinations(session: Session) -> tuple[DestinationRow, ...]:
    """Return every peer that is a destination or was one."""
    statement = select(Delivery.peer_id, Delivery.state, Delivery.proof, func.count()).group_by(
        Delivery.peer_id, Delivery.state, Delivery.proof
    )
    counts: dict[str, dict[str, int]] = {}
    for peer_id, state, proof, number in session.execute(statement):
        ours = counts.setdefault(peer_id, {})
        ours[state] = ours.get(state, 0) + number
        if state == "delivered":
            ours[f"delivered:{proof}"] = number
    at = now()
    rows = []
    for peer in session.scalars(select(Peer).order_by(Peer.name)):
        ours = counts.get(peer.id, {})
        if not (peer.is_destination or ours):
            continue
        rests = peer.rests_until if peer.rests_until is not None and peer.rests_until > at else None
        rows.append(
            DestinationRow(
                name=peer.name,
                enabled=peer.enabled and peer.is_destination,
                failures=peer.failures,
                rests_until=rests,
                **{state: ours.get(state, 0) for state in STATES},
                **{proof: ours.get(f"delivered:{proof}", 0) for proof in PROOFS},
            )
        )
    return tuple(rows)


def full_id(zone: ClinicalZone, beginning: str) -> str:
    """Return the id of the one delivery whose id begins so.

    Raises
    ------
    DeliveryError
        If there is none, or several.
    """
    if len(beginning) < _SHORTEST or not all(sign in "0123456789abcdef" for sign in beginning):
        raise DeliveryError(f"delivery: expected an id, or its first {_SHORTEST} characters or more")
    with reading(zone.engine) as session:
        found = session.scalars(select(Delivery.id).where(Delivery.id.startswith(beginning)).limit(2)).all()
    if len(found) != 1:
        raise DeliveryError(
            "delivery: none has this id" if not found else "delivery: several begin like this"
        )
    return found[0]


def retry(zone: ClinicalZone, delivery_id: str, *, actor: str) -> None:
    """Try a delivery again now, with all its attempts, though its destination rests.

    Raises
    ------
    DeliveryError
        If it is not there, or nothing of it waits.
    """
    with writing(zone.engine) as session:
        delivery, job = _load(session, delivery_id)
        if job is None or delivery.state not in {"queued", "dead"}:
            raise DeliveryError(f"delivery: it is {delivery.state}; nothing to retry")
        if not work.retry(session, ClinicalJob, job.id):
            raise DeliveryError("delivery: it is under way; nothing to retry")
        delivery.state, delivery.reason = "queued", None
        breakers.close(session, delivery.peer_id)
        zone.ledger.append(session, kind=DELIVERY_RETRIED, subject_id=delivery_id, actor=actor)
        job_id = job.id
    zone.wake("deliver", job_id)


def withhold(zone: ClinicalZone, delivery_id: str, *, actor: str) -> None:
    """Keep a result from a destination for good.

    Raises
    ------
    DeliveryError
        If it is not there, is being sent, or the destination has it.
    """
    with writing(zone.engine) as session:
        delivery, job = _load(session, delivery_id)
        if delivery.state not in {"queued", "dead"} or delivery.proof:
            raise DeliveryError("delivery: the destination has it, or it is withheld already")
        ended = (
            update(ClinicalJob)
            .where(ClinicalJob.id == (job.id if job is not None else ""), ClinicalJob.state.in_(_HELD_BACK))
            .values(state=WorkState.DONE, reason=None, next_try_at=None)
            .returning(ClinicalJob.id)
        )
        if session.execute(ended).first() is None:
            raise DeliveryError("delivery: it is being sent now")
        delivery.state, delivery.reason = "withheld", BY_STAFF
        body = {"delivery_id": delivery.id, "peer_id": delivery.peer_id}
        zone.ledger.append(
            session, kind=RESULT_WITHHELD, subject_id=delivery.result_id, body=body, actor=actor
        )


def _load(session: Session, delivery_id: str) -> tuple[Delivery, ClinicalJob | None]:
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None:
        raise DeliveryError("delivery: none has this id")
    job = session.scalar(
        select(ClinicalJob).where(ClinicalJob.subject_id == delivery_id, ClinicalJob.kind == "deliver")
    )
    return delivery, job


def _conditions(destination: str, state: str) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if destination:
        found.append(Peer.name == destination)
    if state:
        found.append(Delivery.state == state)
    return found
