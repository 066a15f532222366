"""The codecs: half precision, eight bits, the largest coordinates, and a sketch of random ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.compression.base import (
    MARK,
    Array,
    Draw,
    Vector,
    Weights,
    check_finite,
    empty,
    joined,
    parted,
    rounding_share,
    size_of,
)
from trainer.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HALF: Final = float(np.finfo(np.float16).max)
_HALF_SHARE: Final = 2.0**-11  # of a number, that rounding to half precision changes it by
_HALF_STEP: Final = 2.0**-25  # or by so much, where it is very small
_LEVELS: Final = 127
_BLOCK: Final = 1024  # of the rotation; a power of two
SCALE: Final = f"{MARK}scale"
INDEX: Final = f"{MARK}index"
VALUE: Final = f"{MARK}value"
CODE: Final = f"{MARK}code"
RANGE: Final = f"{MARK}range"
TURN: Final = f"{MARK}turn"


@dataclass(frozen=True)
class Half:
    """IEEE half precision: half the bytes."""

    remembers: bool = False

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return the same shapes as float16."""
        return {name: empty(array.shape, np.float16) for name, array in reference.items()}

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Round to the nearest; what is out of range becomes the largest number."""
        del draw
        return {name: _half(array) for name, array in floats.items()}

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Widen."""
        del draw
        for name in floats:
            check_finite(arrays[name], name)
        return {name: np.asarray(arrays[name], dtype=np.float32) for name in floats}

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return the norm and what rounding adds."""
        return _rounded(norm, sum(sizes))

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return zeros."""
        del sizes
        return [0.0] * (len(moved) + 1)


@dataclass(frozen=True)
class Eight:
    """Eight bits for a number and one scale for an array: a quarter of the bytes."""

    remembers: bool = True

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return the same shapes as int8, and a scale for each."""
        scales = {name + SCALE: empty((1,), np.float32) for name in reference}
        return {**{name: empty(array.shape, np.int8) for name, array in reference.items()}, **scales}

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Round to 255 steps between minus and plus the largest number of the array."""
        del draw
        packed: Weights = {}
        for name, array in floats.items():
            largest = float(np.abs(array).max(initial=0.0))
            scale = np.float32(largest / _LEVELS)
            steps = array / scale if scale > 0 else np.zeros(array.shape)
            packed[name] = np.clip(np.rint(steps), -_LEVELS, _LEVELS).astype(np.int8)
            packed[name + SCALE] = np.array([scale], np.float32)
        return packed

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Multiply by the scale."""
        del draw
        for name in floats:
            check_finite(arrays[name + SCALE], name)
        return {
            name: np.asarray(arrays[name].astype(np.float32) * arrays[name + SCALE][0]) for name in floats
        }

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return the norm and what rounding adds in the largest array."""
        return norm * (1.0 + self._share(sizes))

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return what rounding takes, each time and from what was left before."""
        share, found = self._share(sizes), [0.0]
        for one in moved:
            found.append(share * (found[-1] + one))
        return found

    @staticmethod
    def _share(sizes: Sequence[int]) -> float:
        return rounding_share(max(sizes, default=0), _LEVELS)


@dataclass(frozen=True)
class TopK:
    """The coordinates that move most, in half precision; the rest waits until it has grown."""

    share: float
    remembers: bool = True

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return indices and values."""
        count = self._count(size_of(reference))
        return {INDEX: empty((count,), np.int32), VALUE: empty((count,), np.float16)}

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Choose the largest by magnitude, over all arrays together."""
        del draw
        vector = joined(floats)
        count = self._count(vector.size)
        chosen = np.sort(np.argpartition(np.abs(vector), vector.size - count)[vector.size - count :])
        return {INDEX: chosen.astype(np.int32), VALUE: _half(vector[chosen])}

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Put values to their places, zeros elsewhere."""
        del draw
        vector = np.zeros(size_of(floats), np.float32)
        index, value = arrays[INDEX], arrays[VALUE]
        ascending = index.size < 2 or bool((np.diff(index.astype(np.int64)) > 0).all())
        if index.size and not (ascending and index[0] >= 0 and index[-1] < vector.size):
            raise UpdateError("shape", "packed update: expected ascending places within the model")
        check_finite(value, "packed update")
        vector[index] = value
        return parted(vector, floats)

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return the norm and what rounding adds."""
        return _rounded(norm, self._count(sum(sizes)))

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return the share of those not chosen, where all numbers are as large as each other."""
        size, found = sum(sizes), [0.0]
        chosen = self._count(size)
        share = math.sqrt(1.0 - chosen / size + _HALF_SHARE**2) if size else 0.0
        for one in moved:
            wanted = found[-1] + one
            found.append((share if wanted < _HALF else 1.0) * wanted + math.sqrt(chosen) * _HALF_STEP)
        return found

    def _count(self, size: int) -> int:
        return min(size, max(1, math.ceil(self.share * size))) if size else 0


