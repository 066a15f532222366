from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.anomaly.measures import average_precision, measure
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
