"""What the rules of all sites share: a round, the protocol of a rule, the rule of most strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trainer import peers
from trainer.errors import UnfitModelError
from trainer.networks import memory_of, with_weights
from trainer.optimisation import Budget, train
from trainer.strategies.streams import EachArray, makes_anew
from trainer.weights_io import become_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from trainer.datasets import Samples
    from trainer.ports import Progress
    from trainer.task import TaskSpec
    from trainer.weights_io import Array, Weights


@dataclass(frozen=True, eq=False)
class Round:
    """What a site trains with; ``own`` is the state of its last round here, empty before the first.

    ``number`` counts the run's rounds from 1. ``network`` is one with the global model's weights that nobody
    else needs, where there is one: :class:`Whole` trains it.
    """

    task: TaskSpec
    strategy: str
    parameters: Mapping[str, Any]
    weights: Mapping[str, Array]
    own: Mapping[str, Array]
    samples: Samples
    number: int
    seed: int
    progress: Progress
    network: torch.nn.Module | None = None


class SiteRule(Protocol):
    """A strategy at a site; it mutates nothing.

    ``own_part`` says what of the deployed model is this site's alone, in words; empty where all sites have
    the same model.
    """

    stateful: bool
    own_part: str

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
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
    own_part = ""

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the global model."""
        del task, own, trained
        return without(weights)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train the global model."""
        mu = peers.terms(this.strategy).proximal_mu(this.parameters, this.task.local.fedprox_mu)
        after, loss = train_from(this, this.weights, proximal_mu=mu, network=this.network)
        return become_difference(after, this.weights), loss, {}

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep nothing."""
        del this, sent, made
        return {}


def without(weights: Mapping[str, Array], prefix: str | None = None) -> Mapping[str, Array]:
    """Return the network's own arrays of a global model, without those under the strategy's prefix.

    They are read where they are when they are asked for.

    Raises
    ------
    UnfitModelError
        If the model brings what neither the network nor the strategy has: a coordinator does not choose by
        names which network a site builds.
    """
    if any(":" in name and (prefix is None or not name.startswith(prefix)) for name in weights):
        raise UnfitModelError("the global model brings arrays that this strategy does not know")
    names = [name for name in weights if ":" not in name]
    return EachArray(names, weights.__getitem__, anew=makes_anew(weights))


def train_from(
    this: Round,
    start: Mapping[str, Array],
    *,
    proximal_mu: float = 0.0,
    centre: Sequence[torch.Tensor] | None = None,
    network: torch.nn.Module | None = None,
    **options: Any,
) -> tuple[Weights, float]:
    """Train from these weights for the round's budget; return the network's weights and the loss.

    ``network`` has them already, where it is given.
    """
    network = network or with_weights(this.task, start)
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
    return memory_of(network), loss
