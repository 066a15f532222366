"""The first global model of a run: untrained, or what an earlier run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer import peers
from trainer.errors import StrategyError, UnfitModelError
from trainer.networks import initial_weights

WRAPPING: Final = frozenset({"domain-adaptation", "variation-aware"})
"""Strategies whose sites use a network around the task's (:mod:`trainer.wrapped`)."""
ANOMALY_ALONE: Final = frozenset({"feddis"})
"""Strategies that need a split autoencoder, which learns nothing but what is healthy."""

if TYPE_CHECKING:
    from collections.abc import Mapping

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
