"""What is counted when a destination has a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance import figures, traffic
from appliance.db.base import now
from appliance.db.clinical import Result
from appliance.db.peers import Peer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.db.peers import Delivery


def note(session: Session, delivery: Delivery) -> None:
    """Count a delivery, in the transaction that says so; call it once for each."""
    peer = session.get_one(Peer, delivery.peer_id)
    result = session.get_one(Result, delivery.result_id)
    title = peer.ae_title or peer.name[:16]  # a DICOMweb peer may have none
    flow = traffic.Flow(traffic.OUT, title, associations=1, instances=1, size_bytes=result.size_bytes)
    traffic.add(session, [flow])
    waited = now() - delivery.created_at
    figures.observe(figures.DELIVERY_SECONDS, waited.total_seconds(), peer.name)
