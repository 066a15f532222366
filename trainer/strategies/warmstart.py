"""Transfer: a run that starts from an earlier run's model and first trains the head alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainer.strategies.base import number
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

_FROZEN: Final = "frozen_rounds"
_MOST_ROUNDS: Final = 10_000


class WarmStart(FedAvg):
    """Transfer. Parameters: ``frozen_rounds`` (2), ``server_learning_rate`` (1).

    For that many rounds sites train the network's last layer alone, and everything before it, running
    statistics included, stays as the earlier model has it; then they train all of it.

    References
    ----------
    Yosinski et al., How Transferable Are Features in Deep Neural Networks?, NIPS 2014.
    """

    needs_initial = True
    own_parameters = frozenset({_FROZEN})

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise StrategyError for an unknown parameter or one out of range."""
        super().check_parameters(parameters)
        self.frozen_rounds(parameters)

    def frozen_rounds(self, parameters: Mapping[str, Any]) -> int:
        """Return for how many rounds only the head is trained."""
        return int(number(parameters, _FROZEN, 2, 0, _MOST_ROUNDS))
