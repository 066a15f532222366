"""What holds for every rule between peers: whoever adds one finds it here by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.trainer.peers.groups import Arrays, group, model, pairs, played, step
from trainer.errors import StrategyError, UpdateError
from trainer.peers import NAMES, OWN_MODELS, PEERS, Call, Peer, blend, terms
from trainer.strategies import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

every_rule = pytest.mark.parametrize("name", PEERS)
FOUR = "abcd"
EXACT = {"dfedavgm": {"bits": 32.0}}
MODELS = st.lists(
    hnp.arrays(np.float32, (4,), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=6
)


def same(first: Mapping[str, Peer], second: Mapping[str, Peer]) -> bool:
    return first.keys() == second.keys() and all(
        one.version == second[site].version
        and all(np.array_equal(array, second[site].weights[name]) for name, array in one.weights.items())
        for site, one in first.items()
    )


@every_rule
def test_dtypes_shapes_and_arguments_are_kept(name: str) -> None:
    held = group(FOUR)
    updates = {site: step(number) for number, site in enumerate(FOUR)}
    after, _ = played(name, held, 1, updates)
    again, _ = played(name, after, 2, updates)
    for found in (after, again):
        for peer in found.values():
            for key, array in model().items():
                assert (peer.weights[key].dtype, peer.weights[key].shape) == (array.dtype, array.shape)
    assert all(np.array_equal(held["a"].weights[key], array) for key, array in model().items())
    assert all(np.array_equal(updates["b"][key], array) for key, array in step(1).items())


@every_rule
def test_a_counter_moves_to_a_whole_number_between_the_sites_beyond_what_floats_hold(name: str) -> None:
    held = group(FOUR)
    for number in (1, 2):
        held, _ = played(name, held, number, {site: step(3) for site in FOUR})
    for peer in held.values():
        moved = int(peer.weights["bn.num_batches_tracked"]) - 2**60
        assert moved in {3, 6}


@every_rule
def test_a_single_site_goes_its_own_way_and_sends_nothing(name: str) -> None:
    held: dict[str, Peer] = group("a")
    for number in (1, 2, 3):
        held, exchanges = played(name, held, number, {"a": step(0.25)}, parameters=EXACT.get(name))
        assert pairs(exchanges) == set()
    assert np.allclose(held["a"].weights["conv.weight"], model()["conv.weight"] + 0.75)


@settings(max_examples=60, deadline=None)
@given(deltas=MODELS, name=st.sampled_from(list(PEERS)), seed=st.integers(0, 99))
def test_every_model_lies_within_the_trained_ones(
    deltas: list[NDArray[np.float32]], name: str, seed: int
) -> None:
    start = {"w": np.zeros(4, dtype=np.float32)}
    sites = [f"s{i}" for i in range(len(deltas))]
    held = {site: Peer(start, i + 1, start) for i, site in enumerate(sites)}
    updates = {site: {"w": delta} for site, delta in zip(sites, deltas, strict=True)}
    held, _ = played(name, held, 1, updates, seed=seed, parameters=EXACT.get(name))
    still = {site: {"w": np.zeros(4, dtype=np.float32)} for site in sites}
    for number in (2, 3, 4):
        held, _ = played(name, held, number, still, seed=seed, parameters=EXACT.get(name))
        for peer in held.values():
            assert np.all(peer.weights["w"] <= np.max(deltas, axis=0) + 1e-4)
            assert np.all(peer.weights["w"] >= np.min(deltas, axis=0) - 1e-4)


@settings(max_examples=60, deadline=None)
@given(
    deltas=MODELS,
    order=st.randoms(use_true_random=False),
    name=st.sampled_from(list(PEERS)),
    number=st.integers(1, 3),
)
def test_the_order_of_sites_does_not_matter(
    deltas: list[NDArray[np.float32]], order: Any, name: str, number: int
) -> None:
    start = {"w": np.ones(4, dtype=np.float32)}
    sites = [f"s{i}" for i in range(len(deltas))]
    shuffled = list(sites)
    order.shuffle(shuffled)
    updates = {site: {"w": delta} for site, delta in zip(sites, deltas, strict=True)}
    found = []
    for names in (sites, shuffled):
        held = {site: Peer(start, 1 + sites.index(site), start, version=1) for site in names}
        found.append(played(name, held, number, updates, there=names))
    assert same(found[0][0], found[1][0])
    assert pairs(found[0][1]) == pairs(found[1][1])


@every_rule
def test_the_same_seed_gives_the_same_models_and_another_one_other_leaders(name: str) -> None:
    options = {"density": 0.3} if name == "dfedavgm" else {}

    def course(seed: int) -> tuple[dict[str, Peer], list[str]]:
        held, leaders = group("abcdef"), []
        for number in range(1, 9):
            updates = {site: step(i + number) for i, site in enumerate("abcdef")}
            held, exchanges = played(name, held, number, updates, seed=seed, parameters=options)
            leaders.append(exchanges[0].led_by or exchanges[1].led_by)
        return held, leaders

    assert same(course(1)[0], course(1)[0])
    assert same(course(1)[0], course(2)[0]) is (name == "swarm")  # whoever leads comes to the same
    assert course(1)[1] == course(1)[1]
    if name != "dfedavgm":
        assert course(1)[1] != course(2)[1]


@every_rule
def test_a_dead_peer_is_passed_over(name: str) -> None:
    held = group(FOUR)
    held, _ = played(name, held, 1, {site: step(i) for i, site in enumerate(FOUR)})
    alone = held["c"]
    for number in range(2, 12):
        held, exchanges = played(name, held, number, {site: step(1) for site in "abd"}, there="abd")
        assert not {"c"} & {site for pair in pairs(exchanges) for site in pair}
        assert "c" not in {one.led_by for one in exchanges}
    assert held["c"] is alone
    before = held
    for number in range(12, 22):
        held, _ = played(name, held, number, {site: step(1) for site in FOUR})
    assert held["c"].version > before["c"].version


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: {**d, "conv.weight": d["conv.weight"] * np.float32("nan")}, "not_finite"),
        (lambda d: {**d, "scale": np.array(np.inf)}, "not_finite"),
        (lambda d: {key: array for key, array in d.items() if key != "half"}, "names"),
        (lambda d: {**d, "conv.weight": d["conv.weight"].astype(np.float64)}, "dtype"),
    ],
    ids=["nan", "inf", "missing", "dtype"],
)
@every_rule
def test_a_broken_update_is_refused(name: str, change: Callable[[Arrays], Arrays], code: str) -> None:
    updates = {site: step(1) for site in "abc"} | {"d": change(step(1))}
    with pytest.raises(UpdateError) as caught:
        played(name, group(FOUR), 1, updates)
    assert caught.value.code == code


def test_a_broken_model_of_another_site_is_refused() -> None:
    broken = {**model(), "scale": np.array(np.nan)}
    with pytest.raises(UpdateError) as caught:
        blend(model(), [model(), broken], [0.5, 0.5])
    assert caught.value.code == "not_finite"


@every_rule
def test_an_unknown_parameter_is_refused_and_where_nobody_is_there_is_no_round(name: str) -> None:
    with pytest.raises(StrategyError, match="unknown parameter"):
        PEERS[name].check_parameters({"nu": 1})
    with pytest.raises(StrategyError, match="nobody is there"):
        Call(1, (), 0, {})


def test_names_are_those_of_strategies_and_then_those_between_peers() -> None:
    assert (*STRATEGIES, "dfedavgm", "braintorrent") == NAMES
    assert {"dfedavgm", "braintorrent"} == OWN_MODELS
    assert set(STRATEGIES) & set(PEERS) == {"swarm"}
    assert [terms(name).needs_initial for name in PEERS] == [False] * 3
    with pytest.raises(StrategyError, match=", ".join(NAMES)):
        terms("sorcery")