@dataclass(frozen=True)
class Turns:
    """The numbers take turns: each round one of ``count`` parts leaves whole, the same part at every site.

    So sums of what leaves are what leaves of the sums, and packed updates can be added up encrypted.
    """

    count: int
    remembers: bool = True

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return the longest part; a shorter one is filled up with a zero."""
        return {TURN: empty((self._longest(size_of(reference)),), np.float32)}

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Take every ``count``-th number, of all arrays together, from where the round says."""
        vector = joined(floats)
        part = vector[draw.number % self.count :: self.count]
        packed = np.zeros(self._longest(vector.size), np.float32)
        packed[: part.size] = part
        return {TURN: packed}

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Put the part to its places, zeros elsewhere."""
        check_finite(arrays[TURN], "packed update")
        vector = np.zeros(size_of(floats), np.float32)
        part = vector[draw.number % self.count :: self.count]
        part[:] = arrays[TURN][: part.size]
        return parted(vector, floats)

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return the norm."""
        del sizes
        return norm

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return what moved since the part whose turn is next had its last one."""
        del sizes
        return [math.fsum(moved[max(0, at - self.count + 1) : at]) for at in range(len(moved) + 1)]

    def _longest(self, size: int) -> int:
        return math.ceil(size / self.count)


@dataclass(frozen=True)
class Sketch:
    """A random part of the randomly rotated update, in few bits; unbiased, and nothing is remembered.

    Rotation and choice follow from the seed of site and round, which both ends know.

    References
    ----------
    Konecny et al., Federated Learning: Strategies for Improving Communication Efficiency, 2016, section 3:
    subsampling, probabilistic quantisation, structured random rotations.
    """

    share: float
    bits: int
    remembers: bool = False

    def template(self, reference: Mapping[str, Array]) -> Weights:
        """Return packed codes and their range."""
        count = self._count(_padded(size_of(reference)))
        return {
            CODE: empty((math.ceil(count * self.bits / 8),), np.uint8),
            RANGE: empty((2,), np.float32),
        }

    def pack(self, floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Rotate, choose, and round each number up or down by chance, so that the mean is right."""
        vector = joined(floats)
        signs, chosen, chance = self._draw(_padded(vector.size), draw.seed)
        rotated = _hadamard(_filled(vector, signs.size) * signs)[chosen]
        low, high = float(rotated.min(initial=0.0)), float(rotated.max(initial=0.0))
        width = (high - low) / (2**self.bits - 1)
        steps = (rotated - low) / width if width > 0 else np.zeros(rotated.size)
        levels = np.clip(np.floor(steps + chance), 0, 2**self.bits - 1).astype(np.uint8)
        spread = np.unpackbits(levels[:, None], axis=1, count=8)[:, 8 - self.bits :]
        return {CODE: np.packbits(spread.ravel()), RANGE: np.array([low, high], np.float32)}

    def unpack(self, arrays: Mapping[str, Array], floats: Mapping[str, Array], draw: Draw) -> Weights:
        """Undo choice and rotation; what was not chosen counts as zero, the rest for it."""
        size = size_of(floats)
        signs, chosen, _ = self._draw(_padded(size), draw.seed)
        check_finite(arrays[RANGE], "packed update")
        low, high = (float(one) for one in arrays[RANGE])
        if not low <= high:
            raise UpdateError("shape", "packed update: expected a range")
        spread = np.unpackbits(arrays[CODE], count=chosen.size * self.bits).reshape(chosen.size, self.bits)
        levels = np.packbits(spread, axis=1)[:, 0] >> (8 - self.bits)
        width = (high - low) / (2**self.bits - 1)
        rotated = np.zeros(signs.size, np.float32)
        rotated[chosen] = (low + levels.astype(np.float32) * width) * (signs.size / chosen.size)
        return parted((_hadamard(rotated) * signs)[:size].astype(np.float32), floats)

    def longest(self, norm: float, sizes: Sequence[int]) -> float:
        """Return what the chosen part counts for, each number a step off; all steps are sqrt(2) norms."""
        size = _padded(sum(sizes))
        chosen = self._count(size)
        off = math.sqrt(2.0 * chosen) / float(2**self.bits - 1)
        return norm * size / chosen * (1.0 + off)

    def left(self, moved: Sequence[float], sizes: Sequence[int]) -> list[float]:
        """Return zeros."""
        del sizes
        return [0.0] * (len(moved) + 1)

    def _draw(self, size: int, seed: int) -> tuple[Vector, Array, Vector]:
        """Return signs, chosen places and chances: the same for the same seed at both ends."""
        generator = np.random.Generator(np.random.PCG64(seed))
        signs = (generator.integers(0, 2, size, dtype=np.int8) * 2 - 1).astype(np.float32)
        chosen = np.sort(generator.permutation(size)[: self._count(size)])
        return signs, chosen, generator.random(chosen.size, dtype=np.float32)

    def _count(self, size: int) -> int:
        return max(1, math.ceil(self.share * size))


def _half(array: Array) -> Array:
    return np.asarray(np.clip(array, -_HALF, _HALF), dtype=np.float16)


def _rounded(norm: float, count: int) -> float:
    """Return the largest norm of so many numbers in half precision, for one of the numbers."""
    return norm * (1.0 + _HALF_SHARE) + math.sqrt(count) * _HALF_STEP


def _padded(size: int) -> int:
    """Return the next size that whole blocks have."""
    return _BLOCK * max(1, math.ceil(size / _BLOCK))


def _filled(vector: Vector, size: int) -> Vector:
    return np.concatenate([vector, np.zeros(size - vector.size, np.float32)])


def _hadamard(vector: Vector) -> Vector:
    """Return the orthonormal Walsh-Hadamard transform of each block, which is its own inverse."""
    values, half = vector.astype(np.float32), 1
    while half < _BLOCK:
        pairs = values.reshape(-1, 2, half)
        values = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).ravel()
        half *= 2
    return (values / np.float32(math.sqrt(_BLOCK))).astype(np.float32)
