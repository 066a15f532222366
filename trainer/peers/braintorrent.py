"""BrainTorrent: a site drawn by chance fetches what is newer elsewhere, merges it and trains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.peers.base import Alone, Exchange, Message, Replica, blend
from trainer.strategies.base import apply_step, checked, only
from trainer.strategies.lots import lot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.peers.base import Call, Peer, Trained
    from trainer.strategies.base import Contribution


class BrainTorrent(Alone):
    """BrainTorrent; no parameters.

    In the first round every site trains alone. After that a round is one initiator's: it asks who is there
    for the versions of their models, fetches those that are newer than what it merged last, takes the mean
    with its own, weighted by cases, and trains. A model that was not trained yet counts for nothing.

    References
    ----------
    Roy et al., BrainTorrent: A Peer-to-Peer Environment for Decentralized Federated Learning, 2019.
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for any parameter."""
        only(parameters, frozenset())

    def rounds(self, trainings: int, sites: int) -> int:
        """Return the first round, in which all train, and a round for each other training."""
        return 1 + (trainings - 1) * sites

    def participants(self, call: Call) -> tuple[str, ...]:
        """Return all in the first round, then the initiator, whose lot is lowest of those who are there."""
        if call.number == 1:
            return call.there
        return (min(call.there, key=lambda site: lot("braintorrent", call.seed, call.number, site)),)

    def gather(self, call: Call, peers: Mapping[str, Peer]) -> Exchange:
        """Bring the initiator what is newer at others than what it knows of them."""
        if call.number == 1:
            return Exchange({})
        [initiator] = self.participants(call)
        mine = peers[initiator]
        newer = {
            site: Replica(peers[site].version, peers[site].weights)
            for site in call.there
            if site != initiator and peers[site].version > mine.replica(site).version
        }
        messages = tuple(Message(site, initiator, one.weights) for site, one in newer.items())
        samples = {site: peers[site].samples for site in newer}
        return Exchange({initiator: merged(mine, newer, samples)}, messages, initiator)

    def spread(self, call: Call, peers: Mapping[str, Peer], trained: Sequence[Trained]) -> Exchange:
        """Keep what was trained, as the next version; nothing is sent before somebody asks."""
        del call
        return Exchange(
            {
                one.contribution.site: advanced(peers[one.contribution.site], one.contribution)
                for one in trained
            }
        )


def advanced(peer: Peer, contribution: Contribution) -> Peer:
    """Return a site with what it trained, as its next version; raises UpdateError for what does not fit."""
    checked(peer.weights, [contribution])
    return replace(peer, weights=apply_step(peer.weights, contribution.delta), version=peer.version + 1)


def merged(peer: Peer, newer: Mapping[str, Replica], samples: Mapping[str, int]) -> Peer:
    """Return a site with the mean of its model and the newer ones, and their versions taken down."""
    if not newer:
        return peer
    names = sorted(newer)
    models = [peer.weights, *(newer[name].weights for name in names)]
    counts = [peer.samples if peer.version else 0, *(samples[name] for name in names)]
    weights = blend(peer.weights, models, [count / sum(counts) for count in counts])
    # Of the others the version alone is kept: a merged model is not needed again.
    seen = {name: Replica(newer[name].version, {}) for name in names}
    return replace(peer, weights=weights, known={**peer.known, **seen})
