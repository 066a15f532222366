"""Who may associate, and for what: the peers in the database, as the receiving path sees them."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, or_, select

from appliance import durable, logs
from appliance.db.engine import reading
from appliance.db.peers import Peer
from appliance.names import as_network
from appliance.peers import NEEDS_TLS, WRONG_CERTIFICATE
from dicom_node.ports import Caller, Decision

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.names import Names, Network

UNKNOWN_AE_TITLE: Final = "unknown_ae_title"
WRONG_ADDRESS: Final = "wrong_address"
NAME_UNRESOLVED: Final = "name_unresolved"
NOT_READY: Final = "not_ready"
SNAPSHOT: Final = "senders.json"
SNAPSHOT_UNREADABLE: Final = "callers.snapshot_unreadable"
SNAPSHOT_UNWRITTEN: Final = "callers.snapshot_unwritten"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class _Sender:
    ae_title: str
    host: str
    tls: bool = False
    certificate_sha256: str = ""
    may_send: bool = True
    may_query: bool = False
    may_report: bool = False
    max_associations: int = 0
    max_instances_per_minute: int = 0

    def problem(self, caller: Caller) -> str:
        """Say what its way of calling lacks."""
        if self.certificate_sha256 and caller.tls:
            return "" if caller.certificate_sha256 == self.certificate_sha256 else WRONG_CERTIFICATE
        return NEEDS_TLS if (self.tls or self.certificate_sha256) and not caller.tls else ""


# A destination that commits what we delivered tells us so on an association of its own (PS3.4 J.3.3).
_REPORTS: Final = and_(Peer.is_destination, Peer.commitment)


def is_of(peer: Peer, caller: Caller) -> bool:
    """Whether a caller who was let in is this peer: by AE title, certificate, and address where it has one.

    A peer that is given by host name goes by its title and certificate: its name was resolved when it was
    let in.
    """
    sender, network = _sender(peer), as_network(peer.host)
    if sender.ae_title != caller.calling_ae_title or sender.problem(caller):
        return False
    return network is None or ipaddress.ip_address(caller.address) in network


def _sender(peer: Peer) -> _Sender:
    return _Sender(
        peer.ae_title,
        peer.host,
        peer.tls,
        peer.certificate_sha256,
        peer.may_send,
        peer.may_query,
        peer.is_destination and peer.commitment,
        peer.max_associations,
        peer.max_instances_per_minute,
    )


def _bound(limits: Iterable[int]) -> int:
    """Return the widest of some limits; 0, which is none, is wider than any."""
    found = list(limits)
    return 0 if 0 in found else max(found)


class DatabaseCallers:
    """Who may send, ask for what is stored, or report on what we gave it, from the peers in the database.

    The receiving path asks what is in memory; :meth:`refresh`, called every second from elsewhere, renews it.
    What was read last is kept in a file, so that a process which starts while the database is away knows the
    callers; one that knows nothing asks them to come again.

    Parameters
    ----------
    engine : Engine
    names : Names
        Resolves the peers that are given by host name.
    snapshot : Path
        The file; readable by its owner alone.
    """

    def __init__(self, engine: Engine, names: Names, snapshot: Path) -> None:
        self._engine = engine
        self._names = names
        self._snapshot = snapshot
        self._senders: tuple[_Sender, ...] | None = None
        self._written = ""
        self._load()

    def refresh(self) -> None:
        """Read the peers again."""
        with reading(self._engine) as session:
            peers = session.scalars(
                select(Peer)
                .where(Peer.enabled, or_(Peer.may_send, Peer.may_query, _REPORTS))
                .order_by(Peer.id)
            ).all()
        self._senders = tuple(_sender(peer) for peer in peers)
        self._names.want(sender.host for sender in self._senders if as_network(sender.host) is None)
        self._save(self._senders)

    def decide(self, caller: Caller) -> Decision:
        """Allow a caller whose AE title, address and certificate belong to one enabled peer."""
        if self._senders is None:
            return Decision(allowed=False, reason=NOT_READY, transient=True)
        titled = [sender for sender in self._senders if sender.ae_title == caller.calling_ae_title]
        if not titled:
            return Decision(allowed=False, reason=UNKNOWN_AE_TITLE)
        address = ipaddress.ip_address(caller.address)
        known = [(sender, self._networks(sender.host)) for sender in titled]
        here = [sender for sender, networks in known if any(address in network for network in networks or ())]
        if here:
            fit = [sender for sender in here if not sender.problem(caller)]
            if not fit:
                return Decision(allowed=False, reason=here[0].problem(caller))
            return Decision(
                allowed=True,
                may_store=any(sender.may_send for sender in fit),
                may_query=any(sender.may_query for sender in fit),
                may_report=any(sender.may_report for sender in fit),
                max_associations=_bound(sender.max_associations for sender in fit),
                max_instances_per_minute=_bound(sender.max_instances_per_minute for sender in fit),
            )
        if any(networks is None for _, networks in known):
            return Decision(allowed=False, reason=NAME_UNRESOLVED, transient=True)
        return Decision(allowed=False, reason=WRONG_ADDRESS)

    def _networks(self, host: str) -> tuple[Network, ...] | None:
        network = as_network(host)
        return (network,) if network is not None else self._names.networks(host)

    def _load(self) -> None:
        """Take what an earlier process knew; a file that is not as we write it counts as none."""
        try:
            text = self._snapshot.read_text(encoding="ascii")
            content = json.loads(text)["senders"]
            senders = tuple(
                _Sender(
                    str(row["ae_title"]),
                    str(row["host"]),
                    bool(row["tls"]),
                    str(row["certificate_sha256"]),
                    bool(row.get("may_send", True)),
                    bool(row.get("may_query", False)),
                    bool(row.get("may_report", False)),
                )
                for row in content
            )
            answers = {
                str(row["host"]): tuple(ipaddress.ip_network(item) for item in row["networks"])
                for row in content
                if row["networks"] is not None
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning(SNAPSHOT_UNREADABLE, error=type(error).__name__)
            return
        for host, networks in answers.items():
            if as_network(host) is None:
                self._names.remember(host, networks)
        self._senders = senders
        self._written = text

    def _save(self, senders: tuple[_Sender, ...]) -> None:
        """Write what is known if it changed; a disk that takes nothing must not stop receiving."""
        rows = []
        for sender in senders:
            networks = self._networks(sender.host)
            listed = None if networks is None else sorted(str(network) for network in networks)
            rows.append({**asdict(sender), "networks": listed})
        text = json.dumps({"senders": rows})
        if text == self._written:
            return
        try:
            durable.write_whole(self._snapshot, text.encode("ascii"))
        except OSError as error:
            _LOG.warning(SNAPSHOT_UNWRITTEN, error=type(error).__name__)
        else:
            self._written = text
