"""Which numbers of a model travel in which ciphertexts.

A model of a run is its first model, readable, and the encrypted sum of all steps since: ciphertexts as
arrays of bytes beside the first model's. So every site that has the key reads any round's model alone, and
an aggregation costs the one multiplication that the scheme has, however many rounds there are. Where the
numbers take turns, each part has a sum of its own. Counters of whole numbers have one, too: the sum of
their mean steps, rounded when a site reads it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.compression.base import floats_of, parted, size_of, whole_of
from trainer.compression.codecs import TURN
from trainer.encryption.ckks import SLOTS
from trainer.encryption.spec import ENCRYPTED
from trainer.errors import UpdateError
from trainer.strategies.base import apply_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.compression.base import Array, Weights
    from trainer.encryption.ckks import Key

_WHOLE: Final = "whole"
_SLACK: Final = 1.01  # for what the scheme rounds, and the sites' own float32


def is_encrypted(weights: Mapping[str, Array]) -> bool:
    """Whether a model holds ciphertexts."""
    return any(name.startswith(ENCRYPTED) for name in weights)


def first_of(weights: Mapping[str, Array]) -> Weights:
    """Return the readable first model."""
    return {name: array for name, array in weights.items() if not name.startswith(ENCRYPTED)}


def expected(first: Mapping[str, Array], parts: int, number: int) -> tuple[str, ...]:
    """Return the names of the ciphertexts of an update in a round; the last are of the whole numbers."""
    floats = size_of(floats_of(first))
    sizes = {str(number % parts): math.ceil(floats / parts), _WHOLE: size_of(whole_of(first))}
    return tuple(
        f"{ENCRYPTED}{group}.{chunk}"
        for group, size in sizes.items()
        for chunk in range(math.ceil(size / SLOTS))
    )


def is_whole(name: str) -> bool:
    """Whether a ciphertext holds counters, which no learning rate scales."""
    return name.startswith(f"{ENCRYPTED}{_WHOLE}.")


def encrypted(key: Key, leaving: Mapping[str, Array], parts: int, number: int) -> Weights:
    """Encrypt what leaves a site.

    Parameters
    ----------
    leaving : Mapping
        The update, or with ``parts`` above 1 what the compression ``turns`` packs.
    parts, number : int
        How many turns there are, and the round's number.
    """
    floats = floats_of(leaving)
    numbers = _joined(floats) if parts == 1 and TURN not in floats else floats[TURN].astype(np.float64)
    vectors = {str(number % parts): numbers, _WHOLE: _joined(whole_of(leaving))}
    return {
        f"{ENCRYPTED}{group}.{at // SLOTS}": key.encrypt(vector[at : at + SLOTS])
        for group, vector in vectors.items()
        for at in range(0, vector.size, SLOTS)
    }


def combined(
    key: Key,
    standing: Mapping[str, Array],
    updates: Sequence[Mapping[str, Array]],
    shares: Sequence[float],
    rate: float,
) -> Weights:
    """Return the next model: the standing one with the updates' weighted mean added, all of it encrypted."""
    result = dict(standing)
    for name in updates[0]:
        factors = [share if is_whole(name) else share * rate for share in shares]
        result[name] = key.weighted_sum([one[name] for one in updates], factors, result.get(name))
    return result


def readable(key: Key, weights: Mapping[str, Array], parts: int, most: float) -> Weights:
    """Decrypt a model.

    Parameters
    ----------
    most : float
        How far the rounds so far can have moved it, as an L2 norm: bounds hold for means, too.

    Raises
    ------
    UpdateError
        If it holds what is no ciphertext of this key, or has moved farther than that.
    """
    first = first_of(weights)
    floats, whole = floats_of(first), whole_of(first)
    total = np.zeros(size_of(floats))
    for group in range(parts):
        part = total[group::parts]
        part[:] = _vector(key, weights, str(group), part.size)
    norm = float(np.linalg.norm(total))
    if not norm <= most * _SLACK:
        raise UpdateError("norm", "the decrypted model has moved farther than its rounds allow")
    steps: dict[str, NDArray[Any]] = _placed(total, floats)
    steps.update(_placed(_vector(key, weights, _WHOLE, size_of(whole)), whole))
    return apply_step(first, steps)


def _vector(key: Key, weights: Mapping[str, Array], group: str, size: int) -> NDArray[np.float64]:
    """Decrypt one sum; zeros where no round has added to it yet."""
    vector = np.zeros(math.ceil(size / SLOTS) * SLOTS)
    for at in range(0, vector.size, SLOTS):
        ciphertext = weights.get(f"{ENCRYPTED}{group}.{at // SLOTS}")
        if ciphertext is not None:
            vector[at : at + SLOTS] = key.decrypt(ciphertext)
    return vector[:size]


def _joined(arrays: Mapping[str, Array]) -> NDArray[np.float64]:
    parts = [np.asarray(arrays[name], dtype=np.float64).ravel() for name in sorted(arrays)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _placed(vector: NDArray[np.float64], arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    return dict(parted(vector, arrays))  # type: ignore[arg-type]
