"""Ditto: the global model is averaged; each site also keeps a model of its own, held near the global one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number, only
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

_PERSONAL: Final = "personal_mu"


class Ditto(FedAvg):
    """Ditto. Parameters: ``personal_mu`` (0.1; the paper's lambda), ``server_learning_rate`` (1).

    References
    ----------
    Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021.
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({_PERSONAL, "server_learning_rate"}))
        self.personal_mu(parameters)
        super().check_parameters(_of_the_mean(parameters))

    def personal_mu(self, parameters: Mapping[str, Any]) -> float:
        """Return how strongly a site's own model is held near the global one."""
        return number(parameters, _PERSONAL, 0.1, 0.0, 100.0)

    def aggregate(
        self,
        global_weights: Mapping[str, Array],
        contributions: Sequence[Contribution],
        state: Mapping[str, Array],
        parameters: Mapping[str, Any],
    ) -> tuple[Weights, State]:
        """Aggregate as FedAvg does."""
        self.check_parameters(parameters)
        return FedAvg().aggregate(global_weights, contributions, state, _of_the_mean(parameters))


def _of_the_mean(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != _PERSONAL}
