"""Who may send: the peers in the database, as the receiving path sees them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.clinical import Peer
from appliance.db.engine import reading
from appliance.names import as_network
from dicom_node.ports import Caller, Decision

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from appliance.names import Names, Network

UNKNOWN_AE_TITLE: Final = "unknown_ae_title"
WRONG_ADDRESS: Final = "wrong_address"
NOT_READY: Final = "not_ready"


@dataclass(frozen=True)
class _Sender:
    ae_title: str
    host: str


class DatabaseCallers:
    """Who may send, from the peers in the database.

    The receiving path asks a snapshot in memory; :meth:`refresh`, called every second from elsewhere, renews
    it. Before the first refresh nobody may send; when the database is away the last snapshot stays.

    Parameters
    ----------
    engine : Engine
    names : Names
        Resolves the peers that are given by host name.
    """

    def __init__(self, engine: Engine, names: Names) -> None:
        self._engine = engine
        self._names = names
        self._senders: tuple[_Sender, ...] | None = None

    def refresh(self) -> None:
        """Read the peers again."""
        with reading(self._engine) as session:
            peers = session.scalars(select(Peer).where(Peer.enabled, Peer.may_send)).all()
        self._senders = tuple(_Sender(peer.ae_title, peer.host) for peer in peers)
        self._names.want(sender.host for sender in self._senders if as_network(sender.host) is None)

    def decide(self, caller: Caller) -> Decision:
        """Allow a caller whose AE title and address belong to one enabled peer."""
        if self._senders is None:
            return Decision(allowed=False, reason=NOT_READY)
        titled = [sender for sender in self._senders if sender.ae_title == caller.calling_ae_title]
        if not titled:
            return Decision(allowed=False, reason=UNKNOWN_AE_TITLE)
        address = ipaddress.ip_address(caller.address)
        if any(address in network for sender in titled for network in self._networks(sender.host)):
            return Decision(allowed=True)
        return Decision(allowed=False, reason=WRONG_ADDRESS)

    def _networks(self, host: str) -> tuple[Network, ...]:
        network = as_network(host)
        return (network,) if network is not None else self._names.networks(host) or ()
