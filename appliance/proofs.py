"""Whether a destination keeps a result: stored (it said so), committed, or read back, by the peer's settings.

A destination that commits is asked by Storage Commitment (PS3.4 annex J) and reports on the same association
or on one of its own; one that can be queried is asked for the instance; of another its answer must do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import archives, logs, peers
from appliance.callers import is_of
from appliance.db.base import now
from appliance.db.clinical import Result
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery, Peer
from dicom_node.archive import ArchiveError
from dicom_node.commitment import request_commitment
from dicom_node.index import read_header
from dicom_node.query import Level, Query

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone
    from dicom_node.commitment import Item, Report
    from dicom_node.ports import Caller

STORED: Final = "stored"
COMMITTED: Final = "committed"
READ_BACK: Final = "read_back"

WAITS: Final = "stored there; waits for the destination's commitment"
NOT_FOUND: Final = "the destination said that it stored it, and does not find it"

TIMEOUT_S: Final = 30.0
REPORT_WAIT_S: Final = 2.0  # on the association of the request; later it comes on one of the destination's
LOOK_EVERY_S: Final = 60.0
PATIENCE: Final = timedelta(hours=24)  # until a report that did not come is asked for again

REPORT_OF_ANOTHER: Final = "commitment.report_of_another"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Found:
    """How far the proof is.

    Parameters
    ----------
    proof : str
        Empty while there is none.
    reason : str
        Why there is none.
    waits_s : float
        When to look again; what is waited for is on its way, and this was no attempt.
    lost : bool
        Whether the destination does not have it: it is to be sent again.
    retryable : bool
    """

    proof: str = ""
    reason: str = ""
    waits_s: float = 0.0
    lost: bool = False
    retryable: bool = True


def ask(zone: ClinicalZone, peer: Peer, delivery_id: str, path: Path) -> Found:
    """Look for the proof that a peer can give of what it stored; nothing is raised for its fault."""
    if peer.commitment:
        return _commitment(zone, peer, delivery_id)
    if peer.is_archive:
        return _read_back(zone, peer, path)
    return Found(STORED)


def take_report(zone: ClinicalZone, caller: Caller, report: Report) -> bool:
    """Take note of a report that came on an association of the destination's.

    Returns
    -------
    bool
        Whether we asked this caller for it. What another one says of it changes nothing.
    """
    from appliance.delivery import DELIVERED, QUEUED, settle, stop_waiting  # noqa: PLC0415 - it asks us

    with writing(zone.engine) as session:
        row = session.execute(
            select(Delivery, Peer, Result.sop_class_uid, Result.sop_instance_uid)
            .join(Result, Result.id == Delivery.result_id)
            .join(Peer, Peer.id == Delivery.peer_id)
            .where(Delivery.transaction_uid == report.transaction_uid)
            .with_for_update(of=Delivery)
        ).first()
        if row is None or not report.transaction_uid:
            return False
        delivery, peer, *item = row
        if not is_of(peer, caller):
            _LOG.warning(REPORT_OF_ANOTHER, delivery_id=delivery.id, peer_id=peer.id)
            return False
        judged = _judge(report, (item[0], item[1]))
        if delivery.state == DELIVERED and judged.proof:
            return True  # a report that comes twice
        if delivery.state != QUEUED:
            return False
        if judged.proof:
            settle(zone, session, delivery, judged.proof)
        else:
            delivery.proof, delivery.proved_at, delivery.transaction_uid = "", None, ""
            delivery.reason = judged.reason
        stop_waiting(zone, session, delivery, refused="" if judged.proof else judged.reason)
    return True


def _commitment(zone: ClinicalZone, peer: Peer, delivery_id: str) -> Found:
    with reading(zone.engine) as session:
        delivery, result = session.execute(
            select(Delivery, Result)
            .join(Result, Result.id == Delivery.result_id)
            .where(Delivery.id == delivery_id)
        ).one()
    if not delivery.proof:  # a report said meanwhile that it is not there
        return Found(reason=delivery.reason or "not committed", lost=True)
    if delivery.reason == WAITS and delivery.transaction_uid:
        if delivery.proved_at is not None and now() - delivery.proved_at < PATIENCE:
            return Found(reason=WAITS, waits_s=LOOK_EVERY_S)
        return Found(reason="the destination did not report on the commitment within a day", lost=True)
    return _request(zone, peer, delivery_id, (result.sop_class_uid, result.sop_instance_uid))


def _request(zone: ClinicalZone, peer: Peer, delivery_id: str, item: Item) -> Found:
    from pydicom.uid import generate_uid  # noqa: PLC0415 - heavy, and only needed to ask

    transaction_uid = str(generate_uid())
    with writing(zone.engine) as session:  # before the request: the report may come at once
        delivery = session.get_one(Delivery, delivery_id)
        delivery.transaction_uid, delivery.reason = transaction_uid, None
    there = peers.destination_of(peer, zone.settings.dicom, TIMEOUT_S)
    ours = zone.settings.dicom.ae_title
    outcome = request_commitment(there, ours, transaction_uid, [item], REPORT_WAIT_S)
    if outcome.report is not None:
        return _judge(outcome.report, item)
    if outcome.accepted:
        return Found(reason=WAITS, waits_s=LOOK_EVERY_S)
    return Found(reason=f"stored there; commitment: {outcome.reason}", retryable=outcome.retryable)


def _judge(report: Report, item: Item) -> Found:
    if item in report.committed and all((one[0], one[1]) != item for one in report.failed):
        return Found(COMMITTED)
    reasons = [reason for *one, reason in report.failed if tuple(one) == item]
    why = f"0x{reasons[0]:04X}" if reasons else "its report does not name it"
    return Found(reason=f"the destination did not commit what it stored: {why}", lost=True)


def _read_back(zone: ClinicalZone, peer: Peer, path: Path) -> Found:
    header = read_header(path)
    keys = {
        "StudyInstanceUID": header.study_instance_uid,
        "SeriesInstanceUID": header.series_instance_uid,
        "SOPInstanceUID": header.sop_instance_uid,
    }
    try:
        archive = archives.open_archive(zone, peer, archives.methods_of(peer)[-1])
        answers = archive.find(Query(Level.IMAGE, keys, limit=10))
    except (ArchiveError, archives.FetchError) as error:
        retryable = error.retryable if isinstance(error, ArchiveError) else True
        return Found(reason=f"stored there; read back: {error}", retryable=retryable)
    if any(found.get("SOPInstanceUID") == header.sop_instance_uid for found in answers.found):
        return Found(READ_BACK)
    return Found(reason=NOT_FOUND, lost=True)
