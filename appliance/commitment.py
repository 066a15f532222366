"""Storage Commitment of what the node holds: requests kept as rows, judged when everything named is filed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import logs, peers
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, Instance, Result, Series, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import CommitmentRequest, Peer
from appliance.errors import ApplianceError
from appliance.filing import open_inbox
from appliance.names import as_network
from appliance.work import claimed, enqueue
from dicom_node.commitment import (
    CLASS_INSTANCE_CONFLICT,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    Report,
    send_report,
)
from dicom_node.scu import AssociationError, Destination
from dicom_node.sending import SendingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from appliance.work import Claim
    from dicom_node.commitment import Item
    from dicom_node.ports import Caller

OPEN: Final = "open"
REPORTED: Final = "reported"
DEAD: Final = "dead"

AT_ONCE_S: Final = 2.0  # on the association of the request
_LOOK_EVERY_S: Final = 0.1
_LEASE_S: Final = 60.0
WAIT_FOR_FILING_S: Final = 600.0
_LOOK_AGAIN_S: Final = 2.0
_TIMEOUT_S: Final = 30.0
_PRIORITY: Final = 3
_ATTEMPTS: Final = 24  # with growing pauses of at most a quarter of an hour: about five hours
_CHUNK: Final = 500

COMMITMENT_REQUESTED: Final = "commitment.requested"
COMMITMENT_REPORTED: Final = "commitment.reported"
STUDY_COMPLETE: Final = "study.complete"

_LOG = logs.logger(__name__)


class OtherItemsError(ApplianceError):
    """A transaction UID came a second time with other instances."""


@dataclass(frozen=True)
class _Held:
    """An instance that we hold, as far as commitment looks at it."""

    sop_class_uid: str
    whole: bool  # its file is there and as long as it was


class DatabaseKeeper:
    """Keeps commitment requests; implements :class:`dicom_node.commitment.CommitmentKeeper`.

    Parameters
    ----------
    zone : ClinicalZone
    on_report : callable
        Takes who reports, and the report on what was committed for us; says whether we had asked for it.
    """

    def __init__(
        self,
        zone: ClinicalZone,
        on_report: Callable[[Caller, Report], bool],
    ) -> None:
        self._zone = zone
        self._on_report = on_report

    def keep(self, caller: Caller, transaction_uid: str, items: Sequence[Item]) -> str:
        """Store a request and its job; a repeated one is answered again. Return the id of the job."""
        listed = [list(item) for item in items]
        with writing(self._zone.engine) as session:
            titles = (
                CommitmentRequest.calling_ae_title == caller.calling_ae_title,
                CommitmentRequest.transaction_uid == transaction_uid,
            )
            row = session.scalar(select(CommitmentRequest).where(*titles))
            if row is None:
                row = CommitmentRequest(
                    calling_ae_title=caller.calling_ae_title, transaction_uid=transaction_uid, items=listed
                )
                session.add(row)
            elif row.items != listed:
                raise OtherItemsError("a transaction UID came again with other instances")
            row.called_ae_title, row.address = caller.called_ae_title, caller.address
            row.state, row.received_at, row.reason = OPEN, now(), None
            session.flush()
            key = f"report:{row.id}:{row.received_at.timestamp()}"
            job_id = enqueue(
                session, ClinicalJob, "report", row.id, key, priority=_PRIORITY, max_attempts=_ATTEMPTS
            )
            body = {"instances": len(listed)}
            self._zone.ledger.append(session, kind=COMMITMENT_REQUESTED, subject_id=row.id, body=body)
        return job_id or ""

    def report(self, key: str, send: Callable[[Report], bool], is_there: Callable[[], bool]) -> None:
        """Report at once if the peer waits and everything can be judged within a moment; else by the job."""
        zone = self._zone
        with claimed(zone.engine, ClinicalJob, key, "scp", _LEASE_S) as claim:
            if claim is None:
                return
            request = _load(zone, claim.subject_id)
            report = None if request is None else _judged_soon(zone, request, is_there)
            if report is not None:
                _note_complete(zone, report)
            if report is not None and is_there() and _sent(send, report):
                _conclude(zone, claim, report)
                return
            claim.postpone("to be reported on another association", 0)
        zone.wake("report", key)

    def on_commitment_report(self, caller: Caller, report: Report) -> bool:
        """Hand on what a peer committed for us."""
        return self._on_report(caller, report)


def report(zone: ClinicalZone, claim: Claim) -> None:
    """Answer one commitment request on an association of our own.

    It waits until what was received before the request is filed, but no longer than ten minutes: what is
    reported missing too early is sent again. A peer that does not take the report is asked again with growing
    pauses.
    """
    request = _load(zone, claim.subject_id)
    if request is None:
        claim.die("the commitment request is gone")
        return
    if request.state == REPORTED:
        claim.finish()
        return
    judged = judge(zone, request)
    if judged is None:
        claim.postpone("waits until what was received before is filed", _LOOK_AGAIN_S)
        return
    _note_complete(zone, judged)
    destination = _destination(zone, request)
    if destination is None:
        _bury(zone, claim, "no peer of this AE title has a port; give it one")
        return
    try:
        send_report(destination, request.called_ae_title or zone.settings.dicom.ae_title, judged)
    except (AssociationError, SendingError) as error:
        if claim.last_attempt:
            _bury(zone, claim, str(error))
        else:
            claim.fail(str(error))
        return
    _conclude(zone, claim, judged)


def judge(zone: ClinicalZone, request: CommitmentRequest) -> Report | None:
    """Say what of a request is committed; None while something missing may still be in the inbox."""
    # Looked at before the rows: what leaves the inbox in between is found there.
    oldest = open_inbox(zone).oldest_received_at()
    held = _held(zone, {uid for _, uid in request.items})
    committed: list[Item] = []
    failed: list[tuple[str, str, int]] = []
    for sop_class, uid in request.items:
        one = held.get(uid)
        if one is None:
            failed.append((sop_class, uid, NO_SUCH_INSTANCE))
        elif one.sop_class_uid != sop_class:
            failed.append((sop_class, uid, CLASS_INSTANCE_CONFLICT))
        elif not one.whole:
            failed.append((sop_class, uid, PROCESSING_FAILURE))
        else:
            committed.append((sop_class, uid))
    unfiled = oldest is not None and oldest <= request.received_at
    patient = now() - request.received_at < timedelta(seconds=WAIT_FOR_FILING_S)
    if unfiled and patient and any(reason == NO_SUCH_INSTANCE for _, _, reason in failed):
        return None
    return Report(request.transaction_uid, tuple(committed), tuple(failed))


def _judged_soon(
    zone: ClinicalZone, request: CommitmentRequest, is_there: Callable[[], bool]
) -> Report | None:
    until = time.monotonic() + AT_ONCE_S
    while is_there():
        judged = judge(zone, request)
        if judged is not None or time.monotonic() >= until:
            return judged
        time.sleep(_LOOK_EVERY_S)
    return None


def _sent(send: Callable[[Report], bool], report: Report) -> bool:
    try:
        return send(report)
    except SendingError:
        return False


def _load(zone: ClinicalZone, row_id: str) -> CommitmentRequest | None:
    with reading(zone.engine) as session:
        return session.get(CommitmentRequest, row_id)


def _held(zone: ClinicalZone, uids: Iterable[str]) -> dict[str, _Held]:
    wanted = sorted(uids)
    rows: list[Any] = []
    with reading(zone.engine) as session:
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            for table in (Result, Instance):
                columns = (table.sop_instance_uid, table.sop_class_uid, table.path, table.size_bytes)
                rows.extend(session.execute(select(*columns).where(table.sop_instance_uid.in_(chunk))))
    held = {}
    for uid, sop_class, path, size in rows:
        try:
            whole = (zone.root / path).stat().st_size >= size
        except OSError:
            whole = False
        held[uid] = _Held(sop_class, whole)
    return held


def _destination(zone: ClinicalZone, request: CommitmentRequest) -> Destination | None:
    """Return where the requestor listens: its peer's host and port, or the address it called from."""
    wanted = (Peer.enabled, Peer.protocol == "dimse", Peer.port > 0)
    with reading(zone.engine) as session:
        found = session.scalars(
            select(Peer)
            .where(*wanted, Peer.ae_title == request.calling_ae_title)
            .order_by(Peer.may_send.desc(), Peer.id)
        ).all()
        for peer in found:
            network = as_network(peer.host)
            if network is not None and network.num_addresses > 1:
                there = peers.destination_of(peer, zone.settings.dicom, _TIMEOUT_S)
                return Destination(there.ae_title, request.address, there.port, there.timeout_s, there.tls)
            return peers.destination_of(peer, zone.settings.dicom, _TIMEOUT_S)
    return None


