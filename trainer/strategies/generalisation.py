"""Domain generalisation: the coordinator takes the step on which the sites' updates agree best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.strategies.anomaly import gram
from trainer.strategies.base import (
    WholeModel,
    apply_step,
    checked,
    is_parameter,
    mean_by_share,
    number,
    only,
    weights_state,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

_REACH: Final = "reach"
_STEPS: Final = 300
_TINY: Final = 1e-12


class DomainGeneralisation(WholeModel):
    """Aligned aggregation. Parameter: ``reach`` (0.5), how far the step may leave the mean, as a share of it.

    Of all steps within ``reach`` of the plain mean of the sites' updates, each brought to the same length,
    the one is sought whose smallest inner product with an update is largest: what one site gains is not paid
    for by another, as what is only one site's is not expected at an unseen one. Its direction is a convex
    combination of the updates, and that is what is taken, with the updates as long as they came.

    References
    ----------
    Tian et al., Privacy-Preserving Constrained Domain Generalization via Gradient Alignment, IEEE TKDE 36
    (2024), arXiv 2105.08511: alignment of gradients in the coordinator's aggregation. The constrained
    problem and its dual are those of Liu et al., Conflict-Averse Gradient Descent, NeurIPS 2021.
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({_REACH}))
        number(parameters, _REACH, 0.5, 0.0, 10.0)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move by the aligned combination; running statistics and counters by the same shares."""
        del state
        self.check_parameters(parameters)
        ordered = checked(global_weights, contributions)
        names = {name for name, array in global_weights.items() if is_parameter(name, array)}
        products = gram([one.delta for one in ordered], names)
        shares = aligned_shares(products, number(parameters, _REACH, 0.5, 0.0, 10.0))
        step = mean_by_share(global_weights, ordered, shares)
        return apply_step(global_weights, step), weights_state(ordered, shares)


def aligned_shares(products: Array, reach: float) -> list[float]:
    """Return shares that sum to 1, from inner products of the updates, shape (n, n).

    The dual, over the simplex: the least of ``<mean, u_w> + reach |mean| |u_w|`` with u_w the combination
    by w; the step is ``mean + reach |mean| u_w / |u_w|``. Exponentiated gradient finds it.
    """
    count = len(products)
    norms = np.sqrt(np.maximum(np.diagonal(products), 0.0))
    even = np.full(count, 1.0 / count)
    if count == 1 or reach == 0 or float(norms.min()) < _TINY:
        return [float(share) for share in even]
    cosines = products / np.outer(norms, norms)
    radius = reach * np.sqrt(max(float(even @ cosines @ even), 0.0))
    w, best, least = even, even, np.inf
    for number_ in range(_STEPS):
        length = np.sqrt(max(float(w @ cosines @ w), _TINY))
        value = float(even @ cosines @ w) + radius * length
        if value < least:
            best, least = w, value
        slope = cosines @ even + radius * (cosines @ w) / length
        w = w * np.exp(-(slope - slope.min()) / np.sqrt(number_ + 1.0))
        w = w / w.sum()
    length = np.sqrt(max(float(best @ cosines @ best), _TINY))
    shares = even + radius / length * best
    return [float(share) for share in shares / shares.sum()]
