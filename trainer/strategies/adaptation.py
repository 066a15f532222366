"""Domain adaptation by mixture of experts: a shared model, noisy where it leaves, beside a private one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOISE: Final = "noise"


class DomainAdaptation(FedAvg):
    """Mixture of experts. Parameters: ``noise`` (0.1), ``server_learning_rate`` (1).

    The shared model is that of FedAvg, but for Gaussian noise that each site adds to its update: ``noise``
    times the root mean square of each array. Each site keeps a model of its own and a gate, which weighs both
    for every picture; neither leaves.

    References
    ----------
    Li et al., Multi-Site fMRI Analysis Using Privacy-Preserving Federated Learning and Domain Adaptation:
    ABIDE Results, Medical Image Analysis 65 (2020): mixture of experts, Gaussian mechanism. Its second way,
    adversarial alignment of features, which sends features, is not built.
    """

    own_parameters = frozenset({_NOISE})

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        super().check_parameters(parameters)
        self.noise(parameters)

    def noise(self, parameters: Mapping[str, Any]) -> float:
        """Return the noise of an update in units of its arrays' root mean square."""
        return number(parameters, _NOISE, 0.1, 0.0, 10.0)
