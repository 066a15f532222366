"""SCAFFOLD: control variates tell each site how its gradients differ from everybody's, and correct for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.errors import StrategyError
from trainer.strategies.base import (
    WholeModel,
    apply_step,
    checked,
    is_statistic,
    mean_by_share,
    number,
    only,
)
from trainer.strategies.streams import Combined, part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

CONTROL: Final = "control:"
_MOST: Final = "most_sites"
_SITES: Final = "sites"
_PARAMETERS: Final = frozenset({"server_learning_rate", "local_learning_rate", _SITES})


class Scaffold(WholeModel):
    """SCAFFOLD, option II.

    Parameters: ``server_learning_rate`` (1), ``local_learning_rate`` (the task's), ``sites`` (0).

    The global model carries the coordinator's control variate of each parameter, and an update the change of
    the site's. As in the paper every site weighs the same. ``sites`` is the number of all sites, the paper's
    N; 0 takes it to be the most that have contributed to one round so far, which is right where one round has
    them all. Where none has, the control would grow too large by as much.

    References
    ----------
    Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, _PARAMETERS)
        number(parameters, "server_learning_rate", 1.0, 1e-6, 10.0)
        self.local_rate(parameters, 1.0)
        if number(parameters, _SITES, 0.0, 0.0, 100_000.0) % 1:
            raise StrategyError(f"parameter {_SITES}: expected a whole number")

    def local_rate(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return the learning rate of the sites' plain gradient descent; ``default`` is the task's."""
        return number(parameters, "local_learning_rate", default, 1e-8, 10.0)

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Add a control variate of zero for each parameter."""
        controls = {
            CONTROL + name: np.zeros_like(array)
            for name, array in initial.items()
            if array.dtype.kind == "f" and not is_statistic(name)
        }
        return {**initial, **controls}

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return the longest update's norm; the rate is the model's alone, and not that of the controls."""
        rate = number(parameters, "server_learning_rate", 1.0, 1e-6, 10.0)
        return max(rate, 1.0) * super().longest_step(norms, parameters)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move the model by the mean of the updates, and the controls by the sites' share of theirs."""
        self.check_parameters(parameters)
        rate = number(parameters, "server_learning_rate", 1.0, 1e-6, 10.0)
        ordered = checked(global_weights, contributions)
        said = int(number(parameters, _SITES, 0.0, 0.0, 100_000.0))
        most = max(len(ordered), said, int(state[_MOST]) if _MOST in state else 0)
        mean = mean_by_share(global_weights, ordered, [1 / len(ordered)] * len(ordered))

        def step(name: str, first: int, last: int) -> Array:
            elements = part(mean, name, first, last)
            if name.startswith(CONTROL):
                return elements * (len(ordered) / most)
            return elements * rate if global_weights[name].dtype.kind == "f" else elements

        moved = apply_step(global_weights, Combined(global_weights, step))
        return moved, {_MOST: np.array(most, dtype=np.int64)}
