"""Swarm learning: one of the sites, drawn anew for each round, brings the updates together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.peers.base import Alone, Exchange, Message
from trainer.strategies.fedavg import FedAvg
from trainer.strategies.swarm import leader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.peers.base import Call, Peer, Trained


class Swarm(Alone):
    """Swarm learning. Parameter: ``server_learning_rate`` (1) of the drawn site, as for FedAvg.

    All sites hold one model. The drawn site alone sees the others' updates of a round, and sends all the
    model that they make: what FedAvg comes to, bit for bit. Who was away gets the newest model from a site
    that has it.

    References
    ----------
    Warnat-Herresthal et al., Swarm Learning for decentralized and confidential clinical machine learning,
    Nature 2021.
    """

    one_model = True

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        FedAvg().check_parameters(parameters)

    def gather(self, call: Call, peers: Mapping[str, Peer]) -> Exchange:
        """Bring the newest model that is there to who was away when it was made."""
        newest = max(peers[site].version for site in call.there)
        holders = [site for site in call.there if peers[site].version == newest]
        source = leader(call.number, holders, call.seed)
        behind = [site for site in call.there if site not in holders]
        held = peers[source]
        return Exchange(
            {site: replace(peers[site], weights=held.weights, version=newest) for site in behind},
            tuple(Message(source, site, held.weights) for site in behind),
        )

    def spread(self, call: Call, peers: Mapping[str, Peer], trained: Sequence[Trained]) -> Exchange:
        """Average at the drawn site, and send all the others what it made."""
        drawn = leader(call.number, call.there, call.seed)
        contributions = [one.contribution for one in trained]
        weights, _ = FedAvg().aggregate(peers[drawn].weights, contributions, {}, call.parameters)
        others = [site for site in call.there if site != drawn]
        updates = [
            Message(one.contribution.site, drawn, one.leaving)
            for one in trained
            if one.contribution.site != drawn
        ]
        models = [Message(drawn, site, weights) for site in others]
        held = {site: replace(peers[site], weights=weights, version=call.number) for site in call.there}
        return Exchange(held, (*updates, *models), drawn)
