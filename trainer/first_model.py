"""The first global model of a run: untrained, or what an earlier run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer import peers, strategies
from trainer.compression.steps import sizes_of
from trainer.errors import StrategyError, UnfitModelError
from trainer.networks import initial_weights
from trainer.peers import Past
from trainer.strategies import streams

WRAPPING: Final = frozenset({"domain-adaptation", "variation-aware"})
"""Strategies whose sites use a network around the task's (:mod:`trainer.wrapped`)."""
ANOMALY_ALONE: Final = frozenset({"feddis"})
"""Strategies that need a split autoencoder, which learns nothing but what is healthy."""

FIRST: Final = "its seed's first model"

_ROUNDING: Final = 1e-4  # of the model's norm: processors draw the same numbers but for their last bits
_SLACK: Final = 1.001

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """Whether a site can say how far the global model of a plan may lie from one it knows.

    Before any round it must be the first model, unless the run starts from an earlier run's. Later ones lie
    within what the updates of the rounds between allow. Where sites have models of their own there is a
    global one before the first round alone; see :func:`reach_of_peers`.
    """
    if not rounds:
        return not plan.initial_sha256
    return not plan.own_models


def reach(plan: Plan, norms: Sequence[Sequence[float]], since: int, known: Mapping[str, Array]) -> float:
    """Return how far rounds can have moved a plan's model, as an L2 norm.

    Parameters
    ----------
    norms : sequence of sequence of float
        By round, all from the first one: L2 norms of the updates that counted.
    since : int
        So many of these rounds are not asked about.
    known : Mapping
        A model of the plan, for its arrays' sizes.
    """
    if since >= len(norms):
        return 0.0
    rule, parameters = strategies.get(plan.strategy.name), plan.strategy.parameters
    capped = [[min(norm, plan.max_update_norm) for norm in one] for one in norms]
    packing = plan.compression
    packed = packing if packing is not None and packing.both_ways else None
    first = 0 if packed is not None else since  # what steps left out long ago may come now
    moved = [rule.longest_step(capped[:count], parameters) for count in range(first + 1, len(capped) + 1)]
    return sum(moved) if packed is None else packed.most_moved(sizes_of(known), moved, since)


def reach_of_peers(plan: Plan, past: Sequence[Past], known: Mapping[str, Array]) -> float:
    """Return how far from the first model any site's own model can lie, as an L2 norm.

    Parameters
    ----------
    past : sequence of Past
        All rounds from the first one.
    known : Mapping
        A model of the plan, for its arrays' sizes.
    """
    capped = [
        Past({site: min(norm, plan.max_update_norm) for site, norm in one.norms.items()}, one.told)
        for one in past
    ]
    chosen = plan.strategy
    return peers.PEERS[chosen.name].farthest(capped, chosen.parameters, plan.seed, sizes_of(known))


def check_reachable(
    weights: Mapping[str, Array], known: Mapping[str, Array], reached: float, what: str = FIRST
) -> None:
    """Check that a model lies where a plan's rounds can have moved one that a site knows.

    Parameters
    ----------
    weights : Mapping
        The model that came, or was made of what came.
    known : Mapping
        The plan's :func:`first_model`, or that of a later round.
    reached : float
        How far it can have moved since, :func:`reach` or :func:`reach_of_peers`; 0 demands the same.
    what : str
        The known model, for the message.

    Raises
    ------
    UnfitModelError
        If the model has other tensors, or lies farther away.
    """
    if weights.keys() != known.keys():
        raise UnfitModelError("the global model has other tensors than the task's network")
    size = moved = 0.0
    for name in known:
        shape, is_float, count = streams.form_of(known, name)
        if streams.form_of(weights, name)[0] != shape:
            raise UnfitModelError("the global model has tensors of other shapes than the task's network")
        if is_float:
            size += streams.squares(known, name, count)
            moved += streams.squared_distance(weights, known, name, count)
    if not moved**0.5 <= reached * _SLACK + _ROUNDING * max(1.0, size**0.5):
        raise UnfitModelError(f"the model is not what this plan's rounds can have made of {what}")
