"""One round's aggregation: each update is checked alone; what is refused is recorded, the rest averaged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer import strategies
from trainer.errors import UpdateError, WeightsError
from trainer.federation.errors import AggregationError
from trainer.federation.plan import MAX_SAMPLES
from trainer.weights_io import Stored, digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trainer.federation.plan import Bounds, Strategy

Array = NDArray[Any]
MAX_ARRAYS: Final = 100_000
MAX_NAME: Final = 500
_DTYPES: Final = frozenset(
    np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
)


@dataclass(frozen=True, eq=False)
class Update:
    """One site's answer as it arrived; nothing of it is trusted yet.

    ``norm`` is what its site signed as the most of its L2 norm: the others bound the next model by it.
    """

    site: str
    delta: Mapping[str, Array]
    samples: int
    norm: float = math.inf


@dataclass(frozen=True)
class Judgement:
    """What became of one update. ``reason`` is None when it was counted.

    ``samples`` is its weight in the mean, ``claimed`` what the site said. ``anomaly`` is the score of
    :func:`trainer.strategies.anomaly_scores`, None where nobody was compared.
    ``weight`` is the site's share of the mean where the strategy decides over it.
    """

    site: str
    samples: int
    claimed: int
    update_sha256: str
    reason: str | None
    anomaly: float | None = None
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A finished round: the next global model, the strategy's state, and one judgement per update."""

    weights: dict[str, Array]
    state: dict[str, Array]
    judgements: tuple[Judgement, ...]


def judge(reference: Mapping[str, Array], update: Update, bounds: Bounds) -> Judgement:
    """Check one update against the global model that it was trained from."""
    judgement, _ = _judge(reference, update, bounds)
    return judgement


def _judge(
    reference: Mapping[str, Array], update: Update, bounds: Bounds, safe: Collection[str] = ()
) -> tuple[Judgement, float]:
    """Check one update; return its norm, too. ``safe``: arrays that none can lead out of their range."""
    norm = math.nan
    digest = fingerprint(update.delta)
    claimed, samples, reason = claims(update, bounds)
    if reason is None:
        try:
            most = min(bounds.update_norm, update.norm)
            norm = strategies.check_update(reference, update.delta, max_norm=most)
            # One that leaves a range must not end the round.
            strategies.check_step(reference, update.delta, safe)
        except UpdateError as error:
            reason = str(error)
    return Judgement(update.site, samples, claimed, digest, reason), norm


def claims(update: Update, bounds: Bounds) -> tuple[int, int, str | None]:
    """Return the samples that a site claims, those that count, and why the claim is none."""
    reason = None if 1 <= update.samples <= MAX_SAMPLES else f"samples: expected 1 to {MAX_SAMPLES}"
    claimed = max(0, min(update.samples, MAX_SAMPLES))
    return claimed, min(claimed, bounds.samples), reason


def aggregate(
    reference: Mapping[str, Array],
    state: Mapping[str, Array],
    updates: Sequence[Update],
    strategy: Strategy,
    min_sites: int,
    bounds: Bounds,
) -> Aggregate:
    """Check all updates and aggregate those that pass.

    Parameters
    ----------
    reference : Mapping
        The round's global model.
    min_sites : int
        Fewest usable updates; with fewer the round does not count.
    bounds : Bounds
        Of the plan: a larger update is refused, more samples count as that many.

    Raises
    ------
    AggregationError
        If fewer than ``min_sites`` updates are usable.
    """
    safe = strategies.roomy(reference, bounds.update_norm)
    judged = [_judge(reference, update, bounds, safe) for update in updates]
    judgements = tuple(judgement for judgement, _ in judged)
    usable = [
        strategies.Contribution(update.site, update.delta, judgement.samples, norm)
        for update, (judgement, norm) in zip(updates, judged, strict=True)
        if judgement.reason is None
    ]
    if len(usable) < min_sites:
        raise AggregationError(f"{len(usable)} usable updates; expected at least {min_sites}")
    rule = strategies.get(strategy.name)
    weights, next_state = rule.aggregate(reference, usable, state, strategy.parameters)
    scores, shares = strategies.anomaly_scores(usable), strategies.site_weights(next_state)
    return Aggregate(
        weights,
        next_state,
        tuple(replace(one, anomaly=scores.get(one.site), weight=shares.get(one.site)) for one in judgements),
    )


def plain_arrays(received: Mapping[Any, Any]) -> dict[str, Array]:
    """Return what arrived as plain arrays.

    Raises
    ------
    UpdateError
        For anything but arrays (or their scalars) of numbers under printable names.
    """
    if len(received) > MAX_ARRAYS:
        raise UpdateError("names", f"expected at most {MAX_ARRAYS} arrays")
    result: dict[str, Array] = {}
    for name, value in received.items():
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise UpdateError("names", f"expected printable names of at most {MAX_NAME} characters")
        if type(value) is not np.ndarray and not isinstance(value, np.generic):
            raise UpdateError("dtype", "expected arrays of numbers")
        array = np.asarray(value)
        if array.dtype not in _DTYPES or not array.dtype.isnative:
            raise UpdateError("dtype", "expected arrays of numbers")
        result[name] = array
    return result


def fitted(reference: Mapping[str, Array], received: Mapping[str, Any]) -> dict[str, Array]:
    """Return received arrays in the reference's shapes and dtypes where only the carrier changed them.

    Transport turns 0-d arrays into numpy scalars of another width. What the reference's dtype cannot hold,
    or another size, is left as it came, for the check to refuse.
    """
    result: dict[str, Array] = {}
    for name, value in received.items():
        array = np.asarray(value)
        expected = reference.get(name)
        if expected is not None and array.size == expected.size == 1 and array.dtype.kind in "fi":
            with np.errstate(invalid="ignore", over="ignore"):
                cast = array.reshape(expected.shape).astype(expected.dtype)
            if cast.dtype.kind == "f" or int(cast.item()) == array.item():
                array = cast
        result[str(name)] = array
    return result


def fingerprint(weights: Mapping[str, Any]) -> str:
    """Hash arrays as their weights file would hash; what no such file can hold hashes to an empty string."""
    if isinstance(weights, Stored):
        return weights.sha256
    try:
        return digest_of({name: np.asarray(value) for name, value in weights.items()})
    except WeightsError:
        return ""
