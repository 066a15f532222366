from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import Metrics, auc, measure, wilson

# Hanley and McNeil, Radiology 143 (1982) 29-36, table I: ratings 1 to 5 of 58 normal and 51 abnormal scans.
NORMAL = (33, 6, 6, 11, 2)
ABNORMAL = (3, 2, 2, 11, 33)


def ratings() -> tuple[np.ndarray, np.ndarray]:
    normal = [rating for rating, count in enumerate(NORMAL, start=1) for _ in range(count)]
    abnormal = [rating for rating, count in enumerate(ABNORMAL, start=1) for _ in range(count)]
    return np.array([0] * len(normal) + [1] * len(abnormal)), np.array(normal + abnormal)


def test_auc_and_delong_interval_of_the_published_rating_example() -> None:
    # Area and DeLong standard error as statistics packages print them for this table: 0.8932, 0.0307.
    found = auc(*ratings())
    assert found.estimate == pytest.approx(0.8932, abs=5e-5)
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(0.0307, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((0.83295, 0.95339), abs=5e-5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_the_published_examples(
    successes: int, trials: int, low: float, high: float
) -> None:
    found = wilson(successes, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def brute_force(labels: list[int], scores: list[int]) -> tuple[float, float]:
    """Area and DeLong variance from their definitions, pair by pair."""
    positive = [s for s, y in zip(scores, labels, strict=True) if y]
    negative = [s for s, y in zip(scores, labels, strict=True) if not y]

    def psi(a: int, b: int) -> float:
        return 1.0 if a > b else 0.5 if a == b else 0.0

    area = sum(psi(a, b) for a, b in itertools.product(positive, negative)) / (len(positive) * len(negative))
    v10 = [sum(psi(a, b) for b in negative) / len(negative) for a in positive]
    v01 = [sum(psi(a, b) for a in positive) / len(positive) for b in negative]

    def variance(values: list[float]) -> float:
        return sum((v - area) ** 2 for v in values) / (len(values) - 1)

    return area, variance(v10) / len(v10) + variance(v01) / len(v01)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=6, max_size=40))
def test_auc_equals_the_definition_pair_by_pair(pairs: list[tuple[int, int]]) -> None:
    labels = [0, 0, 1, 1, *(y for y, _ in pairs)]
    scores = [1, 3, 2, 3, *(s for _, s in pairs)]
    area, variance = brute_force(labels, scores)
    found = auc(np.array(labels), np.array(scores))
    assert found.estimate == pytest.approx(area)
    assert found.low == pytest.approx(max(0.0, area - 1.959964 * variance**0.5), abs=1e-6)
    assert found.high == pytest.approx(min(1.0, area + 1.959964 * variance**0.5), abs=1e-6)


def test_perfect_separation_of_few_cases_is_not_certain() -> None:
    found = auc(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.8, 0.9]))
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low < 0.5


def test_one_positive_case_still_gives_an_interval() -> None:
    found = auc(np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.9, 0.8]))
    assert 0.0 <= found.low <= found.estimate <= found.high <= 1.0


def test_figures_of_a_small_table() -> None:
    found = measure(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.5, 0.2, 0.4, 0.6]), threshold=0.5)
    assert found.sensitivity is not None
    assert found.specificity is not None
    assert found.sensitivity.estimate == pytest.approx(2 / 3)
    assert found.specificity.estimate == pytest.approx(1 / 2)
    assert (found.samples, found.positives) == (5, 3)
    assert Metrics.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(("labels", "missing"), [([1, 1], "specificity"), ([0, 0], "sensitivity")])
def test_a_figure_that_no_case_defines_is_none(labels: list[int], missing: str) -> None:
    found = measure(np.array(labels), np.array([0.2, 0.7]))
    assert found.auc is None
    assert getattr(found, missing) is None
    assert Metrics.from_json(found.to_json()) == found


def test_no_case_at_all_gives_no_figure() -> None:
    found = measure(np.array([]), np.array([]))
    assert (found.samples, found.auc, found.log_loss) == (0, None, None)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        measure(np.array([0, 1]), np.array([0.5, np.nan]))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        measure(np.array([0, 1]), np.array([0.5]))
