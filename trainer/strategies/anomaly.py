"""How much one site's update is unlike those of the others: what a person looks at to find an attacker.

A score judges one round by the updates alone. A site whose patients or machines differ scores higher too, so
it is a reason to look and never one to leave a site out.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.strategies.streams import stacked

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from trainer.strategies.base import Array, Contribution

FEWEST_SITES: Final = 4
THRESHOLD: Final = 3.0
_FLOOR: Final = 0.1  # what sites alike differ by: a third more distance, 0.3 less cosine make a score of 3
_NORMAL: Final = 1.4826  # median absolute deviation to standard deviation


def anomaly_scores(contributions: Sequence[Contribution]) -> Mapping[str, float]:
    """Return a score per site, at least 0: how many usual differences its update lies beside the others'.

    Each update is seen from the others: by its median distance to them, as a logarithm, and by its median
    cosine with them. Both are compared with the sites' median in units of their median absolute deviation;
    the larger excess is the score. Above ``THRESHOLD`` the site is named. With fewer than four sites nobody
    is unlike a majority, and the result is empty.
    """
    ordered = sorted(contributions, key=lambda one: one.site)
    if len(ordered) < FEWEST_SITES:
        return MappingProxyType({})
    products = gram([one.delta for one in ordered])
    far = np.log(np.maximum(_median_of_others(np.sqrt(_distances(products))), np.finfo(np.float64).tiny))
    across = -_median_of_others(_cosines(products))
    scores = np.maximum(np.maximum(_excess(far), _excess(across)), 0.0)
    return {one.site: float(score) for one, score in zip(ordered, scores, strict=True)}


def squared_distances(deltas: Sequence[Mapping[str, Array]]) -> Array:
    """Return squared L2 distances over all floating-point arrays, shape (n, n), zero on the diagonal."""
    return _distances(gram(deltas))


def gram(deltas: Sequence[Mapping[str, Array]], names: Container[str] | None = None) -> Array:
    """Return inner products in float64, piece by piece so that no second copy of all updates is made.

    Over all floating-point arrays, or those of ``names``.
    """
    products = np.zeros((len(deltas), len(deltas)))
    for name in sorted(deltas[0]):
        first = deltas[0][name]
        if first.dtype.kind == "f" and (names is None or name in names):
            for _, _, rows in stacked(deltas, name, first.size):
                products += rows @ rows.T
    return np.asarray((products + products.T) / 2)


def _distances(products: Array) -> Array:
    squares = np.diagonal(products)
    distances: Array = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return np.asarray(distances)


def _cosines(products: Array) -> Array:
    norms = np.sqrt(np.diagonal(products))
    scale = norms[:, None] * norms[None, :]
    return np.asarray(np.divide(products, scale, out=np.zeros_like(products), where=scale > 0))


def _median_of_others(matrix: Array) -> Array:
    count = len(matrix)
    others = matrix[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return np.asarray(np.median(others, axis=1))


def _excess(values: Array) -> Array:
    deviations = values - np.median(values)
    return np.asarray(deviations / max(_NORMAL * float(np.median(np.abs(deviations))), _FLOOR))
