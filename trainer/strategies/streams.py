"""Arithmetic on models in pieces: memory is that of a piece, whatever the model or number of sites.

It is faster, too: a piece stays in the processor's cache, where a temporary array of a whole layer does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.weights_io import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Array = NDArray[Any]
PIECE: Final = 2**17  # elements: a mebibyte in float64
LEAST: Final = 2**13  # of each model: with less, opening files would take longer than reading them


class EachArray(Mapping[str, Array]):
    """Arrays by name, each made when it is asked for: all of them are never there.

    Parameters
    ----------
    anew : bool
        Whether an array that is asked for is nobody else's, so that its reader may change it.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Array], *, anew: bool = False) -> None:
        self._names, self._make, self.anew = tuple(names), make, anew

    def __getitem__(self, name: str) -> Array:
        """Make one array; raises KeyError for an unknown name."""
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._names)


class Combined(Mapping[str, Array]):
    """Arrays that are computed by element from others, in pieces or, where a whole one is asked for, at once.

    Parameters
    ----------
    like : Mapping
        Arrays of the same names and shapes.
    make : callable
        Returns the elements from one to another of the flattened array of a name.
    """

    def __init__(self, like: Mapping[str, Array], make: Callable[[str, int, int], Array]) -> None:
        self._like, self.part = like, make

    def __getitem__(self, name: str) -> Array:
        """Compute one array; raises KeyError for an unknown name."""
        like = self._like[name]
        return self.part(name, 0, like.size).reshape(like.shape)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._like)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._like)


def makes_anew(arrays: Mapping[str, Array]) -> bool:
    """Whether each array of these is made when it is asked for, for whoever asks."""
    return isinstance(arrays, Stored | Combined) or (isinstance(arrays, EachArray) and arrays.anew)


def spans(count: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Cut so many elements into pieces; yields where each begins and ends."""
    return ((first, min(first + piece, count)) for first in range(0, count, piece))


def part(arrays: Mapping[str, Array], name: str, first: int, last: int) -> Array:
    """Return elements of a flattened array; of a file just these are read."""
    if isinstance(arrays, Stored | Combined):
        return arrays.part(name, first, last)
    return arrays[name].reshape(-1)[first:last]


def stacked(models: Sequence[Mapping[str, Array]], name: str, count: int) -> Iterator[tuple[int, int, Array]]:
    """Yield one array of all models in pieces: begin, end, and float64 of shape (models, end - begin)."""
    for first, last in spans(count, max(LEAST, PIECE // len(models))):
        rows = [part(model, name, first, last) for model in models]
        yield first, last, np.stack(rows).astype(np.float64)


def weighted_sum(
    models: Sequence[Mapping[str, Array]], shares: Sequence[float], name: str, begin: int, end: int
) -> Array:
    """Return elements of one array of all models, weighted and summed in the order given, in float64."""
    summed = np.zeros(end - begin)
    for first, last in spans(end - begin):
        for model, share in zip(models, shares, strict=True):
            piece = part(model, name, begin + first, begin + last).astype(np.float64)
            piece *= share
            summed[first:last] += piece
    return summed


def squares(arrays: Mapping[str, Array], name: str, count: int) -> float:
    """Return the sum of squares of one array, in float64; infinite where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = (part(arrays, name, *span).astype(np.float64) for span in spans(count))
        return total(float(np.dot(piece, piece)) for piece in pieces)


def total(squares: Iterable[float]) -> float:
    """Return an exact sum, rounded once; infinite where it overflows, NaN where one of them is."""
    found = list(squares)
    plain = sum(found)
    return math.fsum(found) if math.isfinite(plain) else plain


def squared_distance(one: Mapping[str, Array], other: Mapping[str, Array], name: str, count: int) -> float:
    """Return the sum of squares of the difference of one array of two models, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = (
            part(one, name, *span).astype(np.float64) - part(other, name, *span) for span in spans(count)
        )
        return sum(float(np.dot(piece, piece)) for piece in pieces)


def layout_of(arrays: Mapping[str, Array], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of one array; of a file nothing is read.

    NumPy's scalars are arrays of one number: they come of arithmetic on arrays without dimensions.
    """
    if isinstance(arrays, Stored):
        return arrays.form(name)
    return arrays[name].shape, arrays[name].dtype


def form_of(arrays: Mapping[str, Array], name: str) -> tuple[tuple[int, ...], bool, int]:
    """Return shape, whether its numbers are floating, and count of one array; of a file nothing is read."""
    shape, dtype = layout_of(arrays, name)
    return shape, dtype.kind == "f", math.prod(shape)


def is_finite(arrays: Mapping[str, Array], name: str, count: int) -> bool:
    """Whether one array holds neither NaN nor infinity."""
    return all(bool(np.isfinite(part(arrays, name, first, last)).all()) for first, last in spans(count))
