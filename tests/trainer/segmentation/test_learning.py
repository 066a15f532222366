"""A segmentation through networks, local rounds, strategies and the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from inference.preprocessing import PreprocessingSpec
from tests.further import FURTHER, cases
from tests.trainer import masked
from trainer.baselines import train_local
from trainer.engine import simulator
from trainer.errors import StrategyError, TaskError
from trainer.first_model import ANOMALY_ALONE
from trainer.local_round import evaluate, local_round, predict, use_threads
from trainer.networks import Form, build, head_names, initial_weights
from trainer.objectives import Masks
from trainer.optimisation import augment_both
from trainer.privacy.promise import Promise
from trainer.segmentation.dice import SegmentationMetrics
from trainer.segmentation.spec import Category
from trainer.simulation import simulate
from trainer.strategies import STRATEGIES
from trainer.task import CLASSIFICATION, SEGMENTATION, LocalSpec, NetworkSpec, TaskSpec

use_threads(1)
VOLUMES, PICTURES = masked.small_masks_task(), masked.pictures_task()
ONE = {"code": "1", "scheme": "SCT", "meaning": "x"}
BATCH = NetworkSpec("unet", {"features": [4, 8], "groups": 2, "norm": "batch"})


def sites(task: TaskSpec, count: int = 2) -> dict[str, Any]:
    return {f"s{number}": masked.drawn_masks_dataset(number, task) for number in range(count)}


@pytest.mark.parametrize("task", [VOLUMES, PICTURES], ids=["volumes", "pictures"])
def test_a_task_survives_json_and_says_what_it_is(task: TaskSpec) -> None:
    content = task.to_json()
    assert content["kind"] == SEGMENTATION
    assert "finding" not in content
    assert TaskSpec.from_json(content) == task
    assert TaskSpec.from_json(content).sha256 == task.sha256


def test_a_category_survives_json_and_one_without_is_left_out() -> None:
    plain, spec = VOLUMES.to_json(), VOLUMES.segmentation
    assert spec is not None
    assert set(plain["segmentation"]["segments"][0]) == {"code", "scheme", "meaning"}
    altered = Category("49755003", "SCT", "Morphologically Abnormal Structure")
    changed = replace(
        VOLUMES, segmentation=replace(spec, segments=(replace(spec.segments[0], category=altered),))
    )
    assert TaskSpec.from_json(changed.to_json()) == changed
    assert changed.sha256 != VOLUMES.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "detection"}, "kind: expected"),
        ({"kind": CLASSIFICATION}, "segmentation: expected none"),
        ({"finding": {"code": "1", "scheme": "SCT", "meaning": "x"}}, "finding: expected none"),
        ({"segmentation": []}, "segmentation: expected an object"),
        ({"preprocessing": {"rows": 2048, "columns": 2048}}, "size: expected at most"),
        ({"modalities": ["MR", "SEG"]}, "without SEG"),
        (
            {"preprocessing": {"rows": 24, "columns": 16, "intensity": "voi"}},
            "intensity: expected percentile",
        ),
    ],
)
def test_a_wrong_task_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        TaskSpec.from_json({**VOLUMES.to_json(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dimensions": 4}, "expected 2 or 3"),
        ({"spatial_dimensions": 2}, "slices: expected"),
        ({"segments": []}, "segments: expected"),
        ({"segments": [{"code": "1", "scheme": "SCT", "meaning": "x"}] * 2}, "each code once"),
        ({"segments": [{"code": "", "scheme": "SCT", "meaning": "x"}]}, "expected code and scheme"),
        ({"segments": [{"code": "1"}]}, "of another type"),
        ({"segments": [{"code": "1", "scheme": "SCT", "meaning": " "}]}, "expected code and scheme"),
        ({"segments": [{**ONE, "category": {"code": "1"}}]}, "of another type"),
        ({"segments": [{**ONE, "category": {**ONE, "code": "1" * 17}}]}, "of a category"),
        ({"slices": 4}, "slices: expected 8"),
        ({"spacing_mm": [1, 1]}, "expected three numbers"),
        ({"spacing_mm": [1, 1, float("nan")]}, "expected three numbers"),
        ({"spacing_mm": 1}, "expected a list"),
        ({"more": 1}, "of another type"),
    ],
)
def test_a_wrong_segmentation_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    content = VOLUMES.to_json()
    with pytest.raises(TaskError, match=message):
        TaskSpec.from_json({**content, "segmentation": {**content["segmentation"], **change}})


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("task", [VOLUMES, PICTURES], ids=["volumes", "pictures"])
def test_a_u_net_gives_logits_of_every_voxel_and_normalises_as_told(task: TaskSpec, norm: str) -> None:
    spec = NetworkSpec("unet", {"features": [4, 8], "groups": 2, "norm": norm})
    network = build(spec, Form.of(task)).eval()
    assert network(torch.zeros((3, 1, *task.size))).shape == (3, 3, *task.size)
    kinds = {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds == ({"GroupNorm"} if norm == "group" else {f"BatchNorm{len(task.size)}d"})


@pytest.mark.parametrize(
    ("task", "network"),
    [
        (VOLUMES, NetworkSpec("resnet")),
        (VOLUMES, NetworkSpec("unet", {"features": [4, 8], "groups": 3})),
        (VOLUMES, NetworkSpec("unet", {"features": [4]})),
        (VOLUMES, NetworkSpec("unet", {"features": [4, 8, 8, 8, 8]})),
        (VOLUMES, NetworkSpec("unet", {"blocks": [1]})),
    ],
    ids=["of labels", "groups", "one level", "too many levels", "unknown parameter"],
)
def test_a_network_that_does_not_fit_the_task_is_refused(task: TaskSpec, network: NetworkSpec) -> None:
    with pytest.raises(TaskError, match="network"):
        initial_weights(replace(task, network=network))
    with pytest.raises(TaskError, match="expected one of densenet, linear, resnet"):
        build(NetworkSpec("unet"))


def test_masks_are_shifted_with_their_pictures() -> None:
    samples = masked.drawn_masks(0, 4, VOLUMES)
    spec = LocalSpec(shift_fraction=0.2, gain_fraction=0.0)
    x, y = augment_both(samples.y[:, None].astype(np.float32), samples.y, spec, np.random.default_rng(0))
    assert np.array_equal(x[:, 0], y)
    assert not np.array_equal(y, samples.y)


@pytest.mark.parametrize("task", [VOLUMES, PICTURES], ids=["volumes", "pictures"])
def test_training_finds_the_structures(task: TaskSpec) -> None:
    local = LocalSpec(batch_size=4, local_steps=25, learning_rate=2e-2)
    task = replace(task, local=local)
    dataset = masked.drawn_masks_dataset(0, task, train=12, validation=6)
    before = evaluate(task, initial_weights(task), dataset)
    after = evaluate(task, train_local(task, dataset, rounds=3, seed=0), dataset)
    assert isinstance(before, SegmentationMetrics)
    assert isinstance(after, SegmentationMetrics)
    assert after.headline is not None
    assert before.headline is not None
    assert after.headline.estimate > max(0.7, before.headline.estimate + 0.3)
    assert after.headline.low <= after.headline.estimate <= after.headline.high
    assert (after.samples, after.subjects) == (6, 6)
    assert set(after.segments) == {"HIP-ANT", "HIP-POST"}


def test_predictions_are_classes_in_the_input_s_size() -> None:
    found = predict(VOLUMES, initial_weights(VOLUMES), masked.drawn_masks(0, 3, VOLUMES).x)
    assert found.shape == (3, *VOLUMES.size)
    assert found.dtype == np.uint8


PROMISES = {"svt": Promise("svt", 0.01, 0.05, 1e3, 1e-3, share=0.1)}
LEARNT = sorted(STRATEGIES.keys() - ANOMALY_ALONE)
# Every strategy on pictures; on volumes one that keeps nothing, one with a state, one that leaves layers out.
ON_VOLUMES = ("fedavg", "scaffold", "fedbn")
IN_SHORT = [*(f"{name}-pictures" for name in LEARNT), *(f"{name}-volumes" for name in ON_VOLUMES)]


@pytest.mark.parametrize(
    "case", cases([f"{name}-{kind}" for name in LEARNT for kind in ("volumes", "pictures")], IN_SHORT)
)
def test_every_strategy_runs_on_masks_and_the_same_seed_gives_the_same_model(case: str) -> None:
    strategy, _, kind = case.rpartition("-")
    task = VOLUMES if kind == "volumes" else PICTURES
    task = replace(task, local=replace(task.local, local_steps=2))
    task = replace(task, network=BATCH) if strategy == "fedbn" else task
    datasets = sites(task)
    earlier = initial_weights(task, 9) if STRATEGIES[strategy].needs_initial else None
    options: dict[str, Any] = {"strategy": strategy, "initial": earlier, "privacy": PROMISES.get(strategy)}
    first, again = (simulate(task, datasets, rounds=2, seed=4, **options) for _ in range(2))
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert first.final == again.final
    assert all(isinstance(metrics, SegmentationMetrics) for metrics in first.final.values())
    other = simulate(task, datasets, rounds=2, seed=5, **options)
    assert any(not np.array_equal(first.weights[name], other.weights[name]) for name in first.weights)


def test_transfer_trains_the_last_layer_of_a_u_net_first() -> None:
    dataset = masked.drawn_masks_dataset(0, VOLUMES)
    start = initial_weights(VOLUMES)
    update = local_round(VOLUMES, start, dataset, strategy="transfer", number=1, seed=1)
    moved = {name for name, array in update.delta.items() if np.any(array)}
    assert moved == head_names(VOLUMES)


def test_masks_train_under_differential_privacy() -> None:
    promise = Promise("dp-sgd", 1.0, 1.0, epsilon=100.0, delta=1e-5, sampling_rate=0.5)
    dataset = masked.drawn_masks_dataset(0, VOLUMES)
    update = local_round(VOLUMES, initial_weights(VOLUMES), dataset, seed=1, privacy=promise)
    assert np.isfinite(update.norm)
    with pytest.raises(StrategyError):
        simulate(VOLUMES, {}, rounds=1)


def test_losses_of_cases_do_not_depend_on_their_neighbours() -> None:
    samples = masked.drawn_masks(0, 4, VOLUMES)
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, *VOLUMES.size)))
    whole = Masks().losses(outputs, samples.y)
    single = [Masks().losses(outputs[i : i + 1], samples.y[i : i + 1]) for i in range(4)]
    assert torch.allclose(whole, torch.cat(single))


@pytest.mark.slow
@pytest.mark.e2e
@FURTHER
def test_the_engine_s_simulator_comes_to_the_same_model_as_the_loop() -> None:
    datasets = sites(VOLUMES, 3)
    here = simulate(VOLUMES, datasets, rounds=2, seed=1)
    there = simulator.simulate_on_engine(VOLUMES, datasets, rounds=2, seed=1, time_limit_s=240)
    assert all(np.array_equal(here.weights[name], there.weights[name]) for name in here.weights)
    assert there.final == here.final
    for record, same in zip(there.rounds, here.rounds, strict=True):
        assert {site: one.metrics for site, one in record.sites.items()} == {
            site: one.metrics for site, one in same.sites.items()
        }


def test_a_classification_task_is_written_as_it_always_was() -> None:
    from tests.trainer.samples import small_task  # noqa: PLC0415

    content = small_task(preprocessing=PreprocessingSpec(rows=32, columns=32)).to_json()
    assert set(content) == {
        "name", "label", "validation_fraction", "seed", "threshold", "modalities", "preprocessing", "finding",
        "network", "local",
    }  # fmt: skip
    assert TaskSpec.from_json({**content, "kind": CLASSIFICATION}).to_json() == content
