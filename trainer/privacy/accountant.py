"""What releases cost: Renyi differential privacy, added up over all mechanisms, read as epsilon at a delta.

Plain arithmetic, since the research agent, which decides and books, loads neither PyTorch nor SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Release:
    """Gaussian releases about a Poisson sample of subjects.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the sensitivity, above 0.
    sampling_rate : float
        Chance of each subject to be in one release, above 0, at most 1.
    count : int
        Releases, at least 1.
    """

    noise_multiplier: float
    sampling_rate: float
    count: int

    def __post_init__(self) -> None:
        """Refuse what has no finite cost; raises ValueError."""
        if not (0 < self.noise_multiplier < math.inf and 0 < self.sampling_rate <= 1 and self.count >= 1):
            raise ValueError("release: expected noise above 0, a sampling rate up to 1 and a count from 1")


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of all releases together, 0 for none.

    Neighbours are data sets that differ by one subject, added or removed.

    Parameters
    ----------
    releases : iterable of Release
        In any order, of any mechanisms; repeated ones add up.
    delta : float
        Above 0, below 1.

    References
    ----------
    Mironov, Renyi Differential Privacy, CSF 2017, proposition 1 (composition). Canonne, Kamath and Steinke,
    The Discrete Gaussian for Differential Privacy, NeurIPS 2020, proposition 12 (epsilon at a delta).
    """
    if not 0 < delta < 1:
        raise ValueError("delta: expected a number between 0 and 1")
    counts: dict[tuple[float, float], int] = {}
    for one in releases:
        key = (one.noise_multiplier, one.sampling_rate)
        counts[key] = counts.get(key, 0) + one.count
    if not counts:
        return 0.0
    found = math.inf
    for order in ORDERS:
        cost = sum(count * renyi(*key, order) for key, count in counts.items())
        slack = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        found = min(found, cost + slack)
    return max(found, 0.0)


def renyi(noise_multiplier: float, sampling_rate: float, order: int) -> float:
    """Return the Renyi divergence of one sampled Gaussian release, for a whole order from 2.

    References
    ----------
    Mironov, Talwar and Zhang, Renyi Differential Privacy of the Sampled Gaussian Mechanism, 2019, 3.3.
    """
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    terms = [
        _log_choose(order, k)
        + k * math.log(sampling_rate)
        + (order - k) * math.log1p(-sampling_rate)
        + (k * k - k) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return max(total, 0.0) / (order - 1)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
