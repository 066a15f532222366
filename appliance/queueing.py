"""Deliveries of results, queued: each result once to each destination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.clinical import ClinicalJob, Result
from appliance.db.peers import Delivery, Peer
from appliance.work import enqueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

ATTEMPTS: Final = 40  # about 18 hours of growing pauses: a workstation that is off overnight


def queue_delivery(session: Session, delivery_id: str, priority: int) -> str | None:
    """Queue the job of a delivery; return its id, or None when it has one."""
    return enqueue(
        session,
        ClinicalJob,
        "deliver",
        delivery_id,
        f"deliver:{delivery_id}",
        priority=priority,
        max_attempts=ATTEMPTS,
    )


def queue_missing(session: Session, study_id: str, peer_names: Sequence[str], priority: int) -> int:
    """Queue the deliveries of a study's current results to these peers that were never queued.

    Runs in the caller's writing transaction. What was delivered, withheld or given up stays as it is, and
    results of shadow models stay here.

    Returns
    -------
    int
        How many are new.
    """
    results = session.scalars(
        select(Result.id).where(Result.study_id == study_id, ~Result.shadow, ~Result.superseded)
    ).all()
    peers = session.scalars(
        select(Peer.id).where(Peer.name.in_(peer_names), Peer.is_destination, Peer.enabled)
    ).all()
    queued = session.execute(
        select(Delivery.result_id, Delivery.peer_id).where(Delivery.result_id.in_(results))
    )
    known = {(row.result_id, row.peer_id) for row in queued}
    missing = [(result, peer) for result in results for peer in peers if (result, peer) not in known]
    for result_id, peer_id in missing:
        delivery = Delivery(result_id=result_id, peer_id=peer_id)
        session.add(delivery)
        session.flush()
        queue_delivery(session, delivery.id, priority)
    return len(missing)
