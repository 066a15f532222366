"""How local updates become one global model: pure functions over numpy arrays that know no engine.

``STRATEGIES`` names them; a plan holds a name and parameters. Every site's update is a difference to the
global model of the round, checked with :func:`check_update` before it is aggregated.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trainer.errors import StrategyError
from trainer.strategies.adaptation import DomainAdaptation
from trainer.strategies.anomaly import THRESHOLD, anomaly_scores
from trainer.strategies.autofedavg import AutoFedAvg
from trainer.strategies.base import (
    Contribution,
    State,
    Strategy,
    apply_step,
    check_step,
    check_update,
    clip_update,
    roomy,
    site_weights,
    update_norm,
)
from trainer.strategies.ditto import Ditto
from trainer.strategies.fedavg import FedAvg
from trainer.strategies.fedbn import FedBN
from trainer.strategies.feddis import FedDis
from trainer.strategies.fedopt import ServerOptimizer
from trainer.strategies.fedprox import FedProx
from trainer.strategies.generalisation import DomainGeneralisation
from trainer.strategies.robust import CoordinateWise, Krum
from trainer.strategies.scaffold import Scaffold
from trainer.strategies.sparse import Sparse
from trainer.strategies.swarm import Swarm
from trainer.strategies.transfer import Cyclic, RandomTransfer
from trainer.strategies.variation import VariationAware
from trainer.strategies.warmstart import WarmStart

if TYPE_CHECKING:
    from collections.abc import Mapping

STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {
        "fedavg": FedAvg(),
        "fedprox": FedProx(),
        "fedavgm": ServerOptimizer("fedavgm"),
        "fedadam": ServerOptimizer("fedadam"),
        "fedyogi": ServerOptimizer("fedyogi"),
        "median": CoordinateWise("median"),
        "trimmed-mean": CoordinateWise("trimmed-mean"),
        "krum": Krum(multi=False),
        "multi-krum": Krum(multi=True),
        "fedbn": FedBN(),
        "feddis": FedDis(),
        "scaffold": Scaffold(),
        "ditto": Ditto(),
        "auto-fedavg": AutoFedAvg(),
        "svt": Sparse(),
        "transfer": WarmStart(),
        "domain-generalisation": DomainGeneralisation(),
        "domain-adaptation": DomainAdaptation(),
        "variation-aware": VariationAware(),
        "cyclic": Cyclic(),
        "random-transfer": RandomTransfer(),
        "swarm": Swarm(),
    }
)


def get(name: str) -> Strategy:
    """Return the strategy of that name.

    Raises
    ------
    StrategyError
        If there is none.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise StrategyError(f"no strategy of that name; expected one of {', '.join(STRATEGIES)}") from None


__all__ = [
    "STRATEGIES",
    "THRESHOLD",
    "Contribution",
    "State",
    "Strategy",
    "anomaly_scores",
    "apply_step",
    "check_step",
    "check_update",
    "clip_update",
    "get",
    "roomy",
    "site_weights",
    "update_norm",
]
