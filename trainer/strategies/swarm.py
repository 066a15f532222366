"""Swarm learning: FedAvg whose mean one of the sites takes, drawn anew for each round."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trainer.errors import StrategyError
from trainer.strategies.fedavg import FedAvg, rate_of
from trainer.strategies.lots import lot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class Swarm(FedAvg):
    """Swarm learning. Parameter: ``server_learning_rate`` (1) of the drawn site, as for FedAvg.

    References
    ----------
    Warnat-Herresthal et al., Swarm Learning for decentralized and confidential clinical machine learning,
    Nature 2021.
    """

    led_by_site = True

    def longest_step(self, norms: Sequence[Sequence[float]], parameters: Mapping[str, Any]) -> float:
        """Return what the coordinator lets pass: each number between what the sites say of it."""
        return rate_of(parameters) * math.hypot(*norms[-1])


def leader(number: int, sites: Collection[str], seed: int) -> str:
    """Return the site that aggregates in a round, of those that can; raises StrategyError for none."""
    if not sites:
        raise StrategyError("nobody is there to aggregate; expected at least one site")
    return min(sites, key=lambda site: lot("swarm", seed, number, site))
