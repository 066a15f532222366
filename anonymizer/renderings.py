"""Frames as 8-bit pictures in which text stands out, whatever the values that it was burnt in with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from anonymizer import shades

if TYPE_CHECKING:
    from anonymizer.elements import Item
    from anonymizer.frames import Array, Layout

_PERCENTILES: Final = (5, 95)
COARSE: Final = 512  # pixels
_FINE, _FINEST = 1024, 2048
_TWICE: Final = 2
_LARGE: Final = 1400  # pixels; small letters of a larger image are lost at the fine size


def displayed(values: Array, layout: Layout, item: Item, *, little: bool) -> Array:
    """Return a frame's brightness or colours as floats of shape (rows, columns) or (rows, columns, 3).

    Grey values are the stored ones, without bits that are no part of them, negative where the smallest shows
    white. Palettes are looked up. Pixels of YBR_FULL_422 have their own brightness and share their colour.
    """
    photometric = layout.photometric
    if photometric == "PALETTE COLOR":
        return shades.coloured(values[:, :, 0], item, little=little)
    if photometric == "YBR_FULL_422":
        return _rgb(_doubled(values))
    if values.shape[2] == 1:
        grey = _stored(values[:, :, 0], layout)
        return -grey if photometric == "MONOCHROME1" else grey
    colours = values[:, :, :3].astype(np.float32) / float(1 << max(layout.bits_stored - 8, 0))
    return _rgb(colours) if photometric.startswith("YBR") else colours


def _stored(values: Array, layout: Layout) -> Array:
    if layout.floating:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        half = np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high) / 2  # no range overflows
        found: Array = (half - low / 2) / max(high / 2 - low / 2, np.finfo(np.float64).tiny) * 65535
        return found.astype(np.float32)
    return shades.stored(values, layout).astype(np.float32)


def _doubled(values: Array) -> Array:
    """Return (rows, columns, 3) of Y1, Y2, Cb, Cr in one for two pixels (PS3.3 C.7.6.3.1.2)."""
    rows, halves, _ = values.shape
    full = np.empty((rows, halves * 2, 3), np.float32)
    full[:, 0::2, 0], full[:, 1::2, 0] = values[:, :, 0], values[:, :, 1]
    full[:, :, 1:] = np.repeat(values[:, :, 2:], 2, axis=1)
    return full


def _rgb(ybr: Array) -> Array:
    """Convert full-range YBR (PS3.3 C.7.6.3.1.2)."""
    y, cb, cr = (ybr[:, :, number].astype(np.float32) for number in range(3))
    blue, red = cb - 128, cr - 128
    colours = [y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue]
    found: Array = np.clip(np.stack(colours, axis=2), 0, 255)
    return found


def first_look(shown: Array) -> tuple[Array, int]:
    """Return one picture of :func:`pictures`, and the long side at which most text in it is found."""
    grey = _grey(shown)
    return _in_colour(_middle(grey)), min(_FINE, _TWICE * max(grey.shape))


def pictures(shown: Array) -> list[tuple[Array, int]]:
    """Return 8-bit pictures (rows, columns, 3), each with the long side to search it at, in pixels.

    ``shown`` is what ``displayed`` returned.

    The full range shows text of the brightest values that equipment can write, and colours as they are; the
    range of most values shows text among those of the image, in large images at two sizes; equalised by
    neighbourhood, large and faint letters stand out.
    """
    from cv2 import createCLAHE  # noqa: PLC0415 - heavy, for the first picture

    grey = _grey(shown)
    full = shown.astype(np.uint8) if shown.ndim == 3 else _window(grey, float(grey.min()), float(grey.max()))
    middle = _middle(grey)
    found = [(full, _FINE), (middle, _FINE), (createCLAHE(4.0, (8, 8)).apply(middle), COARSE)]
    if max(grey.shape) > _LARGE:
        found.append((middle, _FINEST))
    return [(_in_colour(picture), long_side) for picture, long_side in found]


def _grey(shown: Array) -> Array:
    return shown if shown.ndim == 2 else np.asarray(shown.max(axis=2))


def _middle(grey: Array) -> Array:
    low, high = (float(at) for at in np.percentile(grey, _PERCENTILES))
    return _window(grey, low, high)


def _in_colour(picture: Array) -> Array:
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def _window(grey: Array, low: float, high: float) -> Array:
    scaled: Array = np.clip((grey - low) * (255.0 / max(high - low, 1e-6)), 0, 255)
    return scaled.astype(np.uint8)
