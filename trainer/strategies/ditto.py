"""Ditto: the global model is averaged; each site also keeps a model of its own, held near the global one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

_PERSONAL: Final = "personal_mu"


class Ditto(FedAvg):
    """Ditto. Parameters: ``personal_mu`` (0.1; the paper's lambda), ``server_learning_rate`` (1).

    References
    ----------
    Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021.
    """

    own_parameters = frozenset({_PERSONAL})

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        super().check_parameters(parameters)
        self.personal_mu(parameters)

    def personal_mu(self, parameters: Mapping[str, Any]) -> float:
        """Return how strongly a site's own model is held near the global one."""
        return number(parameters, _PERSONAL, 0.1, 0.0, 100.0)
