"""A circuit breaker for each destination: one that is away is left alone for a while, then tried by one.

It stands in the destination's row, so that all workers share it and a killed one leaves nothing behind.
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import or_, update

from appliance import logs
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

THRESHOLD: Final = 5  # failures in a row after which it rests
FIRST_REST_S: Final = 30.0
LONGEST_REST_S: Final = 900.0
TRIAL_S: Final = 120.0  # that the one which tries has for it, before another may
RESTS: Final = "waits: the destination was away several times in a row"

DESTINATION_RESTS: Final = "destination.rests"

_LOG = logs.logger(__name__)


def enter(zone: ClinicalZone, peer_id: str) -> float:
    """Ask to send; return 0, or for how many seconds the destination is to be left alone.

    After its rest the first that asks is let in, and the others wait for what it finds.
    """
    with reading(zone.engine) as session:
        peer = session.get_one(Peer, peer_id)
        if peer.failures < THRESHOLD:
            return 0
        seen = peer.rests_until
    at = now()
    if seen is not None and seen > at:
        return (seen - at).total_seconds()
    unchanged = or_(Peer.rests_until.is_(None), Peer.rests_until <= at)
    with writing(zone.engine) as session:
        trial = (
            update(Peer)
            .where(Peer.id == peer_id, Peer.failures >= THRESHOLD, unchanged)
            .values(rests_until=at + timedelta(seconds=TRIAL_S))
            .returning(Peer.id)
        )
        first = session.execute(trial).first() is not None
    return 0 if first else FIRST_REST_S


def leave(zone: ClinicalZone, peer_id: str, *, away: bool) -> None:
    """Note how it went: whether the destination itself was away, or out of resources."""
    if not away:
        with reading(zone.engine) as session:
            if not session.get_one(Peer, peer_id).failures:
                return
    with writing(zone.engine) as session:
        if away:
            _failed(session, peer_id)
        else:
            close(session, peer_id)


def close(session: Session, peer_id: str) -> None:
    """Let everything through again: it answered, or a person wants it tried."""
    session.execute(update(Peer).where(Peer.id == peer_id).values(failures=0, rests_until=None))


def rest_s(failures: int, peer_id: str) -> float:
    """Return the rest after so many failures: 30 s, doubled each time up to 15 min, spread by a fifth."""
    pause = min(FIRST_REST_S * 2 ** min(max(failures - THRESHOLD, 0), 10), LONGEST_REST_S)
    spread = (zlib.crc32(f"{peer_id}{failures}".encode()) % 1000) / 1000
    return float(pause * (1 + 0.2 * spread))


def _failed(session: Session, peer_id: str) -> None:
    peer = session.get_one(Peer, peer_id, with_for_update=True)
    peer.failures += 1
    if peer.failures >= THRESHOLD:
        pause_s = rest_s(peer.failures, peer_id)
        peer.rests_until = now() + timedelta(seconds=pause_s)
        _LOG.warning(DESTINATION_RESTS, peer_id=peer_id, failures=peer.failures, for_s=round(pause_s))
