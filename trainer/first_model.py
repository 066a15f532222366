"""The first global model of a run: untrained, or what an earlier run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from trainer import peers, strategies
from trainer.errors import StrategyError, UnfitModelError
from trainer.networks import initial_weights
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


def check_reachable(plan: Plan, weights: Mapping[str, Array], rounds: int) -> None:
    """Check that a global model is what a plan's rounds can have made of the first model that its seed gives.

    Before any round it must be that model. Later, where the coordinator averages updates, it can lie as far
    from it as the updates' bound allows: other strategies have none, and neither has a packed way back.
    Where a run starts from an earlier model, or sites have their own, nothing is checked.

    Parameters
    ----------
    rounds : int
        Finished before.

    Raises
    ------
    UnfitModelError
        If the model has other tensors, or lies farther from the first one.
    """
    if plan.initial_sha256 or plan.own_models:
        return
    averages = isinstance(strategies.STRATEGIES.get(plan.strategy.name), FedAvg)
    packed = plan.compression is not None and plan.compression.both_ways
    if rounds and (packed or not averages):
        return
    first = first_model(plan.task, plan.strategy.name, plan.seed)
    if weights.keys() != first.keys():
        raise UnfitModelError("the global model has other tensors than the task's network")
    size = moved = 0.0
    for name, array in first.items():
        given = np.asarray(weights[name], dtype=np.float64)
        if given.shape != array.shape:
            raise UnfitModelError("the global model has tensors of other shapes than the task's network")
        if array.dtype.kind == "f":
            size += float(np.square(array, dtype=np.float64).sum())
            moved += float(np.square(given - array).sum())
    rate = rate_of(plan.strategy.parameters) if rounds else 0.0
    most = rounds * plan.max_update_norm * rate * _SLACK + _ROUNDING * max(1.0, size**0.5)
    if not moved**0.5 <= most:
        raise UnfitModelError(
            "the global model is not what this plan's rounds can have made of its seed's first model"
        )
