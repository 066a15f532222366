"""A plan's round at the coordinator: which aggregation it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer import strategies
from trainer.federation import aggregation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.federation.aggregation import Aggregate, Array, Update
    from trainer.federation.plan import Plan


def aggregate(
    plan: Plan,
    number: int,
    weights: Mapping[str, Array],
    state: Mapping[str, Array],
    updates: Sequence[Update],
) -> Aggregate:
    """Check all updates of a round and aggregate those that pass; raises AggregationError for too few."""
    if plan.encryption is not None:
        from trainer.federation import encrypted  # noqa: PLC0415 - the scheme's library loads here

        return encrypted.aggregate(plan, weights, number, updates)
    fewest = 1 if strategies.get(plan.strategy.name).one_at_a_time else plan.min_sites
    return aggregation.aggregate(weights, state, updates, plan.strategy, fewest, plan.bounds)
