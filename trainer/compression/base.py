"""What all codecs share: the float arrays as one vector, the exact rest, the check of what arrived."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError, UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = NDArray[Any]
Weights = dict[str, Array]
Vector = NDArray[np.float32]
MARK: Final = ";"  # parts that a codec adds: no array of a network has it in its name


class CompressionError(TrainerError):
    """A compression that is not one, or does not fit a model."""


@dataclass(frozen=True, eq=False)
class Packed:
    """An update as it leaves.

    Parameters
    ----------
    arrays : dict of ndarray
        What travels.
    update : dict of ndarray
        What the coordinator makes of it, bit for bit.
    residual : dict of ndarray
        What this update does not say; empty for codecs that forget it.
    """

    arrays: Weights
    update: Weights
    residual: Weights


@dataclass(frozen=True)
class Draw:
    """What both ends know of an update that travels: the seed of site and round, and the round's number."""

    seed: int
    number: int


class Codec(Protocol):
    """Packs the float arrays of an update; whole numbers travel as they are.

    What one update leaves out is added to the next where the codec remembers it (error feedback).
    """

    @property
    def remembers(self) -> bool:
        """Whether the next update says what this one leaves out."""

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return arrays of the shapes and dtypes that a packed update of such a model has."""

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Return the packed float arrays."""

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Return float32 arrays in the shapes of ``floats``; raises UpdateError for what no site packs."""

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return the largest L2 norm of what is unpacked, for one of what was packed.

        Parameters
        ----------
        sizes : sequence of int
            Numbers in each array.
        """

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return how long what is left out is at most, at first and after each time; 0 where it is forgotten.

        Parameters
        ----------
        moved : sequence of float
            L2 norms of all that was to be packed so far, without what was left from the time before.
        sizes : sequence of int
            Numbers in each array.
        """


def floats_of(arrays: Mapping[str, Array]) -> Weights:
    """Return the arrays of real numbers."""
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def whole_of(arrays: Mapping[str, Array]) -> Weights:
    """Return the arrays of whole numbers."""
    return {name: array for name, array in arrays.items() if array.dtype.kind != "f"}


def joined(floats: Mapping[str, Array]) -> Vector:
    """Return all numbers as one vector, in the order of the names."""
    parts = [np.asarray(floats[name], dtype=np.float32).ravel() for name in sorted(floats)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def parted(vector: Vector, floats: Mapping[str, Array]) -> Weights:
    """Undo :func:`joined`."""
    result, at = {}, 0
    for name in sorted(floats):
        size = floats[name].size
        result[name] = vector[at : at + size].reshape(floats[name].shape)
        at += size
    return result


def rounding_share(size: int, levels: int) -> float:
    """Return the largest share of an array's L2 norm that rounding to steps takes from it, or adds to it.

    The largest number is a whole number of steps, each other one moves by half a step at most: the share is
    largest where all of them do.

    Parameters
    ----------
    size : int
        Numbers in the array.
    levels : int
        Steps from zero to the largest number.
    """
    others = max(0, size - 1)
    return 1.0001 * math.sqrt(others / ((2 * levels) ** 2 + others))  # a little more, for float32


def size_of(floats: Mapping[str, Array]) -> int:
    """Return how many numbers there are."""
    return sum(array.size for array in floats.values())


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array that takes no memory, for a template."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def check_finite(array: Array, what: str) -> None:
    """Raise UpdateError for NaN or infinity."""
    if not bool(np.isfinite(array).all()):
        raise UpdateError("not_finite", f"{what}: NaN or infinity; expected finite numbers")
