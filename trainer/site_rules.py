"""What a site does in a round, by strategy, and what of it stays there for the next round.

The state is a site's own: it never leaves, and it survives restarts where the caller keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from trainer import strategies
from trainer.errors import StrategyError, UnfitModelError, WeightsError
from trainer.networks import initial_weights, weights_of, with_weights
from trainer.optimisation import Budget, seed_of, train
from trainer.steppers import Corrected
from trainer.strategies.ditto import Ditto
from trainer.strategies.scaffold import CONTROL, Scaffold
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.datasets import Samples
    from trainer.ports import Progress
    from trainer.steppers import Stepper
    from trainer.task import LocalSpec, TaskSpec
    from trainer.weights_io import Array, Weights


@dataclass(frozen=True, eq=False)
class Round:
    """What a site trains with; ``own`` is the state of its last round here, empty before the first."""

    task: TaskSpec
    strategy: str
    parameters: Mapping[str, Any]
    weights: Mapping[str, Array]
    own: Mapping[str, Array]
    samples: Samples
    seed: int
    progress: Progress


class SiteRule(Protocol):
    """A strategy at a site; it mutates nothing."""

    stateful: bool

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Weights:
        """Return the network's weights that are measured and, of the final model, exported at this site.

        ``trained`` says that the site must have a state by now.
        """

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Return the update, the training loss, and what else the next state is made of."""

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Return the next state; ``sent`` is the update as it leaves, ``made`` what training left."""


class Whole:
    """The global model is the network's, and nothing stays."""

    stateful = False

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Weights:
        """Return the global model."""
        del task, own, trained
        return dict(weights)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train the global model."""
        mu = strategies.get(this.strategy).proximal_mu(this.parameters, this.task.local.fedprox_mu)
        after, loss = _trained(this, this.weights, proximal_mu=mu)
        return difference(after, this.weights), loss, {}

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep nothing."""
        del this, sent, made
        return {}


class OwnNormalisation(Whole):
    """FedBN's site: the network is the global model with the site's own batch normalisation."""

    stateful = True

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Weights:
        """Join both.

        Raises
        ------
        WeightsError
            If the global model brings batch normalisation of its own, which would make ours leave.
        StrategyError
            If the site has none of its own although it must.
        """
        initial = initial_weights(task)
        if set(weights) != set(strategies.get("fedbn").prepared(initial)):
            raise UnfitModelError("fedbn: expected a global model of the network without batch normalisation")
        if trained and not own:
            raise StrategyError("fedbn: this site has no batch normalisation of its own; it trained no round")
        return {name: weights[name] if name in weights else own.get(name, initial[name]) for name in initial}

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train all of it; what leaves is the global model's part."""
        start = self.deployed(this.task, this.weights, this.own, trained=False)
        after, loss = _trained(this, start)
        return (
            difference(after, this.weights),
            loss,
            {n: a for n, a in after.items() if n not in this.weights},
        )

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the batch normalisation."""
        del this, sent
        return dict(made)


class Controlled(Whole):
    """SCAFFOLD's site: plain gradient descent, corrected by the difference of two control variates."""

    stateful = True

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Weights:
        """Return the global model without the control variates."""
        del task, own, trained
        return {name: array for name, array in weights.items() if not name.startswith(CONTROL)}

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train, and say how the site's control variate changes (option II)."""
        rate = Scaffold().local_rate(this.parameters, this.task.local.learning_rate)
        spec = replace(this.task.local, learning_rate=rate)
        start = self.deployed(this.task, this.weights, this.own, trained=False)
        own = _controls(this)

        def stepper(network: torch.nn.Module, spec: LocalSpec) -> Stepper:
            named = dict(network.named_parameters())
            corrections = [torch.from_numpy(this.weights[CONTROL + n] - own[n]) for n in named]
            return Corrected(named.values(), corrections, spec)

        after, loss = _trained(
            replace(this, task=replace(this.task, local=spec)), start, make_stepper=stepper
        )
        delta = difference(after, start)
        steps = spec.local_steps * rate
        for name, mine in own.items():
            change = -this.weights[CONTROL + name] - delta[name] / steps  # next - own, of option II
            delta[CONTROL + name] = np.asarray(change, dtype=mine.dtype)
        return delta, loss, {}

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the control variate as the coordinator counts it: by what left, scaled down or not."""
        del made
        return {name: np.asarray(mine + sent[CONTROL + name]) for name, mine in _controls(this).items()}


class Personal(Whole):
    """Ditto's site: it trains the global model for all, and a model of its own that stays."""

    stateful = True

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Weights:
        """Return the site's own model; before it has one, the global one."""
        del task, trained
        return dict(own or weights)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train both, the own one held near the global one."""
        delta, loss, _ = super().train(this)
        network = with_weights(this.task, this.weights)
        centre = [parameter.detach().clone() for parameter in network.parameters()]
        mu = Ditto().personal_mu(this.parameters)
        mine = replace(this, seed=seed_of("personal", this.seed))
        after, _ = _trained(mine, this.own or this.weights, proximal_mu=mu, centre=centre)
        return delta, loss, after

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the own model."""
        del this, sent
        return dict(made)


_WHOLE: Final = Whole()
_RULES: Final[dict[str, SiteRule]] = {
    "fedbn": OwnNormalisation(),
    "scaffold": Controlled(),
    "ditto": Personal(),
}


def site_rule(strategy: str) -> SiteRule:
    """Return what a site does under a strategy; raises StrategyError for an unknown one."""
    strategies.get(strategy)
    return _RULES.get(strategy, _WHOLE)


def _trained(
    this: Round,
    start: Mapping[str, Array],
    *,
    proximal_mu: float = 0.0,
    centre: Sequence[torch.Tensor] | None = None,
    **options: Any,
) -> tuple[Weights, float]:
    network = with_weights(this.task, start)
    loss = train(
        network,
        this.samples,
        this.task.local,
        Budget(this.task.local.local_steps, this.task.local.batch_size),
        seed=this.seed,
        proximal_mu=proximal_mu,
        progress=this.progress,
        centre=centre,
        **options,
    )
    return weights_of(network), loss


def _controls(this: Round) -> Weights:
    """Return the site's control variate: as kept, or zero in its first round."""
    names = [name.removeprefix(CONTROL) for name in this.weights if name.startswith(CONTROL)]
    if not this.own:
        return {name: np.zeros_like(this.weights[name]) for name in names}
    if set(this.own) != set(names):
        raise WeightsError("scaffold: the site's control variate does not fit the global model")
    return {name: this.own[name] for name in names}
