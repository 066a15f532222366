"""Learning between peers, without a coordinator that aggregates.

``PEERS`` names the rules. Under ``swarm`` all sites hold one model; under the others each keeps its own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from trainer.errors import StrategyError
from trainer.peers.base import Call, Exchange, Message, Past, Peer, PeerRule, Replica, Trained, blend
from trainer.peers.braintorrent import BrainTorrent
from trainer.peers.dfedavgm import DFedAvgM
from trainer.peers.swarm import Swarm
from trainer.strategies import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.strategies.base import Array, Weights

PEERS: Final[Mapping[str, PeerRule]] = MappingProxyType(
    {"swarm": Swarm(), "dfedavgm": DFedAvgM(), "braintorrent": BrainTorrent()}
)
OWN_MODELS: Final = frozenset(name for name, rule in PEERS.items() if not rule.one_model)
"""Rules by which each site keeps a model of its own, and nobody holds a global one."""
NAMES: Final = (*STRATEGIES, *(name for name in PEERS if name not in STRATEGIES))
"""Every strategy, then the rules between peers that are none."""


class Terms(Protocol):
    """What strategies and rules between peers both say of a run and of a site's training."""

    needs_initial: bool

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return the weight of the proximal term that sites train with."""

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Return the first model of a run."""


def terms(name: str) -> Terms:
    """Return what is common to all of that name; raises StrategyError if there is none."""
    if name in PEERS:
        return PEERS[name]
    if name in STRATEGIES:
        return STRATEGIES[name]
    raise StrategyError(f"no strategy of that name; expected one of {', '.join(NAMES)}")


__all__ = [
    "NAMES",
    "OWN_MODELS",
    "PEERS",
    "Call",
    "Exchange",
    "Message",
    "Past",
    "Peer",
    "PeerRule",
    "Replica",
    "Terms",
    "Trained",
    "blend",
    "terms",
]
