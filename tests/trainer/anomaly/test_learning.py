"""Anomaly tasks in training, evaluation and simulation, and FedDis, which shares shape alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.further import FURTHER
from tests.trainer.healthy import healthy_dataset, healthy_task
from tests.trainer.samples import small_task
from trainer import strategies
from trainer.anomaly import APPEARANCE
from trainer.anomaly.measures import AnomalyMetrics
from trainer.baselines import train_local
from trainer.engine import simulator
from trainer.errors import StrategyError, WeightsError
from trainer.first_model import ANOMALY_ALONE, WRAPPING, first_model
from trainer.local_round import evaluate, local_round, predict, use_threads
from trainer.networks import initial_weights
from trainer.privacy.promise import Promise
from trainer.simulation import simulate
from trainer.site_rules import site_rule
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from trainer.datasets import Dataset
    from trainer.weights_io import Weights

use_threads(1)
TASK = healthy_task()
SITE = healthy_dataset(0, TASK)
SITES = {f"s{number}": healthy_dataset(number, TASK, gain=1 - 0.6 * number) for number in range(3)}
SHARED = strategies.get("feddis").prepared(initial_weights(TASK))


def shared_round(weights: Weights | None = None, own: Weights | None = None, **options: Any) -> Any:
    given = SHARED if weights is None else weights
    return local_round(TASK, given, SITE, strategy="feddis", own=own, **{"seed": 1, **options})


def measured(weights: Weights, dataset: Dataset = SITE) -> AnomalyMetrics:
    found = evaluate(TASK, weights, dataset)
    assert isinstance(found, AnomalyMetrics)
    return found


def test_training_on_healthy_pictures_finds_anomalies() -> None:
    task = replace(TASK, local=replace(TASK.local, batch_size=16, local_steps=50, learning_rate=1e-2))
    before = measured(initial_weights(TASK))
    after = measured(train_local(task, SITE, rounds=4, seed=0))
    assert (after.samples, after.anomalous) == (16, 8)
    assert after.healthy_error is not None
    assert before.healthy_error is not None
    assert after.healthy_error < 0.6 * before.healthy_error
    assert after.average_precision is not None
    assert before.average_precision is not None
    assert after.average_precision.estimate > before.average_precision.estimate + 0.2
    assert after.headline is not None
    assert after.headline.low <= after.headline.estimate <= after.headline.high


def test_masks_have_no_part_in_training() -> None:
    marked = replace(SITE, train=replace(SITE.train, y=np.ones_like(SITE.train.y)))
    plain, other = (local_round(TASK, initial_weights(TASK), one, seed=1).delta for one in (SITE, marked))
    assert all(np.array_equal(plain[name], other[name]) for name in plain)


def test_a_prediction_is_the_residual_of_every_pixel() -> None:
    found = predict(TASK, initial_weights(TASK), SITE.validation.x)
    assert found.shape == SITE.validation.y.shape
    assert found.dtype.name == "float32"
    assert float(found.min()) >= 0


def test_no_array_of_the_appearance_encoder_is_in_the_global_model_or_leaves() -> None:
    update = shared_round()
    assert update.delta.keys() == SHARED.keys()
    assert not any(name.startswith(APPEARANCE) for name in update.delta)
    assert {name.partition(".")[0] for name in update.delta} == {"shape", "decoder"}
    assert all(name.startswith(APPEARANCE) for name in update.own)
    assert update.delta.keys() | update.own.keys() == initial_weights(TASK).keys()
    initial = initial_weights(TASK)
    assert all(np.any(update.delta[name]) for name in update.delta)
    assert any(not np.array_equal(update.own[name], initial[name]) for name in update.own)


def test_the_next_round_goes_on_with_the_site_s_own_appearance() -> None:
    first = shared_round()
    second, without = shared_round(own=first.own, seed=2), shared_round(seed=2)
    assert second.metrics == measured({**SHARED, **first.own})
    assert second.metrics != without.metrics
    deployed = site_rule("feddis").deployed(TASK, SHARED, first.own, trained=True)
    assert all(np.array_equal(deployed[name], first.own[name]) for name in first.own)


def test_a_global_model_that_brings_an_appearance_is_refused() -> None:
    with pytest.raises(WeightsError, match="without appearance encoder"):
        shared_round(initial_weights(TASK))


def test_a_site_that_never_trained_has_no_final_model() -> None:
    with pytest.raises(StrategyError, match="trained no round"):
        site_rule("feddis").deployed(TASK, SHARED, {}, trained=True)


def test_a_network_without_an_appearance_encoder_is_refused() -> None:
    with pytest.raises(StrategyError, match="split-autoencoder"):
        first_model(small_task(), "feddis", 0)


def test_the_same_seed_gives_the_same_update_and_nothing_is_mutated() -> None:
    first = shared_round()
    before = {name: array.copy() for name, array in (SHARED | first.own).items()}
    again = shared_round()
    shared_round(own=first.own, seed=2)
    assert all(np.array_equal(first.delta[name], again.delta[name]) for name in SHARED)
    assert all(np.array_equal(first.own[name], again.own[name]) for name in first.own)
    assert all(np.array_equal((SHARED | first.own)[name], before[name]) for name in before)


def fits(name: str) -> bool:
    return name not in WRAPPING | {"fedbn", "svt"}


@pytest.mark.parametrize("strategy", [name for name in strategies.STRATEGIES if fits(name)])
def test_strategies_run_on_healthy_pictures_and_sites_are_measured(strategy: str) -> None:
    task = replace(TASK, local=replace(TASK.local, local_steps=1))
    earlier = initial_weights(task, 9) if strategies.get(strategy).needs_initial else None
    result = simulate(task, SITES, rounds=1, strategy=strategy, initial=earlier, seed=4)
    assert all(isinstance(metrics, AnomalyMetrics) for metrics in result.final.values())
    assert frozenset({"feddis"}) == ANOMALY_ALONE


@pytest.mark.parametrize("strategy", sorted(WRAPPING))
def test_strategies_that_wrap_the_network_are_refused(strategy: str) -> None:
    with pytest.raises(StrategyError, match="anomaly"):
        first_model(TASK, strategy, 0)
    prepared = strategies.get(strategy).prepared(initial_weights(TASK))
    with pytest.raises(WeightsError, match="stands alone"):  # a coordinator that sends it all the same
        local_round(TASK, prepared, SITE, strategy=strategy, seed=1)


def test_feddis_goes_with_noise_on_the_update_but_not_with_dp_sgd() -> None:
    noised = shared_round(privacy=Promise("update-gaussian", 1.0, 4.0, epsilon=50.0, delta=1e-5))
    assert noised.delta.keys() == SHARED.keys()
    promise = Promise("dp-sgd", 1.0, 1.0, epsilon=100.0, delta=1e-5, sampling_rate=0.5)
    with pytest.raises(Exception, match="does not go with feddis"):
        shared_round(privacy=promise)
    update = local_round(TASK, initial_weights(TASK), SITE, seed=1, privacy=promise)
    assert np.isfinite(update.norm)


@pytest.mark.slow
@pytest.mark.e2e
@FURTHER
def test_the_engine_s_simulator_comes_to_the_same_model_as_the_loop() -> None:
    task = replace(TASK, local=LocalSpec(batch_size=8, local_steps=2))
    here = simulate(task, SITES, rounds=2, seed=1, strategy="feddis")
    there = simulator.simulate_on_engine(task, SITES, rounds=2, seed=1, strategy="feddis", time_limit_s=240)
    assert all(np.array_equal(here.weights[name], there.weights[name]) for name in here.weights)
    assert there.final == here.final
    assert not any(name.startswith(APPEARANCE) for name in there.weights)
