"""Differences of models in few bits: one scale for an array, whole steps of it for its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.compression.base import MARK, check_finite, joined, parted
from trainer.errors import UpdateError
from trainer.strategies.base import is_statistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.strategies.base import Array, Weights

CODES: Final = f"{MARK}codes"
SCALES: Final = f"{MARK}scales"


def pack(difference: Mapping[str, Array], bits: int) -> Weights:
    """Return a difference as it travels; counters and running statistics as they are.

    A statistic that is a little off can be a negative variance.
    """
    names, levels = _trained(difference), 2 ** (bits - 1) - 1
    codes, scales = {}, []
    for name in names:
        array = difference[name].astype(np.float64)
        scale = float(np.float32(np.abs(array).max(initial=0.0) / levels))
        scales.append(scale)
        steps = np.rint(array / scale) if scale > 0 else np.zeros(array.shape)
        codes[name] = np.clip(steps, -levels, levels) + levels
    shifted = joined(codes).astype(np.uint8)
    packed = np.unpackbits(shifted[:, None], axis=1)[:, 8 - bits :]
    exact = {name: array for name, array in difference.items() if name not in codes}
    return {**exact, CODES: np.packbits(packed.ravel()), SCALES: np.array(scales, dtype=np.float32)}


def unpack(arrays: Mapping[str, Array], reference: Mapping[str, Array], bits: int) -> Weights:
    """Return the difference that :func:`pack` made, in the dtypes of ``reference``.

    Raises
    ------
    UpdateError
        For what no site packs.
    """
    names, levels = _trained(reference), 2 ** (bits - 1) - 1
    exact = {name for name in reference if name not in names}
    if set(arrays) != exact | {CODES, SCALES}:
        raise UpdateError("names", "message: expected the arrays of a packed difference")
    count = sum(reference[name].size for name in names)
    codes, scales = arrays[CODES], arrays[SCALES]
    if codes.dtype != np.uint8 or codes.shape != ((count * bits + 7) // 8,):
        raise UpdateError("shape", "message: expected as many codes as the model has numbers")
    if scales.dtype != np.float32 or scales.shape != (len(names),):
        raise UpdateError("shape", "message: expected a scale for each array")
    check_finite(scales, "message")
    for name in exact:
        if arrays[name].shape != reference[name].shape or arrays[name].dtype != reference[name].dtype:
            raise UpdateError("shape", f"message: {name}: another shape or type")
    unpacked = np.unpackbits(codes, count=count * bits).reshape(count, bits)
    wide = np.zeros((count, 8), dtype=np.uint8)
    wide[:, 8 - bits :] = unpacked
    steps = np.packbits(wide, axis=1).reshape(-1).astype(np.float32) - levels
    found = parted(steps, {name: reference[name] for name in names})
    result: Weights = {name: arrays[name] for name in exact}
    for name, scale in zip(names, scales, strict=True):
        product = found[name].astype(np.float64) * float(scale)
        with np.errstate(over="ignore"):
            result[name] = np.asarray(product).astype(reference[name].dtype)
        check_finite(result[name], "message")
    return {name: result[name] for name in reference}


def _trained(arrays: Mapping[str, Array]) -> list[str]:
    return sorted(
        name for name, array in arrays.items() if array.dtype.kind == "f" and not is_statistic(name)
    )
