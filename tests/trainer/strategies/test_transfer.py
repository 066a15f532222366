from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.samples import drawn_dataset, small_task
from trainer.errors import StrategyError, UpdateError
from trainer.local_round import use_threads
from trainer.simulation import simulate
from trainer.strategies import Contribution, get
from trainer.strategies.transfer import TURN

use_threads(1)
TASK = small_task()
SITES = {f"s{number}": drawn_dataset(number, TASK) for number in range(3)}
MODEL: dict[str, Any] = {
    "w": np.array([1.0, 2.0], dtype=np.float32),
    "scale": np.array(2.0, dtype=np.float64),
    "n": np.array(2**60, dtype=np.int64),
}
NAMES = ("cyclic", "random-transfer")

both = pytest.mark.parametrize("name", NAMES)


def step(value: float) -> dict[str, Any]:
    return {name: np.full(array.shape, value, dtype=array.dtype) for name, array in MODEL.items()}


def turns(name: str, there: list[set[str]], seed: int = 0) -> list[str]:
    """Return who trains in each round when these sites are there."""
    rule = get(name)
    state: dict[str, Any] = {}
    chosen: list[str] = []
    for number, sites in enumerate(there, 1):
        [site] = rule.participants(number, sites, seed, state)
        chosen.append(site)
        _, state = rule.aggregate(MODEL, [Contribution(site, step(1), 5)], state, {})
    return chosen


def mean_auc(final: Any) -> float:
    return float(np.mean([one.auc.estimate for one in final.values()]))


@both
def test_the_next_model_is_that_of_the_site_which_trained(name: str) -> None:
    new, _ = get(name).aggregate(MODEL, [Contribution("a", step(1), 10**6)], {}, {})
    for key, array in MODEL.items():
        assert np.array_equal(new[key], array + step(1)[key])
        assert (new[key].dtype, new[key].shape) == (array.dtype, array.shape)


@both
@pytest.mark.parametrize("count", [0, 2], ids=["none", "two"])
def test_any_other_number_of_updates_is_no_round(name: str, count: int) -> None:
    updates = [Contribution(f"s{i}", step(1), 1) for i in range(count)]
    with pytest.raises(StrategyError):
        get(name).aggregate(MODEL, updates, {}, {})


@both
def test_a_broken_update_is_refused_though_nobody_else_is_counted(name: str) -> None:
    broken = {**step(1), "scale": np.array(np.nan)}
    with pytest.raises(UpdateError) as caught:
        get(name).aggregate(MODEL, [Contribution("a", broken, 1)], {}, {})
    assert caught.value.code == "not_finite"


@both
def test_where_nobody_is_there_nobody_is_chosen(name: str) -> None:
    with pytest.raises(StrategyError, match="nobody is there"):
        get(name).participants(1, frozenset(), 0, {})


def test_the_cycle_is_a_ring_in_the_order_of_names() -> None:
    assert turns("cyclic", [{"c", "a", "b"}] * 7) == ["a", "b", "c", "a", "b", "c", "a"]


def test_a_dead_site_is_passed_over_and_has_its_turn_when_it_is_back() -> None:
    everyone, others = {"a", "b", "c"}, {"a", "c"}
    there = [everyone, others, others, others, everyone, everyone]
    assert turns("cyclic", there) == ["a", "c", "a", "c", "b", "a"]


@given(there=st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=30))
def test_no_site_has_a_second_turn_before_one_that_was_there_all_the_time(there: list[set[str]]) -> None:
    always = set.intersection(*there)
    chosen = turns("cyclic", there)
    for site in set(chosen):
        at = [number for number, one in enumerate(chosen) if one == site]
        for first, second in pairwise(at):
            assert always - {site} <= set(chosen[first:second])


def test_chance_gives_every_site_its_share_and_another_seed_another_order() -> None:
    sites = {"a", "b", "c", "d"}
    chosen = turns("random-transfer", [sites] * 400)
    assert all(70 <= count <= 130 for count in Counter(chosen).values())
    assert len(set(chosen)) == 4
    assert chosen == turns("random-transfer", [sites] * 400)
    assert chosen != turns("random-transfer", [sites] * 400, seed=1)


@given(number=st.integers(1, 10_000), seed=st.integers(0, 2**32 - 1), gone=st.sampled_from("abcd"))
def test_who_is_away_changes_the_choice_of_no_round_but_its_own(number: int, seed: int, gone: str) -> None:
    rule, sites = get("random-transfer"), {"a", "b", "c", "d"}
    [before] = rule.participants(number, sites, seed, {})
    [after] = rule.participants(number, sites - {gone}, seed, {})
    assert (after == before) is (gone != before)


def test_the_turns_are_kept_as_whole_numbers_by_site() -> None:
    _, state = get("cyclic").aggregate(MODEL, [Contribution("a", step(1), 1)], {TURN + "b": np.array(4)}, {})
    assert {name: int(turn) for name, turn in state.items()} == {"turn:b": 4, "turn:a": 5}


@both
def test_a_simulation_records_the_order_and_learns_like_fedavg(name: str) -> None:
    start = simulate(TASK, SITES, rounds=1, strategy="fedavg", seed=3).rounds[0]
    averaged = simulate(TASK, SITES, rounds=5, strategy="fedavg", seed=3)
    travelled = simulate(TASK, SITES, rounds=15, strategy=name, seed=3)
    order = [next(iter(one["sites"])) for one in travelled.to_json()["rounds"]]
    assert all(len(record.sites) == 1 for record in travelled.rounds)
    assert order == turns(name, [set(SITES)] * 15, seed=3)
    before = mean_auc({site: one.metrics for site, one in start.sites.items()})
    assert mean_auc(travelled.final) > max(before, 0.5) + 0.1
    assert mean_auc(travelled.final) > mean_auc(averaged.final) - 0.15
