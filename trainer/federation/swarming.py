"""A round that one of the sites aggregates: what is sent to it, what it does, how its word is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.errors import UpdateError
from trainer.federation import aggregation
from trainer.strategies import Contribution, check_update
from trainer.strategies.fedavg import rate_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.federation.aggregation import Update
    from trainer.federation.plan import Bounds, Strategy
    from trainer.weights_io import Array, Weights

MODEL: Final = "model:"
UPDATE: Final = "update:"
SAMPLES: Final = "samples:"
_SLACK: Final = 1e-5  # of the numbers' size: for the rounding of a mean


def bundle(weights: Mapping[str, Array], contributions: Sequence[Contribution]) -> Weights:
    """Return a round's global model and checked updates as the arrays of one file."""
    arrays = {MODEL + name: np.asarray(array) for name, array in weights.items()}
    for one in contributions:
        arrays[SAMPLES + one.site] = np.array([one.samples], dtype=np.int64)
        arrays |= {f"{UPDATE}{one.site}:{name}": np.asarray(one.delta[name]) for name in weights}
    return arrays


def unbundle(arrays: Mapping[str, Array]) -> tuple[Weights, list[Update]]:
    """Return what :func:`bundle` joined; raises UpdateError for anything else."""
    model = {name.removeprefix(MODEL): array for name, array in arrays.items() if name.startswith(MODEL)}
    sites = sorted(name.removeprefix(SAMPLES) for name in arrays if name.startswith(SAMPLES))
    known = {SAMPLES + site for site in sites} | {MODEL + name for name in model}
    known |= {f"{UPDATE}{site}:{name}" for site in sites for name in model}
    counts = [arrays[SAMPLES + site] for site in sites]
    if set(arrays) != known or any(one.shape != (1,) or one.dtype.kind != "i" for one in counts):
        raise UpdateError("names", "a round to aggregate: expected a model and whole updates of it")
    return model, [
        aggregation.Update(
            site, {name: arrays[f"{UPDATE}{site}:{name}"] for name in model}, int(arrays[SAMPLES + site][0])
        )
        for site in sites
    ]


def combined(arrays: Mapping[str, Array], strategy: Strategy, min_sites: int, bounds: Bounds) -> Weights:
    """Return the next global model, at the drawn site: every update is checked here once more.

    Raises
    ------
    UpdateError, AggregationError
        If it is no such round, or fewer than ``min_sites`` updates pass.
    """
    model, updates = unbundle(arrays)
    return aggregation.aggregate(model, {}, updates, strategy, min_sites, bounds).weights


def check_word(
    reference: Mapping[str, Array],
    proposed: Mapping[str, Array],
    contributions: Sequence[Contribution],
    parameters: Mapping[str, Any],
) -> None:
    """Refuse a model that no mean of these updates is: each number has to lie between what the sites say.

    Nothing is averaged for it. A site that aggregates wrongly can weigh updates otherwise, and no more.

    Raises
    ------
    UpdateError
        If the model does not fit, is not finite, or lies outside.
    """
    check_update(reference, proposed)
    rate = rate_of(parameters)
    for name, array in reference.items():
        real = array.dtype.kind == "f"
        moved = np.subtract(proposed[name], array, dtype=np.float64 if real else array.dtype)
        low, high = _span([one.delta[name] for one in contributions])
        if real:
            low, high = low * rate, high * rate
            size = np.abs(array.astype(np.float64)) + np.maximum(np.abs(low), np.abs(high))
            slack = size * max(_SLACK, 2 * float(np.finfo(array.dtype).eps)) + 1e-12
            low, high = low - slack, high + slack
        if bool(np.any(moved < low) or np.any(moved > high)):
            raise UpdateError("norm", f"{name}: the aggregate lies outside the updates that it is made of")


def _span(deltas: Sequence[Array]) -> tuple[Array, Array]:
    """Return the least and the largest of each number, an array at a time."""
    low = high = deltas[0]
    for delta in deltas[1:]:
        low, high = np.minimum(low, delta), np.maximum(high, delta)
    wide = np.float64 if low.dtype.kind == "f" else low.dtype
    return low.astype(wide), high.astype(wide)
