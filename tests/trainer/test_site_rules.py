"""What a site does under FedBN, SCAFFOLD and Ditto, and what of it stays there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.trainer.samples import drawn_dataset, small_task
from trainer import strategies
from trainer.errors import StrategyError, WeightsError
from trainer.first_model import ANOMALY_ALONE
from trainer.local_round import evaluate, local_round, use_threads
from trainer.networks import initial_weights, with_weights
from trainer.simulation import simulate
from trainer.site_rules import site_rule
from trainer.strategies.scaffold import CONTROL
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from trainer.weights_io import Weights

use_threads(1)
LOCAL = LocalSpec("sgd", learning_rate=0.02, batch_size=8, local_steps=4, weight_decay=0.0, shift_fraction=0)
BATCH = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"})
TASK = small_task(local=LOCAL)
BATCH_TASK = small_task(local=LOCAL, network=BATCH)
SITES = {f"s{number}": drawn_dataset(number, BATCH_TASK) for number in range(3)}


def start(strategy: str, **changes: Any) -> Weights:
    return strategies.get(strategy).prepared(initial_weights(small_task(local=LOCAL, **changes)))


def is_normalisation(name: str) -> bool:
    """Say so by the network's modules, not by names."""
    network = with_weights(BATCH_TASK, initial_weights(BATCH_TASK))
    return isinstance(network.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d)


class TestFedBN:
    def test_no_array_of_batch_normalisation_is_in_the_global_model_or_leaves(self) -> None:
        weights = start("fedbn", network=BATCH)
        update = local_round(BATCH_TASK, weights, SITES["s0"], strategy="fedbn", seed=1)

        assert update.delta.keys() == weights.keys()
        assert not any(is_normalisation(name) for name in update.delta)
        assert all(is_normalisation(name) for name in update.own)
        assert update.delta.keys() | update.own.keys() == initial_weights(BATCH_TASK).keys()

    def test_the_next_round_goes_on_with_the_site_s_own_statistics(self) -> None:
        weights = start("fedbn", network=BATCH)
        first = local_round(BATCH_TASK, weights, SITES["s0"], strategy="fedbn", seed=1)

        second = local_round(BATCH_TASK, weights, SITES["s0"], strategy="fedbn", own=first.own, seed=2)

        counters = [name for name in first.own if name.endswith("num_batches_tracked")]
        assert [int(first.own[name]) for name in counters] == [4] * len(counters)
        assert [int(second.own[name]) for name in counters] == [8] * len(counters)
        expected = evaluate(BATCH_TASK, {**weights, **first.own}, SITES["s0"])
        assert second.metrics == expected

    def test_a_global_model_that_brings_batch_normalisation_is_refused(self) -> None:
        with pytest.raises(WeightsError, match="without batch normalisation"):
            local_round(BATCH_TASK, initial_weights(BATCH_TASK), SITES["s0"], strategy="fedbn", seed=1)

    def test_a_network_without_batch_normalisation_is_refused(self) -> None:
        with pytest.raises(StrategyError, match="norm: batch"):
            start("fedbn")

    def test_a_site_that_never_trained_has_no_final_model(self) -> None:
        with pytest.raises(StrategyError, match="trained no round"):
            site_rule("fedbn").deployed(BATCH_TASK, start("fedbn", network=BATCH), {}, trained=True)


