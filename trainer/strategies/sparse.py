"""SVT: federated averaging of updates of which few, noised numbers leave a site."""

from __future__ import annotations

from trainer.strategies.fedavg import FedAvg


class Sparse(FedAvg):
    """Partial, private sharing. Parameter: ``server_learning_rate`` (1).

    What leaves is decided by the plan's promise of mechanism ``svt``; no plan has this strategy without it.

    References
    ----------
    Li et al., Privacy-preserving Federated Brain Tumour Segmentation, MLMI 2019.
    """
