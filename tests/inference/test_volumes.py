"""Geometry of series: order, orientation, resampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import PreprocessingError
from inference.preprocessing import PreprocessingSpec
from inference.volumes import Grid, plane_of, prepare_volume, read_volume, resample, target_grid
from tests.trainer.masked import draw, series

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWN = draw(5)
SHAPE = DRAWN.image.shape


def grid(shape: tuple[int, int, int], spacing: float = 1.0) -> Grid:
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing
    return Grid(shape, affine)


def test_slices_are_sorted_by_position_whatever_their_order() -> None:
    mixed = series(DRAWN.image, "P")[::-1]
    assert np.array_equal(read_volume(mixed).values, DRAWN.image)


def test_a_series_on_the_wanted_grid_is_cropped_and_padded_without_interpolation() -> None:
    volume = read_volume(series(DRAWN.image, "P"))
    small, large = (8, 12, 8), (20, 30, 21)
    cropped = resample(volume.values, volume.grid, target_grid(volume.grid, small, (1, 1, 1)))
    window = tuple(
        slice((n - 1) // 2 - (m - 1) // 2, (n - 1) // 2 - (m - 1) // 2 + m)
        for n, m in zip(SHAPE, small, strict=True)
    )
    assert np.array_equal(cropped, DRAWN.image[window])
    padded = resample(volume.values, volume.grid, target_grid(volume.grid, large, (1, 1, 1)))
    assert np.array_equal(np.sort(padded[padded > 0]), np.sort(DRAWN.image[DRAWN.image > 0]))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        ((1, 0, 0, 0, 0, -1), lambda a: a.transpose(1, 0, 2)[::-1]),  # coronal
        ((0, 1, 0, 0, 0, -1), lambda a: a.transpose(1, 2, 0)[::-1, :, ::-1]),  # sagittal
        ((-1, 0, 0, 0, -1, 0), lambda a: a[:, ::-1, ::-1]),  # axial, prone
    ],
    ids=["coronal", "sagittal", "prone"],
)
def test_every_orientation_comes_out_head_back_left(
    orientation: tuple[int, ...], turn: Callable[[Any], Any]
) -> None:
    ds = series(DRAWN.image, "P", orientation=tuple(map(float, orientation)))
    volume = read_volume(ds)
    expected = turn(DRAWN.image)
    # Odd sizes have one middle voxel whichever way they are read.
    target = target_grid(volume.grid, (41, 41, 41), (1.0, 1.0, 1.0))
    found = resample(volume.values, volume.grid, target)
    there = np.argwhere(found > 0)
    low, high = there.min(axis=0), there.max(axis=0) + 1
    assert np.array_equal(found[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], expected)


def test_anisotropic_slices_become_isotropic_voxels() -> None:
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None] * 100, (10, 12, 12)).astype(np.uint16)
    volume = read_volume(series(ramp, "P", spacing_mm=(3.0, 1.0, 1.0)))
    found = resample(volume.values, volume.grid, target_grid(volume.grid, (9, 9, 9), (1.0, 1.0, 1.0)))
    steps = np.diff(found[:, 4, 4])
    assert np.allclose(steps, 100 / 3, atol=0.1)


@settings(deadline=None, max_examples=25)
@given(st.floats(1.1, 4.0), st.integers(0, 100))
def test_a_coarser_grid_keeps_the_mean_of_what_is_smooth(spacing: float, seed: int) -> None:
    level = float(np.random.default_rng(seed).uniform(1, 9))
    source = grid((24, 24, 24))
    found = resample(np.full(source.shape, level), source, target_grid(source, (5, 5, 5), (spacing,) * 3))
    assert np.allclose(found[1:-1, 1:-1, 1:-1], level, rtol=1e-5)


def test_padding_and_percentiles_are_of_the_whole_volume() -> None:
    sources = series(DRAWN.image, "P")
    for ds in sources:
        ds.PixelPaddingValue = int(DRAWN.image[0, 0, 0])
    volume = read_volume(sources)
    assert not volume.valid.all()
    spec = PreprocessingSpec(rows=24, columns=16, lower_percentile=0, upper_percentile=100)
    target = target_grid(volume.grid, SHAPE, (1.0, 1.0, 1.0))
    x = prepare_volume(volume, target, spec)
    assert x.shape == (1, *SHAPE)
    assert x.max() == pytest.approx((1 - spec.mean) / spec.standard_deviation)
    assert np.allclose(x[0][~volume.valid], -spec.mean / spec.standard_deviation)


def _drop(sources: list[Any]) -> None:
    del sources[4]


def _second(keyword: str, value: object) -> Callable[[list[Any]], None]:
    def change(sources: list[Any]) -> None:
        setattr(sources[1], keyword, value)

    return change


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("volume.spacing", _drop),
        ("volume.spacing", lambda s: s.append(s[3])),
        ("volume.slices", lambda s: s.__delitem__(slice(1, None))),
        ("volume.size", _second("Rows", 23)),
        ("volume.frame_of_reference", _second("FrameOfReferenceUID", "1.2.3")),
        ("volume.orientation", _second("ImageOrientationPatient", [0, 1, 0, 1, 0, 0])),
        ("volume.orientation", _second("PixelSpacing", [2, 2])),
        ("volume.plane", _second("PixelSpacing", [0, 1])),
        ("volume.plane", _second("ImageOrientationPatient", [1, 0, 0, 1, 0, 0])),
        ("volume.plane", _second("ImagePositionPatient", None)),
        ("pixel.decode", _second("PixelData", b"\0\0")),
    ],
    ids=[
        "a gap", "twice", "one slice", "size", "frame of reference", "orientation", "spacing", "spacing of 0",
        "no right angle", "no position", "too few pixels",
    ],
)  # fmt: skip
def test_a_series_that_is_no_volume_is_refused_with_its_reason(
    code: str, change: Callable[[list[Any]], None]
) -> None:
    sources = series(DRAWN.image, "P")
    change(sources)
    with pytest.raises(PreprocessingError) as refused:
        read_volume(sources)
    assert refused.value.code == code


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_numbers_that_are_none_are_refused() -> None:
    ds = series(DRAWN.image, "P")[0]
    ds.ImagePositionPatient = ["nan", "0", "0"]
    with pytest.raises(PreprocessingError, match=r"volume\.plane"):
        plane_of(ds)
