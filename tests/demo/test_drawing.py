import dataclasses

import numpy as np
import pytest

from appliance.demo.drawing import draw
from appliance.demo.hospitals import HOSPITALS, Hospital

SITES = pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda hospital: hospital.site)


@SITES
def test_the_same_seed_draws_the_same_picture(hospital: Hospital) -> None:
    first = draw(np.random.default_rng(3), hospital.look, lesion=True)
    second = draw(np.random.default_rng(3), hospital.look, lesion=True)
    assert first.lesion == second.lesion
    assert np.array_equal(first.pixels, second.pixels)


@SITES
def test_a_picture_fills_the_detector_without_leaving_its_range(hospital: Hospital) -> None:
    pixels = draw(np.random.default_rng(4), hospital.look, lesion=False).pixels
    assert pixels.shape == (hospital.look.rows, hospital.look.columns)
    assert pixels.dtype == np.uint16
    assert int(pixels.max()) < 1 << hospital.look.bits_stored
    low, high = np.percentile(pixels, [2, 98])
    assert high - low > 0.4 * (1 << hospital.look.bits_stored)


@SITES
def test_lungs_are_darker_than_the_mediastinum_as_a_viewer_shows_them(hospital: Hospital) -> None:
    look = hospital.look
    mean = np.mean(
        [draw(np.random.default_rng(seed), look, lesion=False).pixels.astype(float) for seed in range(4)],
        axis=0,
    )
    shown = mean.max() - mean if look.photometric == "MONOCHROME1" else mean
    middle = slice(int(0.35 * look.rows), int(0.55 * look.rows))
    spine = shown[middle, int(0.47 * look.columns) : int(0.53 * look.columns)].mean()
    for at in (0.26, 0.74):
        lung = shown[middle, int((at - 0.04) * look.columns) : int((at + 0.04) * look.columns)].mean()
        assert lung < 0.7 * spine


@SITES
def test_a_lesion_brightens_its_place_and_nothing_else(hospital: Hospital) -> None:
    look = dataclasses.replace(
        hospital.look,
        noise=0.0,
        irregular=0.0,
        leads_with_lesion=0.0,
        port_with_lesion=0.0,
        photometric="MONOCHROME2",
    )
    for seed in range(5):
        lesion = draw(np.random.default_rng(seed), look, lesion=True).lesion
        assert lesion is not None
        faint = dataclasses.replace(look, lesion_contrast=(0.0, 1e-9))
        bright = draw(np.random.default_rng(seed), look, lesion=True).pixels.astype(float)
        without = draw(np.random.default_rng(seed), faint, lesion=True).pixels.astype(float)
        difference = (bright - without) / (1 << look.bits_stored)
        row, column = np.unravel_index(int(np.argmax(difference)), difference.shape)
        assert difference.max() > 0.03
        assert abs(row / look.rows - lesion.y) < lesion.radius + 0.02
        assert abs((2 * column / look.columns - 1) - lesion.x) < 2 * lesion.radius + 0.04


def test_hospitals_differ_in_response_depth_inversion_prevalence_and_lesions() -> None:
    looks = [hospital.look for hospital in HOSPITALS]
    for values in (
        {look.gamma for look in looks},
        {look.bits_stored for look in looks},
        {look.noise for look in looks},
        {look.lesion_radius for look in looks},
        {hospital.prevalence for hospital in HOSPITALS},
    ):
        assert len(values) == len(HOSPITALS)
    assert {look.photometric for look in looks} == {"MONOCHROME1", "MONOCHROME2"}
    assert max(hospital.studies for hospital in HOSPITALS) < 150
