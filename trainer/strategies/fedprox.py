"""FedProx: averaging as in FedAvg, while sites train with a term that holds them near the global model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_MU: Final = 100.0


class FedProx(FedAvg):
    """FedProx. Parameters: ``mu`` (weight of the proximal term; else the task's), ``server_learning_rate``.

    References
    ----------
    Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """

    own_parameters = frozenset({"mu"})

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        super().check_parameters(parameters)
        self.proximal_mu(parameters, 0.0)

    def proximal_mu(self, parameters: Mapping[str, Any], default: float) -> float:
        """Return ``mu``."""
        return number(parameters, "mu", default, 0.0, _MAX_MU)
