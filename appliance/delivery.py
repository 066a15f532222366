"""Delivery of results: the right patient, not superseded, tried again until the destination has it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import aliased

from appliance import delivered, logs, merges
from appliance.db.base import WorkState, now
from appliance.db.clinical import (
    ClinicalJob,
    Delivery,
    Instance,
    Peer,
    QuarantineItem,
    Result,
    Series,
    StudyRevision,
)
from appliance.db.engine import reading, writing
from appliance.peers import destination_of
from dicom_node import scu
from dicom_node.errors import HeaderError
from dicom_node.index import InstanceHeader, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from appliance.work import Claim
    from dicom_node.scu import Destination

QUEUED: Final = "queued"
DELIVERED: Final = "delivered"
WITHHELD: Final = "withheld"
DEAD: Final = "dead"

FIRST_RETRY_S: Final = 15.0
LONGEST_RETRY_S: Final = 1800.0
HOLD_S: Final = 20.0  # until the next look whether the newer revision has been answered
ASSOCIATION_TIMEOUT_S: Final = 30.0
ALIGN_LIMIT: Final = 500
HEARTBEAT_EVERY: Final = 200  # instances whose identity was checked

RESULT_DELIVERED: Final = "result.delivered"
RESULT_WITHHELD: Final = "result.withheld"
RESULT_STOPPED: Final = "result.stopped"

IDENTITY_MISMATCH: Final = "identity_mismatch"
IDENTITY_UNREADABLE: Final = "identity_unreadable"
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
    destination: Destination
    peer_id: str
    peer_ready: bool
    withhold: str  # why it must not leave, or nothing
    held: bool  # whether models still answer a newer revision, and may supersede it
    disputed: bool  # whether a person has to decide whose study it is


def deliver(zone: ClinicalZone, claim: Claim) -> None:
    """Send one result to one destination.

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
    elif order.withhold:
        _withhold(zone, claim, order)
    elif order.disputed:
        _hold(zone, claim, order, merges.DISPUTED)
    elif order.held:
        _hold(zone, claim, order, NEWER_REVISION)
    elif not order.peer_ready:
        _stop(zone, claim, order, "the destination is disabled or no destination")
    elif (problem := _identity_problem(claim, order)) is not None:
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
                body = {"delivery_id": delivery.id, "peer_id": delivery.peer_id}
                zone.ledger.append(session, kind=RESULT_STOPPED, subject_id=delivery.result_id, body=body)
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
        destination=destination_of(peer, zone.settings.dicom, ASSOCIATION_TIMEOUT_S),
        peer_id=peer.id,
        peer_ready=peer.enabled and peer.is_destination,
        withhold=_withhold_reason(delivery, result),
        held=held,
        disputed=disputed,
    )


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


def _identity_problem(claim: Claim, order: _Order) -> tuple[str, str, str | None] | None:
    """Compare the result with every instance; return code, reason and instance of the first problem.

    Study and patient id must agree; issuer, birth date and name where both give one. Whatever cannot be read
    counts as a mismatch.
    """
    try:
        result = read_header(order.path)
    except (HeaderError, OSError):
        return IDENTITY_UNREADABLE, "the result's header cannot be read", None
    if not order.instances:
        return IDENTITY_MISMATCH, "the study holds no instance to compare with", None
    for number, (instance_id, path) in enumerate(order.instances):
        if number % HEARTBEAT_EVERY == HEARTBEAT_EVERY - 1:
            claim.heartbeat()
        try:
            header = read_header(path)
        except (HeaderError, OSError):
            return IDENTITY_UNREADABLE, "the header of an instance of the study cannot be read", instance_id
        differing = differences(result, header)
        if differing:
            reason = f"result and instance differ in {', '.join(differing)}"
            return IDENTITY_MISMATCH, reason, instance_id
    return None


def differences(result: InstanceHeader, instance: InstanceHeader) -> list[str]:
    """Return the keywords of identifying attributes in which two headers disagree."""
    found = []
    if result.study_instance_uid != instance.study_instance_uid:
        found.append("StudyInstanceUID")
    if not result.patient_id or result.patient_id != instance.patient_id:
        found.append("PatientID")
    optional = (
        ("IssuerOfPatientID", result.issuer_of_patient_id, instance.issuer_of_patient_id),
        ("PatientBirthDate", result.patient_birth_date, instance.patient_birth_date),
        ("PatientName", _comparable(result.patient_name), _comparable(instance.patient_name)),
    )
    found.extend(keyword for keyword, one, other in optional if one and other and one != other)
    return found


def _comparable(name: str) -> tuple[str, ...]:
    """Return the first component group of a name without case, empty components and double blanks."""
    group = name.partition("=")[0]
    parts = [" ".join(part.split()).casefold() for part in group.split("^")]
    return tuple(part for part in parts if part)


def _send(zone: ClinicalZone, claim: Claim, order: _Order) -> None:
    claim.heartbeat()
    (outcome,) = scu.store([order.path], order.destination, zone.settings.dicom.ae_title)
    if outcome.ok:
        with writing(zone.engine) as session:
            delivery = session.get_one(Delivery, order.delivery_id)
            delivery.state, delivery.reason, delivery.delivered_at = DELIVERED, None, now()
            delivered.note(session, delivery)
            body = {"delivery_id": order.delivery_id, "peer_id": order.peer_id, "status": outcome.status}
            zone.ledger.append(session, kind=RESULT_DELIVERED, subject_id=order.result_id, body=body)
            claim.finish(session)
        _LOG.info(RESULT_DELIVERED, delivery_id=order.delivery_id, result_id=order.result_id)
        return
    if not outcome.retryable or claim.last_attempt:
        _stop(zone, claim, order, outcome.reason)
        return
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = QUEUED, outcome.reason
    claim.fail(outcome.reason, retry_in_s(claim.row.attempts, claim.row_id))


def _withhold(zone: ClinicalZone, claim: Claim, order: _Order) -> None:
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = WITHHELD, order.withhold
        body = {"delivery_id": order.delivery_id, "peer_id": order.peer_id}
        zone.ledger.append(session, kind=RESULT_WITHHELD, subject_id=order.result_id, body=body)
        claim.finish(session)
    _LOG.info(RESULT_WITHHELD, delivery_id=order.delivery_id, result_id=order.result_id)


def _hold(zone: ClinicalZone, claim: Claim, order: _Order, reason: str) -> None:
    with writing(zone.engine) as session:
        delivery = session.get_one(Delivery, order.delivery_id)
        delivery.state, delivery.reason = QUEUED, reason
        claim.postpone(reason, HOLD_S, session)


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
        body = {"delivery_id": order.delivery_id, "peer_id": order.peer_id}
        zone.ledger.append(session, kind=RESULT_STOPPED, subject_id=order.result_id, body=body)
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
