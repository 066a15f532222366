from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.federation.plans import make_plan
from tests.trainer.samples import small_task
from trainer.datasets import Dataset, Samples
from trainer.federation.plan import Strategy
from trainer.local_round import use_threads
from trainer.peers import OWN_MODELS
from trainer.ports import silent
from trainer.preflight import Repeats, Report, difference_hashes, examine, repeats

use_threads(1)
TASK = small_task()
SHAPE = (TASK.preprocessing.rows, TASK.preprocessing.columns)


def pictures(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return smooth pictures that differ from one another."""
    coarse = np.random.default_rng(seed).normal(size=(count, 8, 8))
    scale = (SHAPE[0] // 8 + 1, SHAPE[1] // 8 + 1)
    return np.kron(coarse, np.ones((1, *scale)))[:, : SHAPE[0], : SHAPE[1]].astype(np.float32)


def samples(x: np.ndarray[Any, Any], owners: str, labels: list[int] | None = None) -> Samples:
    y = np.array(labels if labels is not None else [i % 2 for i in range(len(x))], dtype=np.uint8)
    return Samples(x[:, None], y, tuple(owners[i] for i in range(len(x))))


def dataset(train: Samples, validation: Samples) -> Dataset:
    return Dataset(train, validation)


def examined(train: int = 24, validation: int = 8, **changes: Any) -> Report:
    owners = "".join(chr(65 + i) for i in range(60))
    x = pictures(train + validation)
    made = dataset(samples(x[:train], owners), samples(x[train:], owners[train:]))
    return examine(make_plan(**changes), made, 0.5, silent)


def test_counts_are_of_cases_labels_and_people_on_both_sides() -> None:
    report = examined()

    assert (report.train.cases, report.train.positive, report.train.negative) == (24, 12, 12)
    assert (report.held_out.cases, report.held_out.subjects) == (8, 8)
    assert report.subjects_on_both_sides == 0
    assert report.warnings == ()


def test_the_time_is_measured_and_scaled_to_the_plans_rounds() -> None:
    report = examined(total_rounds=300)

    timing = report.timing
    assert timing is not None
    assert timing.measured_steps == 6
    assert timing.step_seconds > 0
    expected = 0.5 + timing.evaluate_seconds + TASK.local.local_steps * timing.step_seconds
    assert timing.round_seconds == pytest.approx(expected, abs=0.02 + 0.0001 * TASK.local.local_steps)
    assert timing.run_hours == pytest.approx(timing.round_seconds * 300 / 3600, abs=0.001)


@pytest.mark.parametrize("name", sorted(OWN_MODELS))
def test_the_time_is_measured_of_sites_that_keep_models_of_their_own_too(name: str) -> None:
    timing = examined(strategy=Strategy(name, {})).timing
    assert timing is not None
    assert timing.round_seconds > 0


def test_a_strategy_that_trains_two_models_takes_both_into_account() -> None:
    report = examined(strategy=Strategy("ditto", {}))

    assert report.timing is not None
    assert report.timing.measured_steps == 12


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"max_hours": 0.01, "total_rounds": 1000}, "hours_do_not_suffice"),
        ({"round_timeout_s": 0.5 + 0.5, "task": small_task()}, None),
        ({"minimum_cohort": 33}, "cohort_too_small"),
        ({"minimum_cohort": 32}, None),
    ],
)
def test_what_the_plans_limits_mean_here_is_a_warning(changes: dict[str, Any], code: str | None) -> None:
    warnings = set(examined(**changes).warnings) - {"rounds_too_slow"}

    assert warnings == (set() if code is None else {code})


def test_a_cohort_of_one_label_and_one_without_cases_are_named() -> None:
    x = pictures(30)
    owners = "".join(chr(65 + i) for i in range(60))
    one = dataset(samples(x[:20], owners, [1] * 20), samples(x[20:], owners[20:], [1] * 10))
    none = dataset(samples(x[:0], ""), samples(x[:0], ""))

    assert "one_class_to_train_on" in examine(make_plan(), one, 0.0, silent).warnings
    report = examine(make_plan(), none, 0.0, silent)
    assert report.timing is None
    assert {"nothing_to_train_on", "cohort_too_small"} <= set(report.warnings)


def found(x: np.ndarray[Any, Any], owners: str, train: int) -> Repeats:
    return repeats(dataset(samples(x[:train], owners), samples(x[train:], owners[train:])), silent)


def test_pictures_that_differ_are_no_repeats() -> None:
    assert found(pictures(300), "A" * 300, 200) == Repeats(300, 0, 0, 0, 0)


def test_a_copy_is_found_with_whose_it_is_and_on_which_side() -> None:
    x = pictures(6)
    x[5] = x[0]
    x[2] = x[1]

    assert found(x, "ABBCDE", 4) == Repeats(6, identical=4, similar=0, of_other_subjects=2, across_split=1)
    assert found(x, "ABBCDA", 6) == Repeats(6, identical=4, similar=0, of_other_subjects=0, across_split=0)


def test_a_picture_with_noise_or_another_contrast_is_similar() -> None:
    x = pictures(40)
    noise = np.random.default_rng(3).normal(scale=0.02, size=SHAPE).astype(np.float32)
    x[30], x[31] = x[0] + noise, x[1] * 1.2 + 0.1

    counts = found(x, "".join(chr(65 + i) for i in range(40)), 30)

    assert (counts.identical, counts.similar, counts.across_split) == (0, 4, 2)


@given(st.integers(8, 20), st.integers(8, 20), st.integers(1, 4))
def test_the_hash_ignores_brightness_and_contrast_at_any_size(rows: int, columns: int, count: int) -> None:
    x = np.random.default_rng(rows * 31 + columns).normal(size=(count, rows, columns)).astype(np.float32)

    hashes = difference_hashes(x)

    assert hashes.shape == (count,)
    assert np.bitwise_count(hashes ^ difference_hashes(x * 4.0)).max() <= 1


def test_the_report_is_plain_json_without_an_owner() -> None:
    content = examined().to_json()

    assert set(content) == {
        "train",
        "held_out",
        "skipped",
        "repeats",
        "subjects_on_both_sides",
        "timing",
        "warnings",
    }
