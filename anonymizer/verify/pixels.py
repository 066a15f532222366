"""Where printed identifiers may stand among the bytes of uncompressed pixel data.

A form of seven bytes or more covers four whole bytes that begin at a multiple of four, wherever it lies. So
one look at every fourth byte finds all places worth a closer one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anonymizer.verify.reader import Bytes

SHORTEST: Final = 7
_GRAM: Final = 4
_BLOCK: Final = 1024**2
_FOLD: Final = np.uint32(0x20202020)  # upper case ASCII to lower
_TABLE: Final = 1 << 16
_Array = np.ndarray[Any, np.dtype[Any]]


class Grams:
    """The beginnings of forms, as they may lie in words of four bytes."""

    def __init__(self, forms: Iterable[bytes]) -> None:
        found = {
            int.from_bytes(form[at : at + _GRAM], "little")
            for form in forms
            if len(form) >= SHORTEST
            for at in range(_GRAM)
        }
        self._keys = np.unique(np.array(sorted(found), dtype=np.uint32) | _FOLD)
        self._table = np.zeros(_TABLE, dtype=bool)
        self._table[_hashed(self._keys)] = True

    def places(self, raw: Bytes) -> Iterator[int]:
        """Yield the byte positions of words that begin some form; case is ignored."""
        if not len(self._keys):
            return
        view = memoryview(raw)
        for start in range(0, len(view), _BLOCK):
            block = view[start : start + _BLOCK]
            words = np.frombuffer(block[: len(block) // _GRAM * _GRAM], dtype="<u4") | _FOLD
            likely = np.flatnonzero(self._table[_hashed(words)])
            for place in likely[np.isin(words[likely], self._keys)]:
                yield start + int(place) * _GRAM


def _hashed(words: _Array) -> _Array:
    mixed: _Array = words ^ (words >> np.uint32(15))
    return mixed & np.uint32(_TABLE - 1)
