"""Domain adaptation by mixture of experts: a shared model, noisy where it leaves, beside a private one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number, only
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.strategies.base import Array, Contribution, State, Weights

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

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        only(parameters, frozenset({_NOISE, "server_learning_rate"}))
        self.noise(parameters)
        super().check_parameters(_of_the_mean(parameters))

    def noise(self, parameters: Mapping[str, Any]) -> float:
        """Return the noise of an update in units of its arrays' root mean square."""
        return number(parameters, _NOISE, 0.1, 0.0, 10.0)

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
    return {name: value for name, value in parameters.items() if name != _NOISE}
