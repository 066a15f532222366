from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.losses.dice import DiceLoss
from numpy.typing import NDArray

from tests.trainer.masked import SEGMENTS
from trainer.measuring import read_metrics
from trainer.metrics import Interval
from trainer.objectives import Masks
from trainer.segmentation.dice import SegmentationMetrics, dice, mean_of_subjects, measure

Mask = NDArray[np.uint8]
PAIRS = array_shapes(min_dims=2, max_dims=4, max_side=5).flatmap(
    lambda shape: st.tuples(*(arrays(np.uint8, shape, elements=st.integers(0, 2)) for _ in range(2)))
)


@settings(deadline=None)
@given(PAIRS)
def test_dice_is_symmetric_and_between_0_and_1(pair: tuple[Mask, Mask]) -> None:
    table, other = dice(*pair, 2), dice(*pair[::-1], 2)
    assert np.array_equal(table, other, equal_nan=True)
    known = table[np.isfinite(table)]
    assert ((known >= 0) & (known <= 1)).all()


@settings(deadline=None)
@given(PAIRS)
def test_dice_is_1_for_equal_masks_alone_and_undefined_without_any(pair: tuple[Mask, Mask]) -> None:
    truth, found = pair
    for case, row in enumerate(dice(truth, found, 2)):
        for number in (1, 2):
            here, there = truth[case] == number, found[case] == number
            if not here.any() and not there.any():
                assert np.isnan(row[number - 1])
            else:
                assert (row[number - 1] == 1) == bool(np.array_equal(here, there))
                assert (row[number - 1] == 0) == (not (here & there).any())


@settings(deadline=None)
@given(PAIRS, st.randoms())
def test_order_of_cases_and_place_of_voxels_do_not_matter(pair: tuple[Mask, Mask], chance: Any) -> None:
    truth, found = pair
    order = list(range(len(truth)))
    chance.shuffle(order)
    flipped = measure(truth[order][..., ::-1], found[order][..., ::-1], SEGMENTS)
    straight = measure(truth, found, SEGMENTS)
    assert (flipped.dice is None) == (straight.dice is None)
    if flipped.dice is not None and straight.dice is not None:
        assert flipped.dice.estimate == pytest.approx(straight.dice.estimate)
        assert flipped.dice.low == pytest.approx(straight.dice.low)


@settings(deadline=None)
@given(PAIRS)
def test_the_interval_holds_the_estimate_and_survives_json(pair: tuple[Mask, Mask]) -> None:
    found = measure(*pair, SEGMENTS)
    for one in (found.dice, *found.segments.values()):
        assert one is None or 0 <= one.low <= one.estimate <= one.high <= 1
    again = read_metrics(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found
    assert isinstance(again, SegmentationMetrics)


def test_a_known_overlap_has_a_known_dice() -> None:
    truth, found = np.zeros((1, 2, 5), np.uint8), np.zeros((1, 2, 5), np.uint8)
    truth[0, 0, :4], found[0, 0, 2:] = 1, 1
    assert dice(truth, found, 1)[0, 0] == pytest.approx(2 * 2 / (4 + 3))


def test_cases_of_one_patient_are_one_observation() -> None:
    values = np.array([0.2, 0.2, 0.2, 0.8])
    several = mean_of_subjects(values, ["a", "a", "a", "b"])
    assert several is not None
    assert several.estimate == pytest.approx(0.5)
    alone = mean_of_subjects(np.array([0.5, 0.5]), ["a", "a"])
    assert alone == Interval(0.5, 0.0, 1.0)
    assert mean_of_subjects(np.array([np.nan]), ["a"]) is None


def test_the_interval_is_student_s() -> None:
    found = mean_of_subjects(np.array([0.4, 0.5, 0.6]), ["a", "b", "c"])
    assert found is not None
    assert found.high - found.estimate == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)


def test_no_case_measures_nothing() -> None:
    empty = np.zeros((0, 4, 4), np.uint8)
    found = measure(empty, empty, SEGMENTS)
    assert (found.samples, found.dice, set(found.segments.values())) == (0, None, {None})


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_monai_s_dice_plus_cross_entropy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    outputs = torch.from_numpy(generator.normal(size=(3, 3, 4, 5)).astype(np.float32))
    y = generator.integers(0, 3, (3, 4, 5)).astype(np.uint8)
    target = torch.from_numpy(y.astype(np.int64))
    reference = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = reference(outputs, target.unsqueeze(1)) + torch.nn.functional.cross_entropy(outputs, target)
    assert float(Masks().losses(outputs, y).mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_sure_and_right_answer_costs_nothing() -> None:
    y = np.zeros((1, 4, 4), np.uint8)
    y[0, :2] = 1
    logits = torch.from_numpy(np.stack([y == 0, y == 1], axis=1).astype(np.float32) * 40)
    assert float(Masks().losses(logits, y)) == pytest.approx(0, abs=1e-5)
    assert float(Masks().losses(-logits, y)) > 10
