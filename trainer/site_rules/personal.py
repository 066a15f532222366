"""Sites that keep a part of the model, or a model, of their own: FedBN, FedDis and Ditto."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer import strategies
from trainer.errors import StrategyError, UnfitModelError
from trainer.networks import initial_weights, with_weights
from trainer.optimisation import seed_of
from trainer.site_rules.base import Whole, train_from, without
from trainer.strategies.ditto import Ditto
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.site_rules.base import Round
    from trainer.task import TaskSpec
    from trainer.weights_io import Array, Weights


class OwnPart(Whole):
    """The network is the global model with a part of the site's own, which the strategy leaves out of it."""

    stateful = True
    strategy: str

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Join both.

        Raises
        ------
        WeightsError
            If the global model brings such a part itself, which would make ours leave.
        StrategyError
            If the site has none of its own although it must.
        """
        initial = initial_weights(task)
        if set(weights) != set(strategies.get(self.strategy).prepared(initial)):
            raise UnfitModelError(
                f"{self.strategy}: expected a global model of the network without {self.own_part}"
            )
        if trained and not own:
            raise StrategyError(f"{self.strategy}: this site trained no round; it has no {self.own_part}")
        return {name: weights[name] if name in weights else own.get(name, initial[name]) for name in initial}

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train all of it; what leaves is the global model's part."""
        start = self.deployed(this.task, this.weights, this.own, trained=False)
        after, loss = train_from(this, start)
        return (
            difference(after, this.weights),
            loss,
            {n: a for n, a in after.items() if n not in this.weights},
        )

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep that part."""
        del this, sent
        return dict(made)


class OwnNormalisation(OwnPart):
    """FedBN's site."""

    strategy = "fedbn"
    own_part = "batch normalisation"


class OwnAppearance(OwnPart):
    """FedDis's site."""

    strategy = "feddis"
    own_part = "appearance encoder"


class Personal(Whole):
    """Ditto's site: it trains the global model for all, and a model of its own that stays."""

    stateful = True
    own_part = "whole network"

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the site's own model; before it has one, the global one."""
        del task, trained
        network = without(weights)
        return dict(own or network)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train both, the own one held near the global one."""
        delta, loss, _ = super().train(this)
        network = with_weights(this.task, this.weights)
        centre = [parameter.detach().clone() for parameter in network.parameters()]
        mu = Ditto().personal_mu(this.parameters)
        mine = replace(this, seed=seed_of("personal", this.seed))
        after, _ = train_from(mine, this.own or this.weights, proximal_mu=mu, centre=centre)
        return delta, loss, after

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the own model."""
        del this, sent
        return dict(made)
