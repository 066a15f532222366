from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.anomaly.measures import average_precision, measure, pictured
from trainer.measuring import read_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_definition(truth: list[int], scores: list[int]) -> float:
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [y for y, score in zip(truth, scores, strict=True) if score >= threshold]
        recall = sum(called) / sum(truth)
        area += (recall - before) * sum(called) / len(called)
        before = recall
    return area


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_average_precision_is_the_area_of_its_definition(pairs: list[tuple[int, int]]) -> None:
    truth, scores = [y for y, _ in pairs], [score for _, score in pairs]
    if sum(truth):
        assert average_precision(np.array(truth), np.array(scores)) == pytest.approx(
            by_definition(truth, scores)
        )
    else:
        with pytest.raises(ValueError, match="marked"):
            average_precision(np.array(truth), np.array(scores))


def case(value: float, spot: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mask and residual of 10 x 10 pixels, a marked 2 x 2 spot among them."""
    marked, residual = np.zeros((10, 10), dtype=np.uint8), np.full((10, 10), value, dtype=np.float32)
    if spot:
        marked[:2, :2], residual[:2, :2] = 1, spot
    return marked, residual


def test_the_threshold_is_that_of_the_healthy_cases_alone() -> None:
    ramp = (np.zeros((10, 10), dtype=np.uint8), np.arange(100, dtype=np.float32).reshape(10, 10))
    cases = [ramp, case(10.0, spot=1000.0)]
    found = measure(np.stack([m for m, _ in cases]), np.stack([r for _, r in cases]), 0.9)
    assert found.threshold == pytest.approx(89.1)
    assert found.healthy_error == pytest.approx(49.5)
    assert (found.samples, found.subjects, found.anomalous) == (2, 2, 1)
    assert found.dice is not None
    assert found.average_precision is not None
    assert (found.dice.estimate, found.average_precision.estimate) == (1.0, 1.0)


def test_what_is_missed_and_what_is_called_wrongly_counts() -> None:
    marked, residual = case(0.0, spot=5.0)
    residual[0, 0] = 0.0
    residual[9, :3] = 5.0
    found = measure(np.stack([case(1.0)[0], marked]), np.stack([case(1.0)[1], residual]), 0.98)
    assert found.dice is not None
    assert found.dice.estimate == pytest.approx(2 * 3 / (4 + 6))


def test_cases_of_one_patient_are_one_observation() -> None:
    good, bad = case(0.0, spot=5.0), case(0.0, spot=0.5)
    cases = [case(1.0), good, good, good, bad]
    marked, strayed = np.stack([m for m, _ in cases]), np.stack([r for _, r in cases])
    apart = measure(marked, strayed, 0.98)
    together = measure(marked, strayed, 0.98, ("h", "a", "a", "a", "b"))
    assert apart.dice is not None
    assert together.dice is not None
    assert (apart.dice.estimate, together.dice.estimate) == (0.75, 0.5)
    assert (apart.subjects, together.subjects) == (5, 3)


def test_a_clean_picture_of_who_has_an_anomaly_gives_nothing_to_the_threshold() -> None:
    cases = [case(1.0), case(100.0), case(0.0, spot=5.0)]
    marked, strayed = np.stack([m for m, _ in cases]), np.stack([r for _, r in cases])
    found = measure(marked, strayed, 0.98, ("well", "sick", "sick"))
    assert (found.threshold, found.healthy_error) == (1.0, 1.0)
    assert (found.healthy, found.healthy_subjects, found.samples) == (1, 1, 3)
    assert measure(marked, strayed, 0.98).threshold == 100.0


def test_padding_gives_nothing_to_the_threshold() -> None:
    x = np.full((1, 1, 10, 10), -2.0, dtype=np.float32)
    x[0, 0, :, 3:7] = np.linspace(-1, 1, 40).reshape(10, 4)
    x[0, 0, 4, 4] = -2.0
    inside = pictured(x, -2.0)
    assert inside[0].sum() == 40
    assert inside[0, :, 3:7].all()
    ramp = np.zeros((1, 10, 10), dtype=np.float32)
    ramp[0][inside[0]] = np.arange(40)
    clean = np.zeros((1, 10, 10), dtype=np.uint8)
    found = measure(clean, ramp, 0.9, inside=inside)
    assert found.threshold is not None
    assert (ramp[0][inside[0]] > found.threshold).mean() == pytest.approx(0.1)
    without = measure(clean, ramp, 0.9).threshold
    assert without is not None
    assert (ramp[0][inside[0]] > without).mean() > 0.2, "the share would not hold in the picture"


def test_black_alone_is_no_picture() -> None:
    assert not pictured(np.full((1, 1, 4, 4), -2.0, dtype=np.float32), -2.0).any()


def test_the_false_share_is_of_people_who_gave_nothing_to_their_threshold() -> None:
    generator = np.random.default_rng(0)
    alike = generator.uniform(0, 1, (12, 100, 100)).astype(np.float32)
    clean = np.zeros(alike.shape, dtype=np.uint8)
    found = measure(clean, alike, 0.95).false_share
    assert found is not None
    assert found.low < 0.05 < found.high
    assert found.high - found.low < 0.01
    alike[0] += 2
    other = measure(clean, alike, 0.95).false_share
    assert other is not None
    assert other.estimate > found.estimate + 1 / 24, "one of twelve is all above the others' threshold"
    assert measure(clean[:1], alike[:1], 0.95).false_share is None


def test_figures_that_were_stored_before_are_read() -> None:
    well = measure(case(1.0)[0][np.newaxis], case(1.0)[1][np.newaxis], 0.98).to_json()
    old = {name: well[name] for name in well if name not in {"healthy", "healthy_subjects", "false_share"}}
    assert read_metrics(old).to_json() == {**well, "healthy": 0, "healthy_subjects": 0}


def test_without_healthy_or_anomalous_cases_a_figure_is_not_there() -> None:
    (marked, residual), (clean, rest) = case(0.0, spot=5.0), case(1.0)
    sick = measure(marked[np.newaxis], residual[np.newaxis], 0.98)
    assert (sick.threshold, sick.healthy_error, sick.dice, sick.headline) == (None, None, None, None)
    assert sick.average_precision is not None
    well = measure(clean[np.newaxis], rest[np.newaxis], 0.98)
    assert (well.dice, well.average_precision, well.anomalous) == (None, None, 0)
    nothing = measure(clean[:0, np.newaxis], rest[:0, np.newaxis], 0.98)
    assert (nothing.samples, nothing.threshold, nothing.dice) == (0, None, None)
    for found in (sick, well, nothing):
        assert read_metrics(json.loads(json.dumps(found.to_json()))) == found
        assert found.auc is None


def test_residuals_that_are_no_numbers_are_refused() -> None:
    marked, residual = case(np.nan)
    with pytest.raises(ValueError, match="finite"):
        measure(marked[np.newaxis], residual[np.newaxis], 0.98)
    with pytest.raises(ValueError, match="shape"):
        measure(marked[np.newaxis], residual, 0.98)
