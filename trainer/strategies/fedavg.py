"""Federated averaging: the mean of the updates, weighted by samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import WholeModel, apply_step, number, only, weighted_mean
from trainer.strategies.streams import Combined, part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

_RATE: Final = "server_learning_rate"


class FedAvg(WholeModel):
    """FedAvg. Parameter: ``server_learning_rate`` (1: the plain mean).

    A strategy that differs at the sites alone names its parameters in ``own_parameters`` and checks them.

    References
    ----------
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """

    own_parameters: frozenset[str] = frozenset()

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, self.own_parameters | {_RATE})
        rate_of(parameters)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Move the global model by the weighted mean of the updates; integers by the mean, rounded."""
        self.check_parameters(parameters)
        rate = rate_of(parameters)
        mean = weighted_mean(global_weights, contributions)
        floats = {name for name, array in global_weights.items() if array.dtype.kind == "f"}

        def step(name: str, first: int, last: int) -> Array:
            elements = part(mean, name, first, last)
            return elements * rate if name in floats and rate != 1.0 else elements

        return apply_step(global_weights, Combined(global_weights, step)), dict(state)

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return the longest update's norm, times the rate."""
        return rate_of(parameters) * super().longest_step(norms, parameters)


def rate_of(parameters: Mapping[str, Any]) -> float:
    """Return the server's learning rate; raises StrategyError."""
    return number(parameters, _RATE, 1.0, 1e-6, 10.0)
