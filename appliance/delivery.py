"""Delivery of results: the right patient, not superseded, tried again until the destination has it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import aliased

from appliance import breakers, delivered, logs, merges, outlets, proofs, schedules
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, Instance, QuarantineItem, Result, Series, StudyRevision
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery, Peer
from appliance.result_identity import problem_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from appliance.work import Claim

QUEUED: Final = "queued"
DELIVERED: Final = "delivered"
WITHHELD: Final = "withheld"
DEAD: Final = "dead"

FIRST_RETRY_S: Final = 15.0
LONGEST_RETRY_S: Final = 1800.0
HOLD_S: Final = 20.0  # until the next look whether the newer revision has been answered
LOOK_AGAIN_S: Final = 300.0  # at a schedule, which may have been changed
ALIGN_LIMIT: Final = 500

RESULT_DELIVERED: Final = "result.delivered"
RESULT_WITHHELD: Final = "result.withheld"
RESULT_STOPPED: Final = "result.stopped"

NOT_READY: Final = "the destination is disabled or no destination"
NEWER_REVISION: Final = "waits for the models' answer to the study's newer revision"

_OPEN: Final = (WorkState.QUEUED, WorkState.RUNNING, WorkState.FAILED)

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class _Order:
    """What a delivery needs to know, read in one moment."""

    delivery_id: str
    state: str
    result_id: str
    study_id: str
    path: Path
    instances: tuple[tuple[str, Path], ...]  # row id and file of every instance of the study
    peer: Peer
    peer_ready: bool
    withhold: str  # why it must not leave, or nothing
    held: bool  # whether models still answer a newer revision, and may supersede it
    disputed: bool  # whether a person has to decide whose study it is
    proof: str  # what is known already of its being there
    closed: tuple[str, float] | None  # why its destination is not called now, and for how many seconds


def deliver(zone: ClinicalZone, claim: Claim) -> None:
    """Send one result to one destination, and have it proved that it is there.

    A result that is superseded or of a shadow model is withheld. While models still answer a newer revision
    of the study it waits: they supersede it, or leave it as it is when that revision does not concern them,
    and then it is the current result. The patient's identity in the result is compared with every instance
    of its study; a mismatch stops the delivery for a person, and while an item in quarantine says otherwise
    whose study it is, it waits. A failure that another try may change is tried again with growing pauses.
    """
    order = _read(zone, claim.subject_id)
    if order is None:
        claim.die("the delivery or its result is gone")
    elif order.state == DELIVERED:
        claim.finish()
    elif order.proof:
        _prove(zone, claim, order)
    elif order.withhold:
        _withhold(zone, claim, order)
    elif order.disputed:
        _hold(zone, claim, order, merges.DISPUTED)
    elif order.held:
        _hold(zone, claim, order, NEWER_REVISION)
    elif not order.peer_ready:
        _stop(zone, claim, order, NOT_READY)
    elif order.closed is not None:
        _hold(zone, claim, order, *order.closed)
    elif (problem := problem_of(claim, order.path, order.instances)) is not None:
        _stop(zone, claim, order, problem[1], quarantine=problem)
    else:
        _send(zone, claim, order)


def align(zone: ClinicalZone) -> int:
    """Bring deliveries in line with jobs that ended or were queued again elsewhere; return how many.

    A job becomes dead without its delivery when its worker dies too often or its deadline passes, and a
    person queues it again in the list of jobs.
    """
    buried = and_(Delivery.state == QUEUED, ClinicalJob.state == WorkState.DEAD)
    retried = and_(Delivery.state == DEAD, ClinicalJob.state == WorkState.QUEUED)
    apart = (
        select(Delivery, ClinicalJob.state, ClinicalJob.reason)
        .join(ClinicalJob, and_(ClinicalJob.subject_id == Delivery.id, ClinicalJob.kind == "deliver"))
        .where(or_(buried, retried))
        .limit(ALIGN_LIMIT)
    )
    with reading(zone.engine) as session:
        if session.execute(apart.limit(1)).first() is None:
            return 0
    with writing(zone.engine) as session:
        rows = session.execute(apart).all()
        for delivery, state, reason in rows:
            if state == WorkState.DEAD:
                delivery.state, delivery.reason = DEAD, reason
                _note_stopped(zone, session, delivery)
            else:
                delivery.state, delivery.reason = QUEUED, None
        return len(rows)


def retry_in_s(attempts: int, row_id: str) -> float:
    """Return the pause after so many attempts: 15 s, doubled each time up to 30 min, spread by a fifth."""
    pause = min(FIRST_RETRY_S * 2 ** max(attempts - 1, 0), LONGEST_RETRY_S)
    spread = (zlib.crc32(row_id.encode()) % 1000) / 1000
    return float(pause * (1 + 0.2 * spread))


def _read(zone: ClinicalZone, delivery_id: str) -> _Order | None:
    with reading(zone.engine) as session:
        # First: inference that ends between two statements has superseded what the second one reads.
        held = zone.settings.inference.enabled and _newer_is_open(session, delivery_id)
        row = session.execute(
            select(Delivery, Result, Peer)
            .join(Result, Result.id == Delivery.result_id)
            .join(Peer, Peer.id == Delivery.peer_id)
            .where(Delivery.id == delivery_id)
        ).first()
        if row is None:
            return None
        delivery, result, peer = row
        disputed = merges.is_disputed(session, result.study_id)
        instances = session.execute(
            select(Instance.id, Instance.path)
            .join(Series, Series.id == Instance.series_id)
            .where(Series.study_id == result.study_id)
        ).all()
    return _Order(
        delivery_id=delivery.id,
        state=delivery.state,
        result_id=result.id,
        study_id=result.study_id,
        path=zone.root / result.path,
        instances=tuple((item.id, zone.root / item.path) for item in instances),
        peer=peer,
        peer_ready=peer.enabled and peer.is_destination,
        withhold=_withhold_reason(delivery, result),
        held=held,
        disputed=disputed,
        proof=delivery.proof,
        closed=_closed(peer),
    )


def _closed(peer: Peer) -> tuple[str, float] | None:
    at = now()
    if schedules.is_open(peer.schedule, at):
        return None
    opens_in_s = (schedules.next_open(peer.schedule, at) - at).total_seconds()
    reason = f"waits for the destination's hours ({schedules.text_of(peer.schedule)})"
    return reason, min(opens_in_s, LOOK_AGAIN_S)


def _newer_is_open(session: Session, delivery_id: str) -> bool:
    ours, later = aliased(StudyRevision), aliased(StudyRevision)
    newer = (
        select(later.id)
        .join(ours, and_(ours.study_id == later.study_id, ours.number < later.number))
        .join(Result, Result.study_revision_id == ours.id)
        .join(Delivery, Delivery.result_id == Result.id)
        .where(Delivery.id == delivery_id)
    )
    still_open = select(ClinicalJob.id).where(
        ClinicalJob.kind == "infer", ClinicalJob.subject_id.in_(newer), ClinicalJob.state.in_(_OPEN)
    )
    return session.scalar(still_open.limit(1)) is not None


def _withhold_reason(delivery: Delivery, result: Result) -> str:
    if delivery.state == WITHHELD:
        return delivery.reason or "withheld"
    if result.shadow:
        return "results of shadow models are never delivered"
    if result.superseded:
        return "superseded by the result of a later study revision"
    return ""


def _send(zone: ClinicalZone, claim: Claim, order: _Order) -> None:
    rests_s = breakers.enter(zone, order.peer.id)
    if rests_s:
        _hold(zone, claim, order, breakers.RESTS, rests_s)
        return
    claim.heartbeat()
    sent = outlets.send(zone, order.peer, order.path, order.delivery_id, outlets.pace(order.peer, claim))
    breakers.leave(zone, order.peer.id, away=sent.away)
    if sent.ok:
        with writing(zone.engine) as session:
            delivery = _locked(session, order.delivery_id)
            delivery.proof, delivery.proved_at, delivery.transaction_uid = proofs.STORED, now(), ""
        _prove(zone, claim, order, sent.status)
    else:
        _again(zone, claim, order, sent.reason, retryable=sent.retryable)


def _prove(zone: ClinicalZone, claim: Claim, order: _Order, status: int | None = None) -> None:
    """Have the destination show that it keeps what it stored, in the way that it can."""
    if not order.peer_ready:
        _stop(zone, claim, order, NOT_READY)
        return
    claim.heartbeat()
    found = proofs.ask(zone, order.peer, order.delivery_id, order.path)
    with writing(zone.engine) as session:
        delivery = _locked(session, order.delivery_id)
        if delivery.state == DELIVERED:  # a report came meanwhile, and says more
            claim.finish(session)
            return
        if found.proof:
            settle(zone, session, delivery, found.proof, status)
            claim.finish(session)
            return
        if found.waits_s:
            delivery.reason = found.reason
            claim.postpone(found.reason, found.waits_s, session)
            return
        if found.lost:
            delivery.proof, delivery.proved_at, delivery.transaction_uid = "", None, ""
    _again(zone, claim, order, found.reason, retryable=found.retryable)


def settle(
    zone: ClinicalZone, session: Session, delivery: Delivery, proof: str, status: int | None = None
) -> None:
    """Note that a destination has a result, and how that is known."""
    delivery.state, delivery.reason, delivery.delivered_at = DELIVERED, None, now()
    delivery.proof, delivery.proved_at = proof, now()
    delivered.note(session, delivery)
    body = {"delivery_id": delivery.id, "peer_id": delivery.peer_id, "status": status, "proof": proof}
    zone.ledger.append(session, kind=RESULT_DELIVERED, subject_id=delivery.result_id, body=body)
    _LOG.info(RESULT_DELIVERED, delivery_id=delivery.id, result_id=delivery.result_id, proof=proof)


def stop_waiting(zone: ClinicalZone, session: Session, delivery: Delivery, refused: str = "") -> None:
    """Let the job of a delivery that waits for a report go on.

    Parameters
    ----------
    refused : str
        Why the destination does not keep what it stored. That was an attempt: after the last one a person
        decides, after another the next one waits.
    """
    job = session.scalar(
        select(ClinicalJob)
        .where(ClinicalJob.kind == "deliver", ClinicalJob.subject_id == delivery.id)
        .where(ClinicalJob.state == WorkState.FAILED)
        .with_for_update()
    )
    if job is None:
        return
    if not refused:
        job.next_try_at = now()
        return
    job.attempts, job.reason = job.attempts + 1, refused
    if job.attempts < job.max_attempts:
        job.next_try_at = now() + timedelta(seconds=retry_in_s(job.attempts, job.id))
        return
    job.state, delivery.state = WorkState.DEAD, DEAD
    _note_stopped(zone, session, delivery)


def _note_stopped(zone: ClinicalZone, session: Session, delivery: Delivery) -> None:
    body = {"delivery_id": delivery.id, "peer_id": delivery.peer_id}
    zone.ledger.append(session, kind=RESULT_STOPPED, subject_id=delivery.result_id, body=body)


def _locked(session: Session, delivery_id: str) -> Delivery:
    """Return the row, which nobody else changes before this transaction ends."""
    return session.get_one(Delivery, delivery_id, with_for_update=True)


def _again(zone: ClinicalZone, claim: Claim, order: _Order, reason: str, *, retryable: bool) -> None:
    if not retryable or claim.last_attempt:
        _stop(zone, claim, order, reason)
        return
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = QUEUED, reason
    claim.fail(reason, retry_in_s(claim.row.attempts, claim.row_id))


def _withhold(zone: ClinicalZone, claim: Claim, order: _Order) -> None:
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = WITHHELD, order.withhold
        body = {"delivery_id": order.delivery_id, "peer_id": order.peer.id}
        zone.ledger.append(session, kind=RESULT_WITHHELD, subject_id=order.result_id, body=body)
        claim.finish(session)
    _LOG.info(RESULT_WITHHELD, delivery_id=order.delivery_id, result_id=order.result_id)


def _hold(zone: ClinicalZone, claim: Claim, order: _Order, reason: str, for_s: float = HOLD_S) -> None:
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = QUEUED, reason
        claim.postpone(reason, for_s, session)


def _stop(
    zone: ClinicalZone,
    claim: Claim,
    order: _Order,
    reason: str,
    quarantine: tuple[str, str, str | None] | None = None,
) -> None:
    """Leave the delivery to a person, who sees the reason."""
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = DEAD, reason
        if quarantine is not None:
            _add_quarantine(zone, session, order, quarantine)
        _note_stopped(zone, session, delivery)
        claim.die(reason, session)


def _add_quarantine(
    zone: ClinicalZone, session: Session, order: _Order, problem: tuple[str, str, str | None]
) -> None:
    code, reason, instance_id = problem
    key = f"deliver:{order.delivery_id}"
    if session.scalar(select(QuarantineItem.id).where(QuarantineItem.dedupe_key == key)) is None:
        session.add(
            QuarantineItem(
                stage="deliver",
                reason_code=code,
                reason=reason,
                study_id=order.study_id,
                instance_id=instance_id,
                dedupe_key=key,
                path=str(order.path.relative_to(zone.root)),
            )
        )
