"""Auto-FedAvg's learnt weights and the aligned shares of domain generalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.strategies import Contribution, get, site_weights
from trainer.strategies.autofedavg import SIZE, SKETCH, sketch
from trainer.strategies.generalisation import aligned_shares

EXPECTED = {20: -2.0, 160: -1.0, 296: -5.0, 577: 3.0, 979: 4.0}
TARGETS = {"large": np.full(40, 1.0), "small-a": np.full(40, -1.0), "small-b": np.full(40, -1.0)}
CASES = {"large": 90, "small-a": 5, "small-b": 5}


def run(rounds: int, **parameters: float) -> tuple[float, dict[str, float]]:
    """Let each site pull the model half the way to its own target; the loss is the squared distance."""
    rule = get("auto-fedavg")
    weights, state = rule.prepared({"w": np.zeros(40)}), dict[str, Any]()
    for _ in range(rounds):
        updates = []
        for site, target in TARGETS.items():
            pull = target - weights["w"]
            delta = {"w": 0.5 * pull, SKETCH: sketch({"w": -2 * pull}) - weights[SKETCH]}
            updates.append(Contribution(site, delta, CASES[site]))
        weights, state = rule.aggregate(weights, updates, state, parameters)
    losses = [float(np.mean((weights["w"] - target) ** 2)) for target in TARGETS.values()]
    return float(np.mean(losses)), site_weights(state)


def test_weights_start_by_cases_and_move_to_what_serves_all_sites() -> None:
    _, first = run(1)
    assert first == pytest.approx({"large": 0.9, "small-a": 0.05, "small-b": 0.05})
    loss, learnt = run(12)
    fixed_loss, fixed = run(12, weight_learning_rate=0)
    assert fixed == pytest.approx(first)
    assert learnt["large"] < 0.6
    assert sum(learnt.values()) == pytest.approx(1)
    assert loss < 0.8 * fixed_loss


def test_the_state_alone_carries_the_weights_on() -> None:
    """A run that stops after each round and goes on from its arrays comes to the same."""
    rule = get("auto-fedavg")
    updates = [
        Contribution(site, {"w": target * 0.1, SKETCH: sketch({"w": -target})}, CASES[site])
        for site, target in TARGETS.items()
    ]
    start = rule.prepared({"w": np.zeros(40)})
    weights, state = rule.aggregate(start, updates, {}, {})
    stored = {name: np.array(array) for name, array in state.items()}
    first = rule.aggregate(weights, updates, state, {})
    again = rule.aggregate(weights, list(reversed(updates)), stored, {})
    assert np.array_equal(first[0]["w"], again[0]["w"])
    assert site_weights(first[1]) == site_weights(again[1]) != site_weights(state)
    assert not weights[SKETCH].any()


def test_a_site_that_falls_silent_keeps_its_logit_and_a_new_one_starts_by_cases() -> None:
    rule = get("auto-fedavg")
    a, b, c = (Contribution(site, {"w": np.ones(3)}, n) for site, n in (("a", 10), ("b", 30), ("c", 10)))
    _, state = rule.aggregate({"w": np.zeros(3)}, [a, b], {}, {})
    _, state = rule.aggregate({"w": np.zeros(3)}, [a, c], state, {})
    assert site_weights(state) == pytest.approx({"a": 0.5, "c": 0.5})
    _, state = rule.aggregate({"w": np.zeros(3)}, [a, b, c], state, {})
    assert site_weights(state) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})


def test_a_site_that_claims_a_huge_gradient_does_not_lead() -> None:
    rule = get("auto-fedavg")

    def weight_of_the_claimant(size: float) -> float:
        updates = [
            Contribution(f"s{i}", {"w": one, SKETCH: sketch({"w": -one * (size if i == 0 else 1.0)})}, 10)
            for i, one in enumerate(np.eye(4, 40))
        ]
        _, state = rule.aggregate(rule.prepared({"w": np.zeros(40)}), updates, {}, {})
        _, state = rule.aggregate(rule.prepared({"w": np.zeros(40)}), updates, state, {})
        return site_weights(state)["s0"]

    assert weight_of_the_claimant(1e6) == pytest.approx(weight_of_the_claimant(1.0), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5000))
def test_a_sketch_keeps_inner_products_and_leaves_statistics_out(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.normal(size=(2, size))
    ours = sketch({"w": one, "bn.running_mean": other, "n": np.array(3)})
    assert ours.shape == (SIZE,)
    error = abs(float(ours.astype(np.float64) @ sketch({"w": other})) - float(one @ other))
    assert error <= 6 / np.sqrt(SIZE) * float(np.linalg.norm(one) * np.linalg.norm(other))


def test_a_sketch_is_the_same_on_every_machine() -> None:
    """Written down once: sites of other versions have to agree."""
    found = sketch({"conv.weight": np.arange(1.0, 6.0)})
    assert {int(i): float(found[i]) for i in np.flatnonzero(found)} == EXPECTED


def smallest_gain(updates: np.ndarray, shares: list[float]) -> float:
    unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    step = np.array(shares) @ updates
    return float((unit @ step).min() / np.linalg.norm(step))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), sites=st.integers(2, 7))
def test_the_aligned_step_gains_for_the_worst_site_what_the_mean_does_or_more(seed: int, sites: int) -> None:
    updates = np.random.default_rng(seed).normal(size=(sites, 12)) + 0.3
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    shares = aligned_shares(updates @ updates.T, 0.5)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    even = [1 / sites] * sites
    assert smallest_gain(updates, shares) >= smallest_gain(updates, even) - 1e-3


def test_a_minority_that_the_mean_would_harm_is_heard() -> None:
    updates = np.array([[1.0, 0.1], [1.0, 0.0], [-0.4, 1.0]])
    even = [1 / 3] * 3
    shares = aligned_shares(updates @ updates.T, 1.0)
    assert shares[2] > 1 / 3
    assert smallest_gain(updates, shares) > smallest_gain(updates, even) + 0.1


def test_sites_that_agree_weigh_the_same_and_no_reach_is_the_plain_mean_of_sites() -> None:
    same = np.ones((3, 3))
    assert aligned_shares(same, 0.5) == pytest.approx([1 / 3] * 3)
    assert aligned_shares(np.diag([1.0, 4.0, 9.0]), 0.0) == pytest.approx([1 / 3] * 3)
    assert aligned_shares(np.zeros((2, 2)), 0.5) == pytest.approx([0.5, 0.5])
