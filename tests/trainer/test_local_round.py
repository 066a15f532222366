from __future__ import annotations

import time

import numpy as np
import pytest

from inference.preprocessing import PreprocessingSpec
from tests.trainer.samples import drawn, drawn_dataset, real_sites, small_task
from trainer.baselines import cross_evaluate, mean_auc, train_local, train_pooled
from trainer.datasets import Dataset, Samples
from trainer.errors import DatasetError, StrategyError, WeightsError
from trainer.local_round import evaluate, local_round, predict, use_threads
from trainer.networks import initial_weights
from trainer.objectives import class_weight
from trainer.optimisation import augment, seed_of
from trainer.simulation import round_seed, simulate
from trainer.strategies import check_update, update_norm
from trainer.task import LocalSpec, NetworkSpec

use_threads(1)
TASK = small_task()


def test_a_local_round_is_deterministic_by_seed_and_its_update_fits_the_model() -> None:
    weights, dataset = initial_weights(TASK), drawn_dataset(1, TASK)
    one = local_round(TASK, weights, dataset, seed=5)
    two = local_round(TASK, weights, dataset, seed=5)
    other = local_round(TASK, weights, dataset, seed=6)
    check_update(weights, one.delta)
    assert all(np.array_equal(one.delta[name], two.delta[name]) for name in weights)
    assert any(not np.array_equal(one.delta[name], other.delta[name]) for name in weights)
    assert one.samples == 24
    assert one.train_seconds > 0


def test_an_update_above_the_plans_norm_is_scaled_down_to_it() -> None:
    weights, dataset = initial_weights(TASK), drawn_dataset(1, TASK)
    free = local_round(TASK, weights, dataset, seed=5)
    bound = free.norm / 3

    held = local_round(TASK, weights, dataset, max_norm=bound, seed=5)

    assert held.norm == free.norm == update_norm(free.delta)
    check_update(weights, held.delta, max_norm=bound)
    assert update_norm(held.delta) == pytest.approx(bound, rel=1e-4)
    for name in weights:
        np.testing.assert_allclose(held.delta[name], free.delta[name] / 3, rtol=1e-3, atol=1e-7)


def test_a_local_round_does_not_change_the_global_model() -> None:
    weights = initial_weights(TASK)
    before = {name: array.copy() for name, array in weights.items()}
    local_round(TASK, weights, drawn_dataset(1, TASK), seed=0)
    assert all(np.array_equal(weights[name], before[name]) for name in weights)


def test_the_metrics_are_those_of_the_incoming_model() -> None:
    weights, dataset = initial_weights(TASK), drawn_dataset(1, TASK)
    update = local_round(TASK, weights, dataset, seed=0)
    assert update.metrics == evaluate(TASK, weights, dataset)
    assert update.metrics == evaluate(TASK, weights, dataset.validation)


def test_the_proximal_term_holds_the_update_near_the_global_model() -> None:
    task = small_task(local=LocalSpec(optimizer="sgd", learning_rate=0.01, batch_size=8, local_steps=20))
    weights, dataset = initial_weights(task), drawn_dataset(1, task)

    def norm(strategy: str, mu: float | None) -> float:
        parameters = None if mu is None else {"mu": mu}
        update = local_round(
            task, weights, dataset, strategy=strategy, strategy_parameters=parameters, seed=0
        )
        return update_norm(update.delta)

    free = norm("fedavg", None)
    assert norm("fedprox", 0.0) == free
    assert norm("fedprox", 1.0) < 0.9 * free
    assert norm("fedprox", 5.0) < 0.9 * norm("fedprox", 1.0)


def test_progress_is_told_of_every_step_and_may_stop_the_round() -> None:
    steps: list[tuple[str, int, int]] = []
    local_round(
        TASK, initial_weights(TASK), drawn_dataset(1, TASK), seed=0, progress=lambda *step: steps.append(step)
    )
    assert steps == [("evaluate", 16, 16), *(("train", step, 8) for step in range(1, 9))]

    class Stopped(Exception):  # noqa: N818 - as a lost lease would be
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        local_round(TASK, initial_weights(TASK), drawn_dataset(1, TASK), seed=0, progress=stop)


def test_without_a_training_case_or_with_another_model_a_round_is_refused() -> None:
    empty = Samples(np.zeros((0, 1, 32, 32), np.float32), np.zeros(0, np.uint8))
    with pytest.raises(DatasetError):
        local_round(TASK, initial_weights(TASK), Dataset(empty, drawn(1, 4, TASK)), seed=0)
    with pytest.raises(WeightsError):
        local_round(TASK, {"w": np.zeros(1)}, drawn_dataset(1, TASK), seed=0)


def test_a_site_without_validation_cases_or_with_one_class_still_trains() -> None:
    samples = drawn(1, 12, TASK)
    negative = Samples(samples.x[samples.y == 0], samples.y[samples.y == 0])
    empty = Samples(samples.x[:0], samples.y[:0])
    update = local_round(TASK, initial_weights(TASK), Dataset(negative, empty), seed=0)
    assert update.samples == 6
    assert update.metrics.auc is None


