"""Where the noise comes from: the operating system's secure source, or a seed where nothing leaves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUMMED: Final = 4


class Noise(Protocol):
    """A source of random numbers; ``source`` is named in the receipt."""

    source: str

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1), shape (count,)."""

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return numbers of the standard normal distribution, shape (count,)."""


class SecureNoise:
    """Numbers that nobody can foretell or repeat."""

    source = "secure"

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return multiples of 2**-53 in [0, 1)."""
        words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return half the sum of four Box-Muller numbers: its last bits do not tell what was added to it.

        References
        ----------
        Holohan and Braghin, Secure Random Sampling in Differential Privacy, ESORICS 2021, section 4.
        """
        total = np.zeros(count, dtype=np.float64)
        for _ in range(_SUMMED):
            radius = np.sqrt(-2.0 * np.log1p(-self.uniform(count)))
            total += radius * np.cos(2.0 * np.pi * self.uniform(count))
        return np.asarray(total / np.sqrt(_SUMMED))


class SeededNoise:
    """Numbers that repeat: for simulations and tests alone."""

    source = "seeded"

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1)."""
        return self._generator.random(count)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return numbers of the standard normal distribution."""
        return self._generator.standard_normal(count)
