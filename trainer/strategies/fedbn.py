"""FedBN: batch normalisation, parameters and statistics, stays at the site; the rest is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import StrategyError
from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.strategies.base import Array, Weights

_MEAN = ".running_mean"


class FedBN(FedAvg):
    """FedBN. Parameter: ``server_learning_rate`` (1).

    References
    ----------
    Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021.
    """

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Leave out every array of a layer that keeps running statistics."""
        layers = {name.removesuffix(_MEAN) for name in initial if name.endswith(_MEAN)}
        if not layers:
            raise StrategyError("fedbn: the network has no batch normalisation; expected norm: batch")
        return {name: array for name, array in initial.items() if name.rpartition(".")[0] not in layers}
