"""Who speaks with whom, and how much a neighbour's model counts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.strategies.lots import lot

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

Edge = tuple[str, str]
"""Two names, the lesser first."""
_CHANCES: Final = 2**64


def edges(sites: Collection[str], density: float, seed: int) -> frozenset[Edge]:
    """Return a connected graph of sites.

    Parameters
    ----------
    sites : Collection of str
        Who is there: a ring closes over those who are away.
    density : float
        0 makes a ring in the order of names. Above, a ring in an order drawn from the seed, and each other
        pair with this chance; a pair's chance does not depend on who else is there.
    seed : int
        The run's.
    """
    order = sorted(sites, key=(lambda site: lot("ring", seed, 0, site)) if density else None)
    ring = {_edge(a, b) for a, b in zip(order, [*order[1:], *order[:1]], strict=True) if a != b}
    pairs = itertools.combinations(sorted(sites), 2)
    return frozenset(ring | {pair for pair in pairs if _chance(seed, pair) < density})


def mixing_matrix(sites: Collection[str], graph: Collection[Edge]) -> NDArray[np.float64]:
    """Return the Metropolis weights of a graph, rows and columns in the order of the sites' names.

    Symmetric and doubly stochastic: nobody's model counts more than another's in the long run.

    References
    ----------
    Xiao, Boyd and Lall, A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus, IPSN 2005.
    """
    place = {site: position for position, site in enumerate(sorted(sites))}
    degree = dict.fromkeys(place, 0)
    for a, b in graph:
        degree[a] += 1
        degree[b] += 1
    matrix = np.zeros((len(place), len(place)))
    for a, b in graph:
        weight = 1.0 / (1 + max(degree[a], degree[b]))
        matrix[place[a], place[b]] = matrix[place[b], place[a]] = weight
    np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=1))
    return matrix


def contraction(matrix: NDArray[np.float64]) -> float:
    """Return Dobrushin's coefficient: the share of the largest distance of two that is left after mixing.

    1 where two sites hear of nobody in common, 0 where all hear the same.
    """
    common = [float(np.minimum(row, matrix).sum(axis=1).min()) for row in matrix]
    return 1.0 - min(common)


def _edge(a: str, b: str) -> Edge:
    return (a, b) if a < b else (b, a)


def _chance(seed: int, pair: Edge) -> float:
    return int.from_bytes(lot("edge", seed, 0, "\n".join(pair))[:8], "big") / _CHANCES
