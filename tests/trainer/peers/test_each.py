from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.peers.groups import group, model, pairs, played, step
from trainer.errors import StrategyError
from trainer.peers import PEERS, Call, Peer
from trainer.peers.dfedavgm import DFedAvgM
from trainer.strategies import Contribution, get
from trainer.strategies.swarm import leader

FOUR = "abcd"


def call(number: int, there: str = FOUR, seed: int = 0) -> Call:
    return Call(number, tuple(there), seed, {})


class TestSwarm:
    def test_the_drawn_site_comes_to_what_fedavg_comes_to(self) -> None:
        held = group(FOUR, a=1, b=20, c=3, d=400)
        updates = {site: step(i) for i, site in enumerate(FOUR)}
        found, _ = played("swarm", held, 1, updates)
        contributions = [Contribution(site, updates[site], held[site].samples) for site in FOUR]
        expected, _ = get("fedavg").aggregate(model(), contributions, {}, {})
        for peer in found.values():
            assert all(np.array_equal(peer.weights[name], array) for name, array in expected.items())

    def test_updates_go_to_the_drawn_site_alone_and_the_model_to_all_others(self) -> None:
        for number in range(1, 9):
            _, exchanges = played("swarm", group(FOUR), number, {site: step(1) for site in FOUR})
            led_by = exchanges[1].led_by
            others = set(FOUR) - {led_by}
            assert pairs(exchanges) == {(s, led_by) for s in others} | {(led_by, s) for s in others}

    def test_every_site_has_its_share_of_rounds(self) -> None:
        leaders = Counter(leader(number, FOUR, 0) for number in range(400))
        assert all(70 <= leaders[site] <= 130 for site in FOUR)

    @given(number=st.integers(1, 10_000), seed=st.integers(0, 2**31 - 1), gone=st.sampled_from(FOUR))
    def test_who_is_away_changes_the_choice_of_no_round_but_its_own(
        self, number: int, seed: int, gone: str
    ) -> None:
        before = leader(number, FOUR, seed)
        after = leader(number, FOUR.replace(gone, ""), seed)
        assert (after == before) is (gone != before)

    def test_who_was_away_gets_the_newest_model_before_it_trains(self) -> None:
        held, _ = played("swarm", group(FOUR), 1, {site: step(1) for site in "abd"}, there="abd")
        assert (held["c"].version, held["a"].version) == (0, 1)
        after, (before, _) = played("swarm", held, 2, {site: step(1) for site in FOUR})
        assert [(one.receiver, one.sender in "abd") for one in before.messages] == [("c", True)]
        assert {peer.version for peer in after.values()} == {2}


