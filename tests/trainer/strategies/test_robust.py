from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.errors import StrategyError
from trainer.strategies import THRESHOLD, Contribution, anomaly_scores, get

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE = {"w": np.zeros(2, dtype=np.float64)}
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")


def updates(*values: tuple[float, float], samples: int = 1) -> list[Contribution]:
    return [
        Contribution(f"site-{i}", {"w": np.array(value, dtype=np.float64)}, samples)
        for i, value in enumerate(values)
    ]


def moved(name: str, contributions: list[Contribution], **parameters: float) -> list[float]:
    new, _ = get(name).aggregate(REFERENCE, contributions, {}, parameters)
    return [float(value) for value in new["w"]]


FIVE = updates((1.0, 1.0), (1.1, 0.9), (0.9, 1.2), (1.2, 1.1), (-50.0, 90.0))


def test_the_median_is_taken_of_each_coordinate() -> None:
    assert moved("median", FIVE) == [1.0, 1.1]
    assert moved("median", FIVE[:4]) == pytest.approx([1.05, 1.05])


def test_the_trimmed_mean_leaves_the_extremes_of_each_coordinate_out() -> None:
    assert moved("trimmed-mean", FIVE) == pytest.approx([1.0, (1.0 + 1.2 + 1.1) / 3])
    assert moved("trimmed-mean", FIVE, trim=0.0) == pytest.approx([-9.16, 18.84])
    assert moved("trimmed-mean", FIVE, trim=0.4) == moved("median", FIVE)


def test_krum_takes_the_update_with_the_nearest_neighbours() -> None:
    assert moved("krum", FIVE) == [1.0, 1.0]
    assert moved("multi-krum", FIVE) == pytest.approx([1.05, 1.05])


@pytest.mark.parametrize("name", ["krum", "multi-krum"])
def test_krum_refuses_to_withstand_more_attackers_than_it_can(name: str) -> None:
    assert moved(name, FIVE, attackers=1) == moved(name, FIVE)
    with pytest.raises(StrategyError, match="at least 7"):
        moved(name, FIVE, attackers=2)


@pytest.mark.parametrize("parameters", [{"attackers": -1}, {"attackers": 1.5}, {"trim": 0.1}])
def test_wrong_parameters_of_krum_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(StrategyError):
        get("krum").check_parameters(parameters)


@pytest.mark.parametrize("parameters", [{"trim": 0.5}, {"trim": -0.1}, {"attackers": 1}])
def test_wrong_parameters_of_the_trimmed_mean_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(StrategyError):
        get("trimmed-mean").check_parameters(parameters)


@pytest.mark.parametrize("name", ROBUST)
def test_a_site_cannot_weigh_more_by_claiming_more_samples(name: str) -> None:
    loud = [*FIVE[:4], Contribution("site-4", FIVE[4].delta, 10**6)]
    assert moved(name, loud) == moved(name, FIVE)


@settings(max_examples=150, deadline=None)
@given(
    honest=hnp.arrays(np.float32, (5, 4), elements=st.floats(-10, 10, width=32)),
    hostile=hnp.arrays(np.float32, (2, 4), elements=st.floats(-(2.0**40), 2.0**40, width=32)),
    name=st.sampled_from(("median", "trimmed-mean")),
)
def test_two_of_seven_cannot_move_a_coordinate_beyond_the_honest_ones(
    honest: NDArray[np.float32], hostile: NDArray[np.float32], name: str
) -> None:
    rows = [*honest, *hostile]
    contributions = [Contribution(f"site-{i}", {"w": row}, 1) for i, row in enumerate(rows)]
    new, _ = get(name).aggregate({"w": np.zeros(4, dtype=np.float32)}, contributions, {}, {})
    assert np.all(new["w"] <= honest.max(axis=0) + 1e-4)
    assert np.all(new["w"] >= honest.min(axis=0) - 1e-4)


@settings(max_examples=100, deadline=None)
@given(
    honest=hnp.arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=32)),
    direction=hnp.arrays(np.float32, (2, 4), elements=st.floats(-1, 1, width=32)),
    name=st.sampled_from(("krum", "multi-krum")),
)
def test_far_updates_of_two_in_seven_are_never_chosen(
    honest: NDArray[np.float32], direction: NDArray[np.float32], name: str
) -> None:
    far = np.where(direction < 0, direction - 1000, direction + 1000)
    contributions = [Contribution(f"site-{i}", {"w": row}, 1) for i, row in enumerate([*far, *honest])]
    new, _ = get(name).aggregate({"w": np.zeros(4, dtype=np.float32)}, contributions, {}, {})
    assert np.all(np.abs(new["w"]) <= 1.0001)


def test_scores_name_who_is_far_off_or_turned_round_and_nobody_else() -> None:
    drawn = np.random.default_rng(3).normal(1.0, 0.3, (5, 200))
    for factor in (-1.0, -10.0, 10.0):
        rows = drawn * np.array([1, 1, factor, 1, 1])[:, None]
        scores = anomaly_scores([Contribution(f"s{i}", {"w": row}, 1) for i, row in enumerate(rows)])
        assert [site for site, score in scores.items() if score > THRESHOLD] == ["s2"], factor


def test_equal_updates_and_updates_of_zero_score_zero() -> None:
    for value in (0.0, 1.0):
        rows = [Contribution(f"s{i}", {"w": np.full(3, value)}, 1) for i in range(4)]
        assert list(anomaly_scores(rows).values()) == [0.0] * 4


def test_with_three_sites_nobody_is_scored() -> None:
    assert dict(anomaly_scores(FIVE[:3])) == {}


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)),
    st.randoms(use_true_random=False),
)
def test_scores_are_finite_and_do_not_depend_on_order(rows: NDArray[np.float32], random: Any) -> None:
    contributions = [Contribution(f"s{i}", {"w": row}, 1) for i, row in enumerate(rows)]
    shuffled = list(contributions)
    random.shuffle(shuffled)
    scores = anomaly_scores(contributions)
    assert scores == anomaly_scores(shuffled)
    assert all(0.0 <= score < np.inf for score in scores.values())