def _conclude(zone: ClinicalZone, claim: Claim, report: Report) -> None:
    with writing(zone.engine) as session:
        row = session.get_one(CommitmentRequest, claim.subject_id)
        row.state, row.reported_at, row.reason = REPORTED, now(), None
        row.failed_count = len(report.failed)
        body = {"committed": len(report.committed), "failed": len(report.failed)}
        zone.ledger.append(session, kind=COMMITMENT_REPORTED, subject_id=row.id, body=body)
        claim.finish(session)
    _LOG.info(COMMITMENT_REPORTED, row_id=claim.subject_id, failed=len(report.failed))


def _note_complete(zone: ClinicalZone, report: Report) -> None:
    """Note that a study is complete where its sender named every instance of it that we hold."""
    if not report.failed:
        with writing(zone.engine) as session:
            _mark_complete(zone, session, {uid for _, uid in report.committed})


def _mark_complete(zone: ClinicalZone, session: Session, uids: set[str]) -> None:
    named: dict[str, int] = {}
    wanted = sorted(uids)
    for start in range(0, len(wanted), _CHUNK):
        statement = (
            select(Series.study_id)
            .join(Instance, Instance.series_id == Series.id)
            .where(Instance.sop_instance_uid.in_(wanted[start : start + _CHUNK]))
        )
        for study_id in session.scalars(statement):
            named[study_id] = named.get(study_id, 0) + 1
    for study_id, count in sorted(named.items()):
        study = session.get_one(Study, study_id)
        if count == study.instance_count and not study.complete:
            study.complete = True
            zone.ledger.append(
                session, kind=STUDY_COMPLETE, subject_id=study_id, body={"by": "storage_commitment"}
            )


def _bury(zone: ClinicalZone, claim: Claim, reason: str) -> None:
    with writing(zone.engine) as session:
        row = session.get_one(CommitmentRequest, claim.subject_id)
        row.state, row.reason = DEAD, reason
        claim.die(reason, session)
