"""Antialiased resize in integer arithmetic: the same bytes on every machine and for every thread count."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_WEIGHT_ONE: Final = 1 << 20  # 16-bit samples times 21-bit weights stay far below 63 bits
FILTERS: Final = ("box", "triangle")


def fit(
    rows: int, columns: int, box_rows: int, box_columns: int, pixel_aspect: float = 1.0
) -> tuple[int, int]:
    """Return the largest size (rows, columns) inside the box that keeps the picture's shape.

    Parameters
    ----------
    rows, columns : int
        Size of the source.
    box_rows, box_columns : int
        Size of the box.
    pixel_aspect : float
        Height of a source pixel over its width.
    """
    height = rows * pixel_aspect
    if height * box_columns >= columns * box_rows:  # taller than the box
        return box_rows, min(box_columns, max(1, round(columns * box_rows / height)))
    return min(box_rows, max(1, round(height * box_columns / columns))), box_columns


def resize(
    samples: npt.NDArray[np.uint16], rows: int, columns: int, kernel: str = "triangle"
) -> npt.NDArray[np.uint16]:
    """Resize with a kernel that widens when shrinking, so that no source sample is skipped.

    Parameters
    ----------
    samples : ndarray
        uint16, shape (source rows, source columns).
    rows, columns : int
        Wanted size.
    kernel : str
        ``box`` (area average) or ``triangle`` (linear interpolation when enlarging).

    Returns
    -------
    ndarray
        uint16, shape (rows, columns).
    """
    by_rows = _along_rows(samples, rows, kernel)
    return _along_rows(np.ascontiguousarray(by_rows.T), columns, kernel).T.copy()


def _along_rows(samples: npt.NDArray[np.uint16], rows: int, kernel: str) -> npt.NDArray[np.uint16]:
    if samples.shape[0] == rows:
        return samples
    starts, weights = _taps(samples.shape[0], rows, kernel)
    total = np.full((rows, samples.shape[1]), _WEIGHT_ONE // 2, dtype=np.int64)
    for tap in range(weights.shape[1]):
        source = np.minimum(starts + tap, samples.shape[0] - 1)
        total += weights[:, tap, None] * samples[source].astype(np.int64)
    return (total // _WEIGHT_ONE).astype(np.uint16)


def _taps(source: int, target: int, kernel: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return first source index and integer weights of each target sample; weights of one sum to one."""
    if kernel not in FILTERS:
        raise ValueError(f"unknown kernel; expected one of {', '.join(FILTERS)}")
    scale = source / target
    stretch = max(scale, 1.0)
    support = (0.5 if kernel == "box" else 1.0) * stretch
    centres = (np.arange(target) + 0.5) * scale
    starts = np.maximum(np.floor(centres - support).astype(np.int64), 0)
    count = int(np.ceil(2 * support)) + 1
    position = starts[:, None] + np.arange(count)
    if kernel == "box":
        low = np.maximum(position, centres[:, None] - support)
        raw = np.clip(np.minimum(position + 1, centres[:, None] + support) - low, 0.0, None)
    else:
        raw = np.clip(1.0 - np.abs(position + 0.5 - centres[:, None]) / stretch, 0.0, None)
    raw[position >= source] = 0.0
    weights = np.floor(raw / raw.sum(axis=1, keepdims=True) * _WEIGHT_ONE + 0.5).astype(np.int64)
    heaviest = weights.argmax(axis=1)
    weights[np.arange(target), heaviest] += _WEIGHT_ONE - weights.sum(axis=1)
    return starts, weights
