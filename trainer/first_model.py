"""The first global model of a run: untrained, or what an earlier run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer import peers, strategies
from trainer.errors import StrategyError, UnfitModelError
from trainer.networks import initial_weights
from trainer.strategies import streams
from trainer.strategies.fedavg import FedAvg, rate_of

WRAPPING: Final = frozenset({"domain-adaptation", "variation-aware"})
"""Strategies whose sites use a network around the task's (:mod:`trainer.wrapped`)."""
ANOMALY_ALONE: Final = frozenset({"feddis"})
"""Strategies that need a split autoencoder, which learns nothing but what is healthy."""

_ROUNDING: Final = 1e-4  # of the model's norm: processors draw the same numbers but for their last bits
_SLACK: Final = 1.001

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.federation.plan import Plan
    from trainer.task import TaskSpec
    from trainer.weights_io import Array, Weights


def first_model(
    task: TaskSpec, strategy: str, seed: int, earlier: Mapping[str, Array] | None = None
) -> Weights:
    """Return the global model as sites get it in the first round.

    Parameters
    ----------
    task : TaskSpec
        The network.
    strategy : str
        Of :data:`trainer.peers.NAMES`.
    seed : int
        Of the untrained network, where there is no earlier model.
    earlier : Mapping, optional
        An earlier run's global model of the same network.

    Raises
    ------
    StrategyError
        If the strategy starts from an earlier model and there is none, or puts another network around one
        that finds anomalies.
    UnfitModelError
        If the earlier model has other names, shapes or types than the network.
    """
    chosen = peers.terms(strategy)
    if task.anomaly is not None and strategy in WRAPPING:
        raise StrategyError(f"{strategy}: does not go with an anomaly task; expected another")
    initial = initial_weights(task, seed)
    if earlier is None:
        if chosen.needs_initial:
            raise StrategyError(f"{strategy}: expected an earlier run's model to start from")
        return chosen.prepared(initial)
    if {name: (array.shape, array.dtype) for name, array in earlier.items()} != {
        name: (array.shape, array.dtype) for name, array in initial.items()
    }:
        raise UnfitModelError("the earlier model has other names, shapes or types than the task's network")
    return chosen.prepared(dict(earlier))


def is_bounded(plan: Plan, rounds: int) -> bool:
    """Whether :func:`check_reachable` says anything about the model of a plan after so many rounds.

    Before any round it must be the first model. Later it can lie only so far from it where the coordinator
    averages updates: other strategies have no such bound, and neither has a packed way back. Nothing is known
    where a run starts from an earlier model, or sites have their own.
    """
    if plan.initial_sha256 or plan.own_models:
        return False
    averages = isinstance(strategies.STRATEGIES.get(plan.strategy.name), FedAvg)
    packed = plan.compression is not None and plan.compression.both_ways
    return not rounds or (averages and not packed)


def check_reachable(
    plan: Plan, weights: Mapping[str, Array], rounds: int, first: Mapping[str, Array]
) -> None:
    """Check that a global model is what a plan's rounds can have made of the first model that its seed gives.

    Parameters
    ----------
    weights : Mapping
        The global model; where :func:`is_bounded` says no, nothing is checked.
    rounds : int
        Finished before.
    first : Mapping
        The plan's :func:`first_model`.

    Raises
    ------
    UnfitModelError
        If the model has other tensors, or lies farther from the first one.
    """
    if not is_bounded(plan, rounds):
        return
    if weights.keys() != first.keys():
        raise UnfitModelError("the global model has other tensors than the task's network")
    size = moved = 0.0
    for name in first:
        shape, is_float, count = streams.form_of(first, name)
        if streams.form_of(weights, name)[0] != shape:
            raise UnfitModelError("the global model has tensors of other shapes than the task's network")
        if is_float:
            size += streams.squares(first, name, count)
            moved += streams.squared_distance(weights, first, name, count)
    rate = rate_of(plan.strategy.parameters) if rounds else 0.0
    most = rounds * plan.max_update_norm * rate * _SLACK + _ROUNDING * max(1.0, size**0.5)
    if not moved**0.5 <= most:
        raise UnfitModelError(
            "the global model is not what this plan's rounds can have made of its seed's first model"
        )