def test_rare_classes_weigh_more_within_bounds() -> None:
    def weight(positives: int, negatives: int) -> float:
        y = np.array([1] * positives + [0] * negatives, dtype=np.uint8)
        return class_weight(Samples(np.zeros((y.size, 1, 1, 1), np.float32), y))

    assert weight(10, 30) == 3.0
    assert weight(30, 10) == pytest.approx(1 / 3)
    assert weight(1, 1000) == 20.0
    assert weight(0, 10) == weight(10, 0) == 1.0


def test_augmentation_shifts_and_scales_copies_within_its_bounds() -> None:
    x = np.ones((5, 1, 20, 20), np.float32)
    x[:, :, 10, 10] = 3.0
    spec = LocalSpec(shift_fraction=0.1, gain_fraction=0.2)
    moved = augment(x, spec, np.random.default_rng(0))
    assert np.all(x[:, :, 10, 10] == 3.0)
    assert moved.shape == x.shape
    assert moved.dtype == np.float32
    for image in moved[:, 0]:
        row, column = np.unravel_index(int(image.argmax()), image.shape)
        assert abs(row - 10) <= 2
        assert abs(column - 10) <= 2
        assert 0.8 <= image.min() <= 1.2
    still = LocalSpec(shift_fraction=0.0, gain_fraction=0.0)
    assert np.array_equal(augment(x, still, np.random.default_rng(0)), x)


def test_a_small_set_is_learnt_and_a_federation_generalises() -> None:
    task = small_task(local=LocalSpec(batch_size=16, local_steps=15, learning_rate=3e-3))
    datasets = {f"s{i}": drawn_dataset(i, task, train=32, validation=24, noise=60.0) for i in range(3)}
    result = simulate(task, datasets, rounds=4, seed=1)
    assert [record.number for record in result.rounds] == [1, 2, 3, 4]
    area = mean_auc(result.final)
    assert area is not None
    assert area > 0.9
    first = result.rounds[0].sites["s0"]
    assert first.samples == 32
    assert first.update_bytes > 1000
    again = simulate(task, dict(reversed(datasets.items())), rounds=4, seed=1)
    assert all(np.array_equal(result.weights[name], again.weights[name]) for name in result.weights)


def test_baselines_have_the_same_budget_and_are_compared_on_every_site() -> None:
    datasets = {f"s{i}": drawn_dataset(i, TASK) for i in range(2)}
    steps: list[int] = []
    alone = train_local(
        TASK, datasets["s0"], rounds=3, seed=0, progress=lambda _s, _d, total: steps.append(total)
    )
    assert (len(steps), steps[-1]) == (24, 24)
    steps.clear()
    pooled = train_pooled(
        TASK, datasets, rounds=3, seed=0, progress=lambda _s, _d, total: steps.append(total)
    )
    assert (len(steps), steps[-1]) == (48, 48)
    table = cross_evaluate(TASK, {"alone": alone, "pooled": pooled}, datasets)
    assert {model: set(row) for model, row in table.items()} == {
        "alone": {"s0", "s1"},
        "pooled": {"s0", "s1"},
    }
    assert table["alone"]["s1"] == evaluate(TASK, alone, datasets["s1"])
    found = table["alone"]["s1"].auc
    assert found is not None
    assert mean_auc(table["alone"], leave_out="s0") == found.estimate
    assert mean_auc({}) is None


def test_a_simulation_without_rounds_or_with_a_wrong_strategy_is_refused() -> None:
    datasets = {"s0": drawn_dataset(0, TASK)}
    with pytest.raises(StrategyError):
        simulate(TASK, datasets, rounds=0)
    with pytest.raises(StrategyError):
        simulate(TASK, {}, rounds=1)
    with pytest.raises(StrategyError):
        simulate(TASK, datasets, rounds=1, strategy="fedprox", parameters={"mu": -1})


def test_seeds_depend_on_every_part() -> None:
    seeds = {round_seed(s, site, n) for s in (0, 1) for site in ("a", "b") for n in (1, 2)}
    assert len(seeds) == 8
    assert seed_of("a", "b") != seed_of("ab")


def test_predictions_are_probabilities_of_the_right_shape() -> None:
    found = predict(TASK, initial_weights(TASK), drawn(1, 70, TASK).x)
    assert found.shape == (70,)
    assert np.all((found >= 0) & (found <= 1))


@pytest.mark.real_data
def test_a_federation_learns_pneumonia_on_real_radiographs_above_chance() -> None:
    task = small_task(
        name="pneumonia",
        preprocessing=PreprocessingSpec(rows=64, columns=64),
        network=NetworkSpec(),
        local=LocalSpec(local_steps=12),
    )
    sites = real_sites(task)
    started = time.process_time()
    result = simulate(task, sites, rounds=6, strategy="fedprox", seed=2)
    seconds = time.process_time() - started
    areas = {site: metrics.auc for site, metrics in result.final.items()}
    assert all(area is not None and area.low > 0.5 for area in areas.values()), areas
    assert areas["guangzhou"] is not None
    assert areas["guangzhou"].estimate > 0.85
    assert seconds < 60
