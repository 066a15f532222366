"""Aggregation that a minority of wrong or hostile sites cannot steer: every site weighs the same.

The number of samples is a site's own word, so none of these counts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from trainer.errors import StrategyError
from trainer.strategies.anomaly import squared_distances
from trainer.strategies.base import WholeModel, apply_step, checked, mean_by_share, number, only
from trainer.strategies.streams import EachArray, stacked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

_MOST_ATTACKERS: Final = 1000


@dataclass(frozen=True)
class CoordinateWise(WholeModel):
    """Coordinate-wise median, or mean without the extremes. Parameter of the latter: ``trim`` (0.2).

    ``trim`` is the share of sites that is left out at each end of each coordinate, rounded up, as long as one
    value is left in the middle; it has to be at least the share of attackers.

    References
    ----------
    Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
    """

    kind: Literal["median", "trimmed-mean"]

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset() if self.kind == "median" else frozenset({"trim"}))
        number(parameters, "trim", 0.2, 0.0, 0.49)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move each coordinate by the median, or the trimmed mean, of what the sites say of it."""
        self.check_parameters(parameters)
        ordered = checked(global_weights, contributions)
        most = (len(ordered) - 1) // 2
        trim = math.ceil(number(parameters, "trim", 0.2, 0.0, 0.49) * len(ordered) - 1e-9)
        left_out = most if self.kind == "median" else min(trim, most)
        deltas = [one.delta for one in ordered]

        def middle(name: str) -> Array:
            mean = np.empty(global_weights[name].size)
            for first, last, values in stacked(deltas, name, mean.size):
                kept = np.sort(values, axis=0)[left_out : len(ordered) - left_out]
                mean[first:last] = kept.mean(axis=0)
            return mean.reshape(global_weights[name].shape)

        return apply_step(global_weights, EachArray(global_weights, middle)), dict(state)

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return the root of the norms' sum of squares: a middle is no larger than the largest value."""
        del parameters
        return math.hypot(*norms[-1])


@dataclass(frozen=True)
class Krum(WholeModel):
    """Krum takes the update that is nearest to its neighbours, Multi-Krum the mean of the nearest.

    Parameter: ``attackers``, the number of hostile sites to withstand; 0 takes the most that the number of
    updates allows, f with n >= 2f + 3. The score of an update is the sum of its squared distances to its
    n - f - 2 nearest; Multi-Krum averages the n - f updates of lowest score.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
    """

    multi: bool

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({"attackers"}))
        if not number(parameters, "attackers", 0, 0, _MOST_ATTACKERS).is_integer():
            raise StrategyError("parameter attackers: expected a whole number")

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move the global model by the chosen update, or by the mean of the chosen ones.

        Raises
        ------
        StrategyError
            If there are too few updates to withstand as many attackers as the parameter says.
        """
        self.check_parameters(parameters)
        ordered = checked(global_weights, contributions)
        count = len(ordered)
        attackers = int(number(parameters, "attackers", 0, 0, _MOST_ATTACKERS))
        if attackers and count < 2 * attackers + 3:
            raise StrategyError(f"{count} updates; expected at least {2 * attackers + 3} against {attackers}")
        attackers = attackers or max(0, (count - 3) // 2)
        chosen = [ordered[i] for i in _nearest(ordered, attackers)[: count - attackers if self.multi else 1]]
        step = mean_by_share(global_weights, chosen, [1 / len(chosen)] * len(chosen))
        return apply_step(global_weights, step), dict(state)


def _nearest(ordered: Sequence[Contribution], attackers: int) -> list[int]:
    """Return positions by Krum's score, lowest first; of equal scores the first name comes first."""
    distances = squared_distances([one.delta for one in ordered])
    neighbours = max(1, len(ordered) - attackers - 2)
    others = np.sort(distances, axis=1)[:, 1 : 1 + neighbours]  # a site's distance to itself, 0, comes first
    scores = others.sum(axis=1)
    return [int(position) for position in np.argsort(scores, kind="stable")]
