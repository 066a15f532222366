"""Frames become pictures as they are shown, whatever their values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from anonymizer import renderings
from anonymizer.elements import Element, Item
from anonymizer.frames import Layout

GREY = Layout("MONOCHROME2", 16, 12, 11, signed=False, planar=0)
FLOATS = Layout("MONOCHROME2", 64, 64, 63, signed=True, planar=0, floating=True)


def _layout(photometric: str, bits: int = 8) -> Layout:
    return Layout(photometric, bits, bits, bits - 1, signed=False, planar=0)


def _shown(values: list[Any], dtype: str, layout: Layout, item: Item | None = None) -> list[Any]:
    array = np.array(values, dtype)
    array = array[:, :, None] if array.ndim == 2 else array
    found: list[Any] = renderings.displayed(array, layout, item or {}, little=True).round().tolist()
    return found


def test_bits_beside_the_stored_ones_are_no_brightness() -> None:
    assert _shown([[0xF001, 0x0FFF]], "<u2", GREY) == [[1, 4095]]


def test_signed_values_keep_their_sign() -> None:
    layout = Layout("MONOCHROME2", 16, 12, 11, signed=True, planar=0)
    assert _shown([[0x0FFF, 0x0800, 5]], "<u2", layout) != [[-1, -2048, 5]]
    assert _shown([[0x0FFF, 0x0800, 5]], "<i2", layout) == [[-1, -2048, 5]]


def test_what_is_shown_inverted_is_turned_round() -> None:
    assert _shown([[0, 255]], "u1", _layout("MONOCHROME1")) == [[0, -255]]


def test_a_palette_is_looked_up() -> None:
    item: Item = {}
    for number, values in enumerate(((0, 65535), (0, 32768), (256, 0))):
        at = 0x00281101 + number
        item[at] = Element(at, "US", struct.pack("<3H", 2, 7, 16))
        item[at + 0x100] = Element(at + 0x100, "OW", struct.pack("<2H", *values))
    shown = _shown([[0, 7, 8, 9]], "u1", _layout("PALETTE COLOR"), item)
    assert shown == [[[0, 0, 1], [0, 0, 1], [256, 128, 0], [256, 128, 0]]]


@pytest.mark.parametrize(
    ("values", "photometric", "expected"),
    [
        ([[[255, 128, 128]]], "YBR_FULL", [[[255, 255, 255]]]),
        ([[[76, 85, 255]]], "YBR_FULL", [[[254, 0, 0]]]),
        ([[[0, 255, 128, 128]]], "YBR_FULL_422", [[[0, 0, 0], [255, 255, 255]]]),
        ([[[9, 8, 7]]], "RGB", [[[9, 8, 7]]]),
    ],
)
def test_colours_are_those_that_are_seen(values: list[Any], photometric: str, expected: list[Any]) -> None:
    assert _shown(values, "u1", _layout(photometric)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], [[0, 21845], [43690, 65535]]),
        ([[1e308, -1e308], [np.nan, np.inf]], [[65535, 0], [0, 65535]]),
        ([[np.nan, np.nan], [np.nan, np.nan]], [[0, 0], [0, 0]]),
    ],
    ids=["plain", "extreme", "none"],
)
def test_floating_values_are_spread_over_their_range(values: list[Any], expected: list[Any]) -> None:
    assert _shown(values, "<f8", FLOATS) == expected


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)], ids=["grey", "colour"])
def test_pictures_are_of_eight_bits_and_the_size_of_the_image(shape: tuple[int, ...]) -> None:
    shown = np.linspace(0, 200, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    found = renderings.pictures(shown)
    assert {picture.shape for picture, _ in found} == {(40, 60, 3)}
    assert {picture.dtype for picture, _ in found} == {np.dtype(np.uint8)}


def test_a_large_image_is_searched_at_one_size_more() -> None:
    assert len(renderings.pictures(np.zeros((1600, 20), np.float32))) == 4
