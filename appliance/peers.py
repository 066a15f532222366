"""Peers: who may send to us, where results go, and who was turned away."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, func, select, update

from appliance.db.base import now
from appliance.db.clinical import Delivery, Peer, RejectedCaller
from appliance.db.engine import writing
from appliance.errors import ApplianceError
from appliance.names import as_network
from dicom_node.scu import Destination

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from dicom_node.ports import Caller

PEER_ADDED: Final = "peer.added"
PEER_CHANGED: Final = "peer.changed"
PEER_REMOVED: Final = "peer.removed"

MAX_REJECTED_ROWS: Final = 1000
_MAX_PENDING: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1035 2.3.4
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


class PeerError(ApplianceError):
    """A peer that cannot be stored as asked; the message names the field."""


@dataclass(frozen=True)
class NewPeer:
    """A peer to be added.

    ``host`` is, for a sender, an address, a network in CIDR form or a host name; for a destination an address
    or a name. ``port`` is a destination's.
    """

    name: str
    ae_title: str
    host: str
    port: int = 0
    may_send: bool = False
    is_destination: bool = False


def add_peer(session: Session, ledger: Ledger, new: NewPeer, actor: str = "node") -> Peer:
    """Add a peer in the caller's writing transaction.

    Raises
    ------
    PeerError
        Naming the field that is wrong.
    """
    new = replace(new, name=new.name.strip(), ae_title=new.ae_title.strip(), host=new.host.strip())
    _check(new)
    if session.scalar(select(Peer.id).where(Peer.name == new.name)) is not None:
        raise PeerError("name: taken already")
    peer = Peer(**asdict(new))
    session.add(peer)
    session.flush()
    body = {"may_send": new.may_send, "is_destination": new.is_destination}
    ledger.append(session, kind=PEER_ADDED, subject_id=peer.id, body=body, actor=actor)
    return peer


def set_enabled(session: Session, ledger: Ledger, *, name: str, enabled: bool, actor: str = "node") -> Peer:
    """Allow a peer, or refuse it without forgetting it.

    Raises
    ------
    PeerError
        If there is no such peer.
    """
    peer = get_peer(session, name)
    if peer.enabled != enabled:
        peer.enabled = enabled
        ledger.append(session, kind=PEER_CHANGED, subject_id=peer.id, body={"enabled": enabled}, actor=actor)
    return peer


def remove_peer(session: Session, ledger: Ledger, *, name: str, actor: str = "node") -> None:
    """Remove a peer that nothing was ever delivered to; disable the others instead.

    Raises
    ------
    PeerError
        If there is no such peer, or deliveries refer to it.
    """
    peer = get_peer(session, name)
    if session.scalar(select(Delivery.id).where(Delivery.peer_id == peer.id).limit(1)) is not None:
        raise PeerError("deliveries refer to this peer; disable it instead")
    session.delete(peer)
    ledger.append(session, kind=PEER_REMOVED, subject_id=peer.id, actor=actor)


def get_peer(session: Session, name: str) -> Peer:
    """Return a peer by name.

    Raises
    ------
    PeerError
        If there is no such peer.
    """
    peer = session.scalar(select(Peer).where(Peer.name == name))
    if peer is None:
        raise PeerError("no peer of this name")
    return peer


def list_peers(session: Session) -> list[Peer]:
    """Return all peers by name."""
    return list(session.scalars(select(Peer).order_by(Peer.name)))


def list_rejected(session: Session, limit: int = 200) -> list[RejectedCaller]:
    """Return callers that were turned away, the latest first."""
    return list(
        session.scalars(select(RejectedCaller).order_by(RejectedCaller.last_seen_at.desc()).limit(limit))
    )


def destination_of(peer: Peer, timeout_s: float = 30) -> Destination:
    """Return a peer as the SCU wants it."""
    return Destination(ae_title=peer.ae_title, host=peer.host, port=peer.port, timeout_s=timeout_s)


def _check(new: NewPeer) -> None:
    title = new.ae_title
    if not _NAME.fullmatch(new.name):
        raise PeerError("name: expected 1 to 64 letters, digits, blanks, dots, hyphens or underscores")
    if not 1 <= len(title) <= 16 or _UNPRINTABLE.search(title) or "\\" in title:
        raise PeerError("ae_title: expected 1 to 16 printable ASCII characters without a backslash")
    if not new.may_send and not new.is_destination:
        raise PeerError("expected a peer that may send, or is a destination, or both")
    if as_network(new.host) is None and not _HOST.fullmatch(new.host):
        raise PeerError("host: expected an address, a network in CIDR form, or a host name")
    if new.is_destination and "/" in new.host:
        raise PeerError("host: expected an address or a name for a destination, not a network")
    if new.is_destination and not 1 <= new.port <= 65535:
        raise PeerError("port: expected 1 to 65535 for a destination")


@dataclass(frozen=True)
class _Rejection:
    calling_ae_title: str
    called_ae_title: str
    address: str


class CallerRecorder:
    """Collects who called, in memory, until :meth:`flush` writes it: receiving never waits for a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._rejected: Counter[_Rejection] = Counter()
        self._reasons: dict[_Rejection, tuple[str, datetime]] = {}
        self._seen: dict[str, datetime] = {}

    def accepted(self, caller: Caller) -> None:
        """Note that a known caller was here."""
        with self._lock:
            self._seen[caller.calling_ae_title] = now()

    def rejected(self, caller: Caller, reason: str) -> None:
        """Note that a caller was turned away; of a flood of new ones the later are dropped."""
        key = _Rejection(
            _printable(caller.calling_ae_title, 16),
            _printable(caller.called_ae_title, 16),
            caller.address[:64],
        )
        with self._lock:
            if key in self._rejected or len(self._rejected) < _MAX_PENDING:
                self._rejected[key] += 1
                self._reasons[key] = (reason[:64], now())

    def flush(self) -> None:
        """Write what was noted; what cannot be written now is kept for the next time."""
        with self._lock:
            rejected, reasons, seen = dict(self._rejected), dict(self._reasons), dict(self._seen)
        if not rejected and not seen:
            return
        with writing(self._engine) as session:
            for key, count in rejected.items():
                reason, at = reasons[key]
                _store_rejection(session, key, count, reason, at)
            for ae_title, at in seen.items():
                session.execute(
                    update(Peer).where(Peer.ae_title == ae_title, Peer.may_send).values(last_seen_at=at)
                )
            _forget_oldest(session)
        with self._lock:
            self._rejected.subtract(rejected)
            self._rejected = +self._rejected
            self._reasons = {key: self._reasons[key] for key in self._rejected}
            self._seen = {title: at for title, at in self._seen.items() if seen.get(title) != at}


