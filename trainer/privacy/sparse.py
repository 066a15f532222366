"""The sparse vector technique: few numbers of an update leave, chosen and noised; all others stay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.compression.base import floats_of, joined, parted
from trainer.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.compression.base import Array, Weights
    from trainer.privacy.noise import Noise
    from trainer.privacy.promise import Promise


def sparse_update(delta: Mapping[str, Array], promise: Promise, noise: Noise) -> Weights:
    """Return an update of which a share of the numbers is not zero.

    Every number is clipped to ``clip_norm``, so any two data sets of a site move it by twice that at most,
    its magnitude by that. In random order magnitudes are compared, noisy, with a noisy half of the bound;
    the first of them above it leave with noise of their own, until there are as many as the share allows.
    Half of epsilon goes to the choice and half to the values.

    Parameters
    ----------
    delta : Mapping
        Floating-point arrays alone.

    Raises
    ------
    UpdateError
        If an array is of whole numbers: noise does not hide a counter.

    References
    ----------
    Lyu, Su and Li, Understanding the Sparse Vector Technique for Differential Privacy, VLDB 2017, algorithm 7
    (the one that is private) and section 4.2 (how epsilon is divided). Li et al., Privacy-preserving
    Federated Brain Tumour Segmentation, MLMI 2019: its use for shares of a model.
    """
    floats = floats_of(delta)
    if len(floats) != len(delta):
        raise UpdateError("dtype", "noise needs floating-point numbers")
    bound, epsilon = promise.clip_norm, 1 / promise.noise_multiplier
    vector = np.clip(joined(floats).astype(np.float64), -bound, bound)
    most = max(1, math.ceil(promise.share * vector.size))
    ratio = (2 * most) ** (2 / 3)
    for_threshold = epsilon / 2 / (1 + ratio)
    for_queries = epsilon / 2 - for_threshold
    threshold = bound / 2 + _laplace(noise, 1)[0] * bound / for_threshold
    order = np.argsort(noise.uniform(vector.size))
    noisy = np.abs(vector[order]) + _laplace(noise, vector.size) * (2 * most * bound / for_queries)
    chosen = order[np.flatnonzero(noisy >= threshold)[:most]]
    values = vector[chosen] + _laplace(noise, chosen.size) * (2 * most * bound / (epsilon / 2))
    released = np.zeros(vector.size, dtype=np.float32)
    released[chosen] = np.clip(values, -bound, bound)
    return {name: one.astype(floats[name].dtype) for name, one in parted(released, floats).items()}


def _laplace(noise: Noise, count: int) -> NDArray[np.float64]:
    """Return numbers of the Laplace distribution of scale 1, made of products of normal ones.

    References
    ----------
    Holohan and Braghin, Secure Random Sampling in Differential Privacy, ESORICS 2021, section 4.
    """
    if count == 0:
        return np.zeros(0)
    first, second, third, fourth = (noise.normal(count) for _ in range(4))
    return first * second + third * fourth
