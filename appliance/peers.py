"""Peers: who may send to us, where results go, and who was turned away."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, func, or_, select, update

from appliance.db.base import now
from appliance.db.engine import writing
from appliance.db.peers import Delivery, Fetch, Peer, RejectedCaller
from appliance.names import as_network
from appliance.peer_values import FIELDS, NewPeer, PeerError, checked, values_of
from dicom_node.scu import Destination
from dicom_node.tls import TLSOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from appliance.settings import DICOMSettings
    from dicom_node.ports import Caller

__all__ = [
    "CallerRecorder",
    "NewPeer",
    "PeerError",
    "add_peer",
    "allow_caller",
    "change_peer",
    "destination_of",
    "get_peer",
    "list_peers",
    "list_rejected",
    "remove_peer",
    "set_enabled",
    "tls_options_of",
]

PEER_ADDED: Final = "peer.added"
PEER_CHANGED: Final = "peer.changed"
PEER_REMOVED: Final = "peer.removed"

NEEDS_TLS: Final = "needs_tls"
WRONG_CERTIFICATE: Final = "wrong_certificate"
ALLOWING_IS_NO_HELP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tls_failed": "give the caller a certificate of an authority that is trusted here (dicom.tls_ca)",
        NEEDS_TLS: "set TLS up at the caller, or change its peer",
        "wrong_called_ae_title": "the caller must call this node's own AE title",
        "too_many_associations": "it is known; the node or the peer was at its bound",
    }
)
MAX_REJECTED_ROWS: Final = 1000
_MAX_PENDING: Final = 1000
_RECORDED: Final = ("may_send", "is_destination", "may_query", "is_archive", "tls")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def add_peer(session: Session, ledger: Ledger, new: NewPeer, actor: str = "node") -> Peer:
    """Add a peer in the caller's writing transaction.

    Raises
    ------
    PeerError
        Naming the field that is wrong.
    """
    new = checked(new)
    if session.scalar(select(Peer.id).where(Peer.name == new.name)) is not None:
        raise PeerError("name: taken already")
    peer = Peer(**asdict(new))
    session.add(peer)
    session.flush()
    body = {name: getattr(new, name) for name in _RECORDED}
    ledger.append(session, kind=PEER_ADDED, subject_id=peer.id, body=body, actor=actor)
    return peer


def change_peer(
    session: Session, ledger: Ledger, *, name: str, changes: Mapping[str, Any], actor: str = "node"
) -> Peer:
    """Change fields of a peer in the caller's writing transaction; the ledger says which.

    Parameters
    ----------
    name : str
        Of the peer as it is now.
    changes : mapping
        Field of :class:`NewPeer` to its new value.

    Raises
    ------
    PeerError
        If there is no such peer, or naming the field that is wrong.
    """
    peer = get_peer(session, name)
    before = values_of(peer)
    unknown = set(changes) - set(FIELDS)
    if unknown:
        raise PeerError(f"{min(unknown)}: no field of a peer")
    after = checked(replace(before, **changes))
    changed = [field for field in FIELDS if getattr(after, field) != getattr(before, field)]
    if "name" in changed and session.scalar(select(Peer.id).where(Peer.name == after.name)) is not None:
        raise PeerError("name: taken already")
    for field in changed:
        setattr(peer, field, getattr(after, field))
    if changed:
        body = {"fields": changed, **{field: getattr(after, field) for field in _RECORDED}}
        ledger.append(session, kind=PEER_CHANGED, subject_id=peer.id, body=body, actor=actor)
    return peer


def note_secret(session: Session, ledger: Ledger, peer: Peer, *, actor: str = "node") -> None:
    """Write into the ledger that the secret of a peer was stored."""
    ledger.append(session, kind=PEER_CHANGED, subject_id=peer.id, body={"fields": ["secret"]}, actor=actor)


def allow_caller(
    session: Session, ledger: Ledger, *, caller_id: str, name: str = "", actor: str = "node"
) -> Peer:
    """Let a caller in that was turned away, exactly as it called.

    One that came over TLS must come so from now on, with the certificate that it showed. Where a peer's
    certificate is another one, it gets the one that was shown: it was renewed.

    Parameters
    ----------
    caller_id : str
        Of the row in the list of callers turned away.
    name : str
        The new peer's; empty for one made of AE title and address.

    Raises
    ------
    PeerError
        If the caller is no longer listed, or allowing it cannot help it.
    """
    caller = session.get(RejectedCaller, caller_id)
    if caller is None:
        raise PeerError("this caller is no longer listed")
    problem = ALLOWING_IS_NO_HELP.get(caller.reason)
    if problem:
        raise PeerError(problem)
    if caller.reason == WRONG_CERTIFICATE and caller.certificate_sha256:
        peer = _renew_certificate(session, ledger, caller, actor)
    elif (known := _just_allowed(session, caller)) is not None:
        peer = known
    else:
        new = NewPeer(
            name=name.strip() or _free_name(session, caller),
            ae_title=caller.calling_ae_title,
            host=caller.address,
            may_send=True,
            tls=caller.tls,
            certificate_sha256=caller.certificate_sha256,
        )
        peer = add_peer(session, ledger, new, actor)
    session.delete(caller)
    return peer


def _just_allowed(session: Session, caller: RejectedCaller) -> Peer | None:
    """Return the peer that the caller has become: one that calls without pause is listed a moment longer."""
    became = select(Peer).where(
        Peer.enabled,
        Peer.may_send,
        Peer.ae_title == caller.calling_ae_title,
        Peer.host == caller.address,
        Peer.certificate_sha256 == caller.certificate_sha256,
    )
    return session.scalar(became.limit(1))


def _renew_certificate(session: Session, ledger: Ledger, caller: RejectedCaller, actor: str) -> Peer:
    address = ipaddress.ip_address(caller.address)
    titled = session.scalars(
        select(Peer).where(Peer.enabled, Peer.ae_title == caller.calling_ae_title).order_by(Peer.name)
    )
    for peer in titled:
        network = as_network(peer.host)
        if peer.certificate_sha256 and (network is None or address in network):
            changes = {"certificate_sha256": caller.certificate_sha256}
            return change_peer(session, ledger, name=peer.name, changes=changes, actor=actor)
    raise PeerError("no peer has this AE title and address any more; let it call again")


def _free_name(session: Session, caller: RejectedCaller) -> str:
    taken = set(session.scalars(select(Peer.name)))
    title = re.sub(r"[^A-Za-z0-9 ._-]", "-", caller.calling_ae_title).strip(" ._-") or "peer"
    base = f"{title} {caller.address.replace(':', '-')}"[:58]
    return next(
        name for name in (base, *(f"{base} {number}" for number in range(2, 1000))) if name not in taken
    )


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
    """Remove a peer that nothing was ever delivered to or fetched from; disable the others instead.

    Raises
    ------
    PeerError
        If there is no such peer, or deliveries or fetches refer to it.
    """
    peer = get_peer(session, name)
    if session.scalar(select(Delivery.id).where(Delivery.peer_id == peer.id).limit(1)) is not None:
        raise PeerError("deliveries refer to this peer; disable it instead")
    if session.scalar(select(Fetch.id).where(Fetch.peer_id == peer.id).limit(1)) is not None:
        raise PeerError("fetches refer to this peer; disable it instead")
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


def destination_of(peer: Peer, dicom: DICOMSettings, timeout_s: float = 30) -> Destination:
    """Return a peer as the SCU wants it; ``dicom`` says with which certificate we come over TLS."""
    return Destination(
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        timeout_s=timeout_s,
        tls=tls_options_of(peer, dicom) if peer.tls else None,
        max_kib_per_s=peer.max_kib_per_s,
    )


def tls_options_of(peer: Peer, dicom: DICOMSettings) -> TLSOptions:
    """Return what we show to a peer, and what it must show, over DIMSE or DICOMweb."""
    return TLSOptions(
        certificate=dicom.tls_certificate,
        key=dicom.tls_key,
        ca=dicom.tls_ca,
        sha256=peer.certificate_sha256,
    )


@dataclass(frozen=True)
class _Rejection:
    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True)
class _Circumstances:
    """How it called last."""

    reason: str
    at: datetime
    tls: bool
    certificate_sha256: str


class CallerRecorder:
    """Collects who called, in memory, until :meth:`flush` writes it: receiving never waits for a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._rejected: Counter[_Rejection] = Counter()
        self._reasons: dict[_Rejection, _Circumstances] = {}
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
                self._reasons[key] = _Circumstances(reason[:64], now(), caller.tls, caller.certificate_sha256)

    def flush(self) -> None:
        """Write what was noted; what cannot be written now is kept for the next time."""
        with self._lock:
            rejected, reasons, seen = dict(self._rejected), dict(self._reasons), dict(self._seen)
        if not rejected and not seen:
            return
        with writing(self._engine) as session:
            for key, count in rejected.items():
                _store_rejection(session, key, count, reasons[key])
            for ae_title, at in seen.items():
                calls = or_(Peer.may_send, Peer.may_query)
                session.execute(update(Peer).where(Peer.ae_title == ae_title, calls).values(last_seen_at=at))
            _forget_oldest(session)
        with self._lock:
            self._rejected.subtract(rejected)
            self._rejected = +self._rejected
            self._reasons = {key: self._reasons[key] for key in self._rejected}
            self._seen = {title: at for title, at in self._seen.items() if seen.get(title) != at}


def _store_rejection(session: Session, key: _Rejection, count: int, last: _Circumstances) -> None:
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
                reason=last.reason,
                tls=last.tls,
                certificate_sha256=last.certificate_sha256,
                count=count,
                first_seen_at=last.at,
                last_seen_at=last.at,
            )
        )
        return
    row.count += count
    row.reason, row.tls, row.certificate_sha256 = last.reason, last.tls, last.certificate_sha256
    row.last_seen_at = last.at


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
