"""The attacks that the benchmark runs, where what they must find is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import attacks, inversion


def test_an_area_is_the_chance_that_a_member_scores_above_another() -> None:
    member = np.array([True, True, False, False])

    assert attacks.area(np.array([4.0, 3.0, 2.0, 1.0]), member) == 1.0
    assert attacks.area(np.array([1.0, 2.0, 3.0, 4.0]), member) == 0.0
    assert attacks.area(np.array([4.0, 1.0, 3.0, 2.0]), member) == 0.5


def test_members_are_found_beyond_the_others_that_are_taken_for_them() -> None:
    member = np.arange(200) < 100
    scores = np.where(member, np.arange(200.0) + 150, np.arange(200.0))

    assert attacks.found_at(scores, member, 0.01) == pytest.approx(0.51, abs=0.02)


def test_the_likelihood_ratio_finds_members_that_differ_from_case_to_case() -> None:
    """Confidence tells little across cases, much of one case across models."""
    generator = np.random.default_rng(0)
    member = generator.random((12, 300)) < 0.5
    hardness = generator.normal(0, 10, 300)
    values = hardness + 2.0 * member + generator.normal(0, 0.5, member.shape)

    ratios = attacks.likelihood_ratios(values, member)

    assert np.isfinite(ratios).all()
    by_ratio = np.mean([attacks.area(s, m) for s, m in zip(ratios, member, strict=True)])
    by_value = np.mean([attacks.area(s, m) for s, m in zip(values, member, strict=True)])
    assert by_ratio > 0.98
    assert by_value < 0.65


def test_a_case_that_was_always_or_never_trained_on_tells_nothing() -> None:
    member = np.array([[True, False, True], [True, False, False], [True, False, True]])

    ratios = attacks.likelihood_ratios(np.arange(9.0).reshape(3, 3), member)

    assert (ratios[:, :2] == 0).all()


def test_a_picture_is_like_itself() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((2, 1, 28, 28)).astype(np.float32)

    same, _ = inversion.likeness(truth[::-1], truth)
    other, structure = inversion.likeness(generator.random((2, 1, 28, 28)).astype(np.float32), truth)

    assert same > 60
    assert other < 12
    assert structure < 0.2