class TestScaffold:
    def test_the_first_round_is_plain_gradient_descent(self) -> None:
        """With controls of zero the site's control becomes its mean gradient: the update over the steps."""
        update = local_round(TASK, start("scaffold"), SITES["s0"], strategy="scaffold", seed=1)

        for name, control in update.own.items():
            np.testing.assert_allclose(control, -update.delta[name] / (4 * 0.02), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(control, update.delta[CONTROL + name])

    def test_a_site_s_steps_are_corrected_by_the_difference_of_the_controls(self) -> None:
        weights = start("scaffold")
        free = local_round(TASK, weights, SITES["s0"], strategy="scaffold", seed=1)
        controls = {CONTROL + name: array for name, array in free.own.items()}

        same = local_round(
            TASK, {**weights, **controls}, SITES["s0"], strategy="scaffold", own=free.own, seed=1
        )

        for name in free.own:  # where the site is like everybody, nothing is corrected and nothing changes
            np.testing.assert_allclose(same.delta[name], free.delta[name], atol=1e-7)
            np.testing.assert_allclose(same.own[name], free.own[name], rtol=1e-3, atol=1e-5)

    def test_an_update_that_was_scaled_down_counts_as_such_at_the_site_too(self) -> None:
        weights = start("scaffold")
        update = local_round(TASK, weights, SITES["s0"], strategy="scaffold", max_norm=0.01, seed=1)

        assert strategies.update_norm(update.delta) <= 0.01
        for name, control in update.own.items():
            np.testing.assert_array_equal(control, update.delta[CONTROL + name])

    @pytest.mark.parametrize(
        ("rounds", "parameters"),
        [
            ((("s0", "s1", "s2"), ("s0", "s1"), ("s0", "s1")), {}),
            ((("s0", "s1"), ("s1", "s2"), ("s0", "s2")), {"sites": 3}),
        ],
        ids=["one site falls silent", "never all take part"],
    )
    def test_the_coordinator_s_control_stays_the_mean_of_all_sites(
        self, rounds: tuple[tuple[str, ...], ...], parameters: dict[str, float]
    ) -> None:
        weights, state = start("scaffold"), dict[str, Any]()
        own: dict[str, Weights] = {}
        for number, taking_part in enumerate(rounds):
            updates = []
            for site in taking_part:
                one = local_round(
                    TASK, weights, SITES[site], strategy="scaffold", own=own.get(site), seed=number
                )
                own[site] = one.own
                updates.append(strategies.Contribution(site, one.delta, one.samples))
            weights, state = strategies.get("scaffold").aggregate(weights, updates, state, parameters)
        for name in own["s0"]:
            mean = np.mean([own[site][name] for site in SITES], axis=0)
            np.testing.assert_allclose(weights[CONTROL + name], mean, rtol=1e-3, atol=1e-5)

    def test_half_a_site_is_refused(self) -> None:
        with pytest.raises(StrategyError, match="sites: expected a whole number"):
            strategies.get("scaffold").check_parameters({"sites": 2.5})

    def test_a_control_of_another_network_is_refused(self) -> None:
        with pytest.raises(WeightsError, match="control variate"):
            local_round(
                TASK, start("scaffold"), SITES["s0"], strategy="scaffold", own={"w": np.zeros(1)}, seed=1
            )

    def test_the_network_that_is_measured_has_no_controls(self) -> None:
        deployed = site_rule("scaffold").deployed(TASK, start("scaffold"), {}, trained=True)
        assert deployed.keys() == initial_weights(TASK).keys()


class TestDitto:
    def test_the_global_part_is_that_of_fedavg(self) -> None:
        plain = simulate(TASK, SITES, rounds=2, strategy="fedavg", seed=3)
        ditto = simulate(TASK, SITES, rounds=2, strategy="ditto", seed=3)
        assert all(np.array_equal(plain.weights[name], ditto.weights[name]) for name in plain.weights)
        assert plain.final != ditto.final

    def test_a_stronger_pull_holds_the_own_model_nearer_to_the_global_one(self) -> None:
        weights = start("ditto")

        def distance(mu: float) -> float:
            update = local_round(
                TASK,
                weights,
                SITES["s0"],
                strategy="ditto",
                strategy_parameters={"personal_mu": mu},
                own={name: np.asarray(array + np.float32(0.01)) for name, array in weights.items()},
                seed=1,
            )
            return strategies.update_norm({name: update.own[name] - weights[name] for name in weights})

        assert distance(10.0) < 0.9 * distance(0.0)

    def test_the_own_model_is_what_the_site_uses(self) -> None:
        weights = start("ditto")
        update = local_round(TASK, weights, SITES["s0"], strategy="ditto", seed=1)
        deployed = site_rule("ditto").deployed(TASK, weights, update.own, trained=True)
        assert all(np.array_equal(deployed[name], update.own[name]) for name in weights)
        assert site_rule("ditto").deployed(TASK, weights, {}, trained=True).keys() == weights.keys()


@pytest.mark.parametrize("name", ["fedbn", "scaffold", "ditto"])
def test_a_local_round_is_deterministic_and_mutates_nothing(name: str) -> None:
    weights = start(name, network=BATCH)
    first = local_round(BATCH_TASK, weights, SITES["s0"], strategy=name, seed=1)
    before = {key: array.copy() for key, array in (weights | first.own).items()}
    again = local_round(BATCH_TASK, weights, SITES["s0"], strategy=name, seed=1)
    local_round(BATCH_TASK, weights, SITES["s0"], strategy=name, own=first.own, seed=2)
    assert all(np.array_equal(first.delta[key], again.delta[key]) for key in weights)
    assert first.own.keys() == again.own.keys()
    assert all(np.array_equal(first.own[key], again.own[key]) for key in first.own)
    assert all(np.array_equal((weights | first.own)[key], before[key]) for key in before)
    assert all(first.delta[key].dtype == weights[key].dtype for key in weights)


@pytest.mark.parametrize("name", sorted(strategies.STRATEGIES.keys() - ANOMALY_ALONE))
def test_the_final_model_of_every_strategy_is_the_network_s(name: str) -> None:
    initial = initial_weights(BATCH_TASK) if strategies.get(name).needs_initial else None
    result = simulate(BATCH_TASK, SITES, rounds=1, strategy=name, initial=initial, seed=1)
    assert set(result.final) == set(SITES)
    assert all(array.dtype.kind in "fi" for array in result.weights.values())
