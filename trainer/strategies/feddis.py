"""FedDis: what knows shape is averaged; what knows a site's appearance stays there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.anomaly import APPEARANCE
from trainer.errors import StrategyError
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.strategies.base import Array, Weights


class FedDis(FedAvg):
    """FedDis. Parameter: ``server_learning_rate`` (1).

    References
    ----------
    Bercea, Wiestler, Rueckert and Albarqouni, FedDis: Disentangled Federated Learning for Unsupervised Brain
    Pathology Segmentation, 2021; Nature Machine Intelligence 4 (2022).
    """

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Leave out the appearance encoder."""
        shared = {name: array for name, array in initial.items() if not name.startswith(APPEARANCE)}
        if len(shared) == len(initial):
            raise StrategyError("feddis: the network has no appearance encoder; expected split-autoencoder")
        return shared
