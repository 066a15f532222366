"""Printed text among the bytes of uncompressed pixel data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anonymizer.verify.reader import Bytes

SHORTEST: Final = 8
_BLOCK: Final = 1024**2
_OVERLAP: Final = 256
_RUN: Final = re.compile(rb"[\x20-\x7e]{%d,}" % SHORTEST)
_RARE: Final = 0.5


def printed_runs(raw: Bytes) -> Iterator[bytes]:
    """Yield the runs of printable ASCII of eight bytes and more.

    Blocks of 1 MiB that overlap by 256 bytes; a block without eight printable bytes in a row costs one pass.
    """
    view = memoryview(raw)
    for start in range(0, len(view), _BLOCK - _OVERLAP):
        block = view[start : start + _BLOCK]
        if _may_hold_a_run(block):
            for match in _RUN.finditer(block):
                yield match[0]


def _may_hold_a_run(block: memoryview) -> bool:
    """Tell whether eight printable bytes stand in a row anywhere: every eighth byte is looked at first."""
    array = np.frombuffer(block, dtype=np.uint8)
    at = np.flatnonzero(_printable(array[SHORTEST - 1 :: SHORTEST]))
    if not len(at):
        return False
    if len(at) > _RARE * (len(array) // SHORTEST):
        return True
    return _grows(array, at * SHORTEST + SHORTEST - 1)


def _grows(array: np.ndarray, centres: np.ndarray) -> bool:
    """Tell whether a run around one of these printable bytes is long enough."""
    lengths = np.ones(len(centres), dtype=np.int64)
    for direction in (-1, 1):
        alive = np.ones(len(centres), dtype=bool)
        for step in range(1, SHORTEST):
            at = centres + direction * step
            inside = (at >= 0) & (at < len(array))
            alive &= inside
            alive[alive] &= _printable(array[at[alive]])
            if not alive.any():
                break
            lengths += alive
    return bool((lengths >= SHORTEST).any())


def _printable(array: np.ndarray) -> np.ndarray:
    return (array >= 0x20) & (array <= 0x7E)