class TestDecentralisedAveraging:
    @pytest.mark.parametrize("density", [0.0, 0.4], ids=["ring", "random"])
    @pytest.mark.parametrize("bits", [32.0, 8.0, 4.0])
    def test_sites_agree_on_the_mean_in_the_end(self, density: float, bits: float) -> None:
        sites = "abcdef"
        options = {"density": density, "bits": bits}
        start = {"w": np.zeros(3, dtype=np.float32)}
        held = {site: Peer(start, 1, start) for site in sites}
        updates = {site: {"w": np.array([i, -i, i * i], dtype=np.float32)} for i, site in enumerate(sites)}
        held, _ = played("dfedavgm", held, 1, updates, parameters=options)
        still = {site: {"w": np.zeros(3, dtype=np.float32)} for site in sites}
        for number in range(2, 80):
            held, _ = played("dfedavgm", held, number, still, parameters=options)
        expected = np.mean([updates[site]["w"] for site in sites], axis=0)
        for peer in held.values():
            slack = 1e-4 if bits == 32 else 25 / (2 ** (bits - 1) - 1)
            assert np.allclose(peer.weights["w"], expected, atol=slack)
        models = np.stack([peer.weights["w"] for peer in held.values()])
        assert np.ptp(models, axis=0).max() < 1e-3

    def test_mixing_leaves_the_mean_of_all_models_where_it_was(self) -> None:
        updates = {site: step(i * i) for i, site in enumerate(FOUR)}
        held, _ = played("dfedavgm", group(FOUR), 1, updates, parameters={"bits": 32})
        found = np.mean([peer.weights["conv.weight"] for peer in held.values()], axis=0)
        assert np.allclose(found, model()["conv.weight"] + (0 + 1 + 4 + 9) / 4)

    def test_a_site_hears_of_its_neighbours_alone(self) -> None:
        updates = {site: step(i) for i, site in enumerate(FOUR)}
        first, exchanges = played("dfedavgm", group(FOUR), 1, updates)
        other, _ = played("dfedavgm", group(FOUR), 1, {**updates, "c": step(90)})
        assert ("c", "a") not in pairs(exchanges)
        assert np.array_equal(first["a"].weights["conv.weight"], other["a"].weights["conv.weight"])
        assert not np.array_equal(first["b"].weights["conv.weight"], other["b"].weights["conv.weight"])
        assert set(first["a"].known) == {"a", "b", "d"}

    def test_who_missed_a_message_gets_the_whole_model_and_holds_what_its_neighbours_hold(self) -> None:
        held, _ = played("dfedavgm", group(FOUR), 1, {site: step(i) for i, site in enumerate(FOUR)})
        held, _ = played("dfedavgm", held, 2, {site: step(1) for site in "abd"}, there="abd")
        held, (_, spread) = played("dfedavgm", held, 3, {site: step(1) for site in FOUR})
        whole = {(one.sender, one.receiver) for one in spread.messages if set(one.arrays) == set(model())}
        assert whole == {("b", "c"), ("d", "c")}
        for a, b in pairs([spread]):
            kept = held[b].replica(a)
            assert kept.version == held[a].replica(a).version
            assert all(
                np.array_equal(array, held[a].replica(a).weights[name])
                for name, array in kept.weights.items()
            )

    def test_every_site_weighs_the_same(self) -> None:
        updates = {"a": step(0), "b": step(4)}
        held, _ = played("dfedavgm", group("ab", a=1, b=999), 1, updates, parameters={"bits": 32})
        for peer in held.values():
            assert np.allclose(peer.weights["conv.weight"], model()["conv.weight"] + 2)

    @pytest.mark.parametrize(
        "wrong",
        [
            ("bits", 3),
            ("bits", 9),
            ("bits", 5.5),
            ("density", 1.1),
            ("momentum", 1),
            ("local_learning_rate", 0),
        ],
    )
    def test_a_parameter_out_of_range_is_refused(self, wrong: tuple[str, float]) -> None:
        with pytest.raises(StrategyError):
            DFedAvgM().check_parameters(dict([wrong]))


class TestBrainTorrent:
    def test_all_train_first_and_then_one_at_a_time(self) -> None:
        rule = PEERS["braintorrent"]
        assert rule.participants(call(1)) == tuple(FOUR)
        chosen = Counter(rule.participants(call(number)) for number in range(2, 402))
        assert set(chosen) == {("a",), ("b",), ("c",), ("d",)}
        assert min(chosen.values()) > 70
        assert rule.rounds(6, 4) == 21

    def test_the_initiator_merges_by_samples_what_is_newer_and_nothing_twice(self) -> None:
        held, _ = played("braintorrent", group("ab", a=10, b=30), 1, {"a": step(0), "b": step(4)})
        number = next(n for n in range(2, 99) if PEERS["braintorrent"].participants(call(n, "ab")) == ("a",))
        found, exchanges = played("braintorrent", held, number, {"a": step(0)})
        assert pairs(exchanges) == {("b", "a")}
        assert np.allclose(found["a"].weights["conv.weight"], model()["conv.weight"] + 3)
        assert (found["a"].version, found["a"].replica("b").version) == (2, 1)
        again, exchanges = played("braintorrent", found, number, {"a": step(0)})
        assert pairs(exchanges) == set()
        assert np.allclose(again["a"].weights["conv.weight"], found["a"].weights["conv.weight"])
        assert again["b"] is held["b"]

    def test_a_model_that_was_not_trained_counts_for_nothing(self) -> None:
        held, _ = played("braintorrent", group(FOUR), 1, {site: step(4) for site in "ab"}, there="ab")
        number = next(n for n in range(2, 99) if PEERS["braintorrent"].participants(call(n)) == ("c",))
        found, exchanges = played("braintorrent", held, number, {"c": step(0)})
        assert pairs(exchanges) == {("a", "c"), ("b", "c")}
        assert np.allclose(found["c"].weights["conv.weight"], model()["conv.weight"] + 4)
