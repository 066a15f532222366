"""FedProx: averaging as in FedAvg, while sites train with a term that holds them near the global model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import WholeModel, number, only
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

_MAX_MU: Final = 100.0


class FedProx(WholeModel):
    """FedProx. Parameters: ``mu`` (weight of the proximal term; else the task's), ``server_learning_rate``.

    References
    ----------
    Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({"mu", "server_learning_rate"}))
        number(parameters, "mu", 0.0, 0.0, _MAX_MU)
        FedAvg().check_parameters(_of_the_mean(parameters))

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return ``mu``."""
        return number(parameters, "mu", default, 0.0, _MAX_MU)

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
    return {name: value for name, value in parameters.items() if name != "mu"}