def _store_rejection(session: Session, key: _Rejection, count: int, reason: str, at: datetime) -> None:
    row = session.scalar(
        select(RejectedCaller).where(
            RejectedCaller.calling_ae_title == key.calling_ae_title,
            RejectedCaller.called_ae_title == key.called_ae_title,
            RejectedCaller.address == key.address,
        )
    )
    if row is None:
        session.add(
            RejectedCaller(
                calling_ae_title=key.calling_ae_title,
                called_ae_title=key.called_ae_title,
                address=key.address,
                reason=reason,
                count=count,
                first_seen_at=at,
                last_seen_at=at,
            )
        )
        return
    row.count += count
    row.reason = reason
    row.last_seen_at = at


def _forget_oldest(session: Session) -> None:
    """Bound the list: a scanner can invent AE titles without end."""
    session.flush()
    count = session.scalar(select(func.count()).select_from(RejectedCaller)) or 0
    if count > MAX_REJECTED_ROWS:
        oldest = (
            select(RejectedCaller.id).order_by(RejectedCaller.last_seen_at).limit(count - MAX_REJECTED_ROWS)
        )
        session.execute(delete(RejectedCaller).where(RejectedCaller.id.in_(oldest.scalar_subquery())))


def _printable(text: str, length: int) -> str:
    return _UNPRINTABLE.sub("?", text)[:length]
