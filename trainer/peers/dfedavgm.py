"""Decentralised averaging: sites train with momentum and mix their models with those of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trainer.compression.base import rounding_share
from trainer.errors import StrategyError
from trainer.peers import graph, quantised
from trainer.peers.base import Alone, Exchange, Message, Replica, blend
from trainer.strategies.base import apply_step, checked, number, only
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trainer.peers.base import Call, Past, Peer, Trained
    from trainer.strategies.base import Array, Contribution

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
        said = {
            one.contribution.site: speak(peers[one.contribution.site], one.contribution, call.number, bits)
            for one in trained
        }
        messages, held = [], {}
        for site in sites:
            parts = shares(site, sites, call.parameters, call.seed)
            heard = {site: said[site].now}
            for other in (one for one in parts if one != site):
                arrays, heard[other] = _heard(peers[site].replica(other), said[other], bits)
                messages.append(Message(other, site, arrays))
            held[site] = mix(peers[site], heard, parts, call.number)
        return Exchange(held, tuple(messages))

    def farthest(
        self, past: Sequence[Past], parameters: Mapping[str, Any], seed: int, sizes: Sequence[int]
    ) -> float:
        """Return what updates move models by, and what rounding to few bits does.

        A message rounds the difference between a site's model and what others hold of it, which is no more
        than what lies between any two models that are held anywhere. That grows with each round, and shrinks
        where all mix that ever took part.
        """
        bits = bits_of(parameters)
        levels, size = 2 ** (bits - 1) - 1, max(sizes, default=0)
        share = 0.0 if bits == WHOLE else rounding_share(size, levels)
        far = apart = mixed = 0.0  # from the start; any two; any two of those that are trained next
        seen: set[str] = set()
        all_told = True
        for one in past:
            all_told = all_told and one.told
            if not one.told or set(one.norms) - seen:  # who is new stands where all started
                apart, mixed = max(apart, far), max(mixed, far)
            move = one.longest + share * (one.longest + apart)
            far += move
            if all_told and one.norms and seen <= set(one.norms):
                apart = mixed + 2 * move
                left = contraction_of(one.norms, parameters, seed)
                mixed = left * apart if left else 0.0
            else:
                apart += 2 * move
                mixed = apart
            seen |= set(one.norms)
        return far


def bits_of(parameters: Mapping[str, Any]) -> int:
    """Return how many bits a number takes in a message; 32 sends it as it is."""
    bits = number(parameters, "bits", _MOST_BITS, _FEWEST_BITS, WHOLE)
    if bits != WHOLE and (bits > _MOST_BITS or not bits.is_integer()):
        raise StrategyError(f"parameter bits: expected {_FEWEST_BITS} to {_MOST_BITS}, or {WHOLE}")
    return int(bits)


@dataclass(frozen=True, eq=False)
class Said:
    """What one site tells: the version that neighbours held of it, a message, and what they hold then."""

    before: int
    message: Mapping[str, Array]
    now: Replica


def shares(site: str, sites: Collection[str], parameters: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Return what a site's own model and those of its neighbours weigh in its mean, by name and in its order.

    Parameters
    ----------
    sites : Collection of str
        All that take part in the round, ``site`` among them.
    """
    names = sorted(sites)
    links = graph.edges(names, number(parameters, "density", 0.0, 0.0, 1.0), seed)
    row = graph.mixing_matrix(names, links)[names.index(site)]
    linked = {one for pair in links for one in pair if site in pair} | {site}
    return {one: float(row[at]) for at, one in enumerate(names) if one in linked}


def contraction_of(sites: Collection[str], parameters: Mapping[str, Any], seed: int) -> float:
    """Return what a round of these sites leaves of the largest distance between two of their models."""
    links = graph.edges(sites, number(parameters, "density", 0.0, 0.0, 1.0), seed)
    return graph.contraction(graph.mixing_matrix(sites, links))


def speak(peer: Peer, contribution: Contribution, version: int, bits: int) -> Said:
    """Make a site's message of what training changed; raises UpdateError for what does not fit its model."""
    checked(peer.weights, [contribution])
    weights, public = apply_step(peer.weights, contribution.delta), peer.replica(contribution.site)
    if bits == WHOLE:
        return Said(public.version, weights, Replica(version, weights))
    packed = quantised.pack(difference(weights, public.weights), bits)
    return Said(public.version, packed, Replica(version, moved(public, packed, bits)))


def moved(held: Replica, packed: Mapping[str, Array], bits: int) -> Mapping[str, Array]:
    """Return what a packed message makes of what is held of its sender; raises UpdateError for no message."""
    return apply_step(held.weights, quantised.unpack(packed, held.weights, bits))


def mix(peer: Peer, heard: Mapping[str, Replica], parts: Mapping[str, float], version: int) -> Peer:
    """Mix a site's model, as others hold it, with those of its neighbours; ``parts`` are :func:`shares`.

    Raises
    ------
    UpdateError
        If a model does not fit the site's, or is not finite.
    """
    names = sorted(heard)
    weights = blend(peer.weights, [heard[one].weights for one in names], [parts[one] for one in names])
    return replace(peer, weights=weights, version=version, known={**peer.known, **heard})


def _heard(held: Replica, said: Said, bits: int) -> tuple[Mapping[str, Array], Replica]:
    """Return what is sent to a neighbour, and what it makes of it with what it holds of the sender."""
    if bits == WHOLE or held.version != said.before:
        return said.now.weights, said.now
    return said.message, Replica(said.now.version, moved(held, said.message, bits))
