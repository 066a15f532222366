"""What a site does under Auto-FedAvg, transfer, variation-aware harmonisation and the mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.trainer.samples import drawn_dataset, small_task
from trainer import strategies
from trainer.errors import StrategyError, UnfitModelError
from trainer.export import export_onnx
from trainer.first_model import first_model
from trainer.local_round import local_round, predict, use_threads
from trainer.networks import head_names, initial_weights, with_weights
from trainer.optimisation import loss_and_gradient
from trainer.simulation import simulate
from trainer.site_rules import site_rule
from trainer.strategies.autofedavg import SIZE, SKETCH, sketch
from trainer.strategies.variation import STYLE
from trainer.task import LocalSpec, NetworkSpec
from trainer.wrapped import harmonised, statistics

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.weights_io import Weights

use_threads(1)
TASK = small_task(
    local=LocalSpec(batch_size=8, local_steps=4, learning_rate=3e-3, shift_fraction=0.0),
    network=NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"}),
)
SITE = drawn_dataset(1, TASK)
PLAIN = initial_weights(TASK)


def start(strategy: str) -> Weights:
    return strategies.get(strategy).prepared(PLAIN)


def update_of(strategy: str, **changes: Any) -> Any:
    values = {"weights": start(strategy), "seed": 1, **changes}
    weights = values.pop("weights")
    return local_round(TASK, weights, SITE, strategy=strategy, **values)


class TestAutoFedAvg:
    def test_a_site_sends_fedavg_s_update_and_a_sketch_of_its_gradient(self) -> None:
        plain, update = update_of("fedavg"), update_of("auto-fedavg")
        assert all(np.array_equal(plain.delta[name], update.delta[name]) for name in PLAIN)
        _, gradient = loss_and_gradient(with_weights(TASK, PLAIN), SITE.train)
        np.testing.assert_allclose(update.delta[SKETCH], sketch(gradient))
        assert update.delta.keys() - PLAIN.keys() == {SKETCH}
        assert update.delta[SKETCH].shape == (SIZE,)

    def test_the_gradient_is_that_of_the_loss(self) -> None:
        network = with_weights(TASK, PLAIN)
        before, gradient = loss_and_gradient(network, SITE.train)
        square = sum(float(np.square(one, dtype=np.float64).sum()) for one in gradient.values())
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.sub_(torch.from_numpy(gradient[name]), alpha=1e-3)
        after, _ = loss_and_gradient(network, SITE.train)
        assert before - after == pytest.approx(1e-3 * square, rel=0.05)


class TestTransfer:
    def test_only_the_head_moves_until_the_frozen_rounds_are_over(self) -> None:
        frozen = update_of("transfer", number=2).delta
        moved = {name for name, array in frozen.items() if array.any()}
        assert moved == head_names(TASK) == {"fc.weight", "fc.bias"}
        thawed = update_of("transfer", number=3).delta
        assert {name for name, array in thawed.items() if array.any()} > moved
        whole = update_of("transfer", number=3, strategy_parameters={"frozen_rounds": 10_000}).delta
        assert {name for name, array in whole.items() if array.any()} == moved

    def test_a_run_needs_an_earlier_model_of_the_same_network(self) -> None:
        with pytest.raises(StrategyError, match="earlier run's model"):
            simulate(TASK, {"a": SITE}, rounds=1, strategy="transfer")
        with pytest.raises(UnfitModelError):
            first_model(TASK, "transfer", 0, {"w": np.zeros(3)})
        with pytest.raises(UnfitModelError):
            first_model(TASK, "fedavg", 0, start("scaffold"))

    def test_any_run_may_start_from_an_earlier_model(self) -> None:
        earlier = initial_weights(TASK, 77)
        result = simulate(TASK, {"a": SITE}, rounds=1, initial=earlier, seed=1)
        direct = local_round(TASK, earlier, SITE, seed=0)
        assert result.rounds[0].sites["a"].metrics == direct.metrics


class TestVariationAware:
    def test_the_first_round_sends_the_style_alone(self) -> None:
        delta = update_of("variation-aware").delta
        assert {name for name, array in delta.items() if array.any()} == {STYLE}
        assert delta[STYLE].shape == (5,)
        expected = statistics(torch.from_numpy(SITE.train.x), 3).double().mean(dim=0).numpy()
        np.testing.assert_allclose(delta[STYLE] + start("variation-aware")[STYLE], expected, rtol=1e-5)
        trained = update_of("variation-aware", number=2).delta
        assert {name for name, array in trained.items() if array.any()} > {STYLE, "fc.weight"}

    def test_two_machines_pictures_become_alike(self) -> None:
        x = torch.from_numpy(SITE.train.x)
        style = statistics(x, 3).mean(dim=0)
        other = x * 0.4 + 2.0
        before = float((x - other).abs().mean())
        after = float((harmonised(x, style) - harmonised(other, style)).abs().mean())
        assert after < 0.02 * before

    def test_a_picture_without_contrast_stays_finite(self) -> None:
        flat = torch.full((2, 1, 32, 32), 3.0)
        assert bool(torch.isfinite(harmonised(flat, torch.ones(5))).all())

    def test_pictures_of_a_style_keep_it(self) -> None:
        x = torch.from_numpy(SITE.train.x[:4])
        one = x[:1]
        np.testing.assert_allclose(harmonised(one, statistics(one, 3)[0]), one, atol=0.02)


class TestDomainAdaptation:
    def test_private_network_and_gate_stay_and_make_the_model_of_the_site(self) -> None:
        update = update_of("domain-adaptation")
        assert update.delta.keys() == PLAIN.keys()
        assert {name.partition(":")[0] for name in update.own} == {"private", "gate"}
        rule = site_rule("domain-adaptation")
        deployed = rule.deployed(TASK, PLAIN, update.own, trained=True)
        mixed = predict(TASK, deployed, SITE.validation.x)
        assert not np.allclose(mixed, predict(TASK, PLAIN, SITE.validation.x))

    def test_a_gate_that_is_shut_leaves_one_of_the_two(self) -> None:
        own = update_of("domain-adaptation").own
        private = {name.removeprefix("private:"): a for name, a in own.items() if name.startswith("private:")}
        for bias, alone in ((50.0, PLAIN), (-50.0, private)):
            shut = {"gate:weight": own["gate:weight"] * 0, "gate:bias": own["gate:bias"] * 0 + bias}
            mixed = predict(TASK, {**PLAIN, **own, **shut}, SITE.validation.x)
            np.testing.assert_allclose(mixed, predict(TASK, alone, SITE.validation.x), atol=1e-6)

    def test_what_leaves_is_fedavg_s_update_with_noise_as_large_as_the_plan_says(self) -> None:
        plain, noisy = update_of("fedavg").delta, update_of("domain-adaptation").delta
        none = update_of("domain-adaptation", strategy_parameters={"noise": 0.0}).delta
        assert all(np.array_equal(plain[name], none[name]) for name in plain)
        name = max(plain, key=lambda one: plain[one].size)
        ratio = np.std(noisy[name] - plain[name]) / np.sqrt(np.mean(np.square(plain[name])))
        assert ratio == pytest.approx(0.1, rel=0.2)
        counters = [name for name, array in plain.items() if array.dtype.kind == "i"]
        assert counters
        assert all(np.array_equal(plain[name], noisy[name]) for name in counters)

    def test_a_state_of_another_network_is_refused(self) -> None:
        own = update_of("domain-adaptation").own
        own["gate:bias"] = np.zeros(7, dtype=np.float32)
        with pytest.raises(UnfitModelError):
            update_of("domain-adaptation", own=own)


@pytest.mark.parametrize("name", ["auto-fedavg", "transfer", "domain-adaptation", "variation-aware"])
def test_a_local_round_is_deterministic_and_mutates_nothing(name: str) -> None:
    weights = start(name)
    first = update_of(name, number=3)
    before = {key: array.copy() for key, array in (weights | first.own).items()}
    again = update_of(name, number=3)
    update_of(name, weights=weights, own=first.own, number=4)
    assert all(np.array_equal(first.delta[key], again.delta[key]) for key in weights)
    assert all(np.array_equal(first.own[key], again.own[key]) for key in first.own)
    assert all(np.array_equal((weights | first.own)[key], before[key]) for key in before)
    assert all(first.delta[key].dtype == weights[key].dtype for key in weights)


@pytest.mark.parametrize("name", ["auto-fedavg", "domain-adaptation", "variation-aware"])
def test_what_a_site_uses_is_exported_and_served_as_it_was_measured(name: str, tmp_path: Path) -> None:
    result = simulate(TASK, {"a": SITE}, rounds=2, strategy=name, seed=1)
    own = update_of(name, weights=result.weights, number=3).own
    deployed = site_rule(name).deployed(TASK, result.weights, own, trained=True)
    parity = export_onnx(TASK, deployed, SITE.validation, tmp_path)
    assert parity.max_abs <= 1e-4


def test_the_mixture_is_exported_for_pictures_that_its_cells_do_not_divide(tmp_path: Path) -> None:
    task = replace(TASK, preprocessing=replace(TASK.preprocessing, rows=30, columns=35))
    site = drawn_dataset(2, task, train=8, validation=6)
    own = local_round(task, PLAIN, site, strategy="domain-adaptation", seed=1).own
    parity = export_onnx(task, {**PLAIN, **own}, site.validation, tmp_path)
    assert parity.max_abs <= 1e-4


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("fedavg", {"gate:bias": np.zeros(1, dtype=np.float32)}),
        ("ditto", {STYLE: np.ones(5, dtype=np.float32)}),
        ("scaffold", {STYLE: np.ones(5, dtype=np.float32)}),
        ("auto-fedavg", {SKETCH: np.zeros(3, dtype=np.float32)}),
        ("auto-fedavg", {STYLE: np.ones(5, dtype=np.float32)}),
        ("variation-aware", {STYLE: np.ones(900, dtype=np.float32)}),
        ("variation-aware", {"private:fc.bias": np.zeros(1, dtype=np.float32)}),
        ("domain-adaptation", {"private:fc.bias": np.zeros(1, dtype=np.float32)}),
    ],
    ids=["gate", "ditto-style", "scaffold-style", "sketch", "style", "long-style", "private", "expert"],
)
def test_a_global_model_that_brings_what_the_strategy_does_not_know_is_refused(
    name: str, extra: Weights
) -> None:
    with pytest.raises(UnfitModelError):
        update_of(name, weights={**start(name), **extra})


@pytest.mark.parametrize(("name", "missing"), [("auto-fedavg", SKETCH), ("variation-aware", STYLE)])
def test_a_global_model_that_lacks_what_the_strategy_needs_is_refused(name: str, missing: str) -> None:
    weights = {key: array for key, array in start(name).items() if key != missing}
    with pytest.raises(UnfitModelError):
        update_of(name, weights=weights)
