"""Decentralised averaging: sites train with momentum and mix their models with those of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trainer.errors import StrategyError
from trainer.peers import graph, quantised
from trainer.peers.base import Alone, Exchange, Message, Replica, blend
from trainer.strategies.base import apply_step, checked, number, only
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.peers.base import Call, Peer, Trained
    from trainer.strategies.base import Array

WHOLE: Final = 32
_FEWEST_BITS: Final = 4
_MOST_BITS: Final = 8
_PARAMETERS: Final = frozenset({"density", "bits", "momentum", "local_learning_rate"})


class DFedAvgM(Alone):
    """DFedAvgM. Parameters: ``density`` (0), ``bits`` (8), ``momentum`` (0.9), ``local_learning_rate``.

    The latter is the task's unless given. A site's message is the difference between its model and what its
    neighbours hold of it, in numbers of so many bits: what one message rounds off comes with the next. A
    neighbour that missed one gets the whole. Every site weighs the same.

    References
    ----------
    Sun, Li and Wang, Decentralized Federated Averaging, IEEE TPAMI 2023 (first 2021). There a message is the
    quantised local step; here it also makes good what the last one lost, as in Koloskova, Stich and Jaggi,
    Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication, ICML 2019.
    """

    weighs_samples = False

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, _PARAMETERS)
        number(parameters, "density", 0.0, 0.0, 1.0)
        self.momentum(parameters)
        self.local_rate(parameters, 1.0)
        bits_of(parameters)

    def momentum(self, parameters: Mapping[str, Any]) -> float:
        """Return the share of the last step that a local step repeats."""
        return number(parameters, "momentum", 0.9, 0.0, 0.999)

    def local_rate(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return the learning rate of the sites' gradient descent; ``default`` is the task's."""
        return number(parameters, "local_learning_rate", default, 1e-8, 10.0)

    def spread(self, call: Call, peers: Mapping[str, Peer], trained: Sequence[Trained]) -> Exchange:
        """Send each neighbour the difference to what it holds, and mix."""
        bits = bits_of(call.parameters)
        sites = sorted(one.contribution.site for one in trained)
        links = graph.edges(sites, number(call.parameters, "density", 0.0, 0.0, 1.0), call.seed)
        matrix = graph.mixing_matrix(sites, links)
        said = {one.contribution.site: _said(peers, one, call.number, bits) for one in trained}
        messages, held = [], {}
        for place, site in enumerate(sites):
            heard = {site: said[site].now}
            for other in (one for one in sites if (one, site) in links or (site, one) in links):
                arrays, heard[other] = _heard(peers[site].replica(other), said[other], bits)
                messages.append(Message(other, site, arrays))
            shares = {one: float(matrix[place, at]) for at, one in enumerate(sites) if one in heard}
            held[site] = _mixed(peers[site], heard, shares, call.number)
        return Exchange(held, tuple(messages))


def bits_of(parameters: Mapping[str, Any]) -> int:
    """Return how many bits a number takes in a message; 32 sends it as it is."""
    bits = number(parameters, "bits", _MOST_BITS, _FEWEST_BITS, WHOLE)
    if bits != WHOLE and (bits > _MOST_BITS or not bits.is_integer()):
        raise StrategyError(f"parameter bits: expected {_FEWEST_BITS} to {_MOST_BITS}, or {WHOLE}")
    return int(bits)


@dataclass(frozen=True, eq=False)
class _Said:
    """What one site tells: what neighbours held of it, a packed difference, and what they hold then."""

    before: int
    packed: Mapping[str, Array]
    now: Replica


def _said(peers: Mapping[str, Peer], trained: Trained, version: int, bits: int) -> _Said:
    """Make a site's message of its trained model."""
    peer, site = peers[trained.contribution.site], trained.contribution.site
    checked(peer.weights, [trained.contribution])
    weights, public = apply_step(peer.weights, trained.contribution.delta), peer.replica(site)
    if bits == WHOLE:
        return _Said(public.version, weights, Replica(version, weights))
    packed = quantised.pack(difference(weights, public.weights), bits)
    return _Said(public.version, packed, Replica(version, _moved(public, packed, bits)))


def _heard(held: Replica, said: _Said, bits: int) -> tuple[Mapping[str, Array], Replica]:
    """Return what is sent to a neighbour, and what it makes of it with what it holds of the sender."""
    if bits == WHOLE or held.version != said.before:
        return said.now.weights, said.now
    return said.packed, Replica(said.now.version, _moved(held, said.packed, bits))


def _moved(held: Replica, packed: Mapping[str, Array], bits: int) -> Mapping[str, Array]:
    return apply_step(held.weights, quantised.unpack(packed, held.weights, bits))


def _mixed(peer: Peer, heard: Mapping[str, Replica], shares: Mapping[str, float], version: int) -> Peer:
    """Mix a site's model, as others hold it, with those of its neighbours."""
    models = [heard[site].weights for site in sorted(heard)]
    weights = blend(peer.weights, models, [shares[site] for site in sorted(heard)])
    return replace(peer, weights=weights, version=version, known={**peer.known, **heard})
