"""Attackers among hospitals: one round from a model in training, on real chest radiographs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.preprocessing import PreprocessingSpec
from tests.further import FURTHER
from tests.trainer import attackers
from tests.trainer.attackers import ATTACKS, Scene
from tests.trainer.samples import small_task
from trainer import strategies
from trainer.local_round import use_threads
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from trainer.weights_io import Weights

use_threads(1)
TASK = small_task(
    preprocessing=PreprocessingSpec(rows=28, columns=28),
    local=LocalSpec(batch_size=16, local_steps=10, learning_rate=3e-3, shift_fraction=0.0),
)
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")

every_attack = pytest.mark.parametrize("attack", ATTACKS)


@functools.cache
def training(sites: int, hostile: int) -> Scene:
    return attackers.scene(TASK, sites=sites, attackers=hostile, rounds=4)


@pytest.fixture(scope="module", params=[(5, 1), (7, 2)], ids=["1-of-5", "2-of-7"])
def scene(request: pytest.FixtureRequest) -> Scene:
    sites, hostile = request.param
    return training(sites, hostile)


def off(scene: Scene, weights: Weights) -> float:
    """How far a new model lies from where the honest sites alone would have taken it, in honest steps."""
    honest, _ = strategies.get("fedavg").aggregate(scene.weights, scene.honest, {}, {})
    distance = strategies.update_norm({name: weights[name] - honest[name] for name in honest})
    return distance / strategies.update_norm({name: honest[name] - scene.weights[name] for name in honest})


@every_attack
def test_scores_name_the_attackers_and_nobody_else(scene: Scene, attack: str) -> None:
    scores = strategies.anomaly_scores(scene.updates(attack))
    named = {site for site, score in scores.items() if score > strategies.THRESHOLD}
    assert named == scene.hostile


def test_nobody_is_named_when_nobody_attacks(scene: Scene) -> None:
    assert max(strategies.anomaly_scores(scene.updates(None)).values()) < strategies.THRESHOLD


@every_attack
@pytest.mark.parametrize("name", ROBUST)
def test_one_attacked_round_costs_a_robust_strategy_little(scene: Scene, name: str, attack: str) -> None:
    weights = scene.after(name, scene.updates(attack))
    assert scene.auc(weights) > scene.auc(scene.after("fedavg", list(scene.honest))) - 0.05


@every_attack
def test_multi_krum_averages_the_honest_sites_alone(scene: Scene, attack: str) -> None:
    assert off(scene, scene.after("multi-krum", scene.updates(attack))) < 1e-6


@every_attack
def test_krum_takes_the_update_of_an_honest_site(scene: Scene, attack: str) -> None:
    weights = scene.after("krum", scene.updates(attack))
    moved = [scene.after("fedavg", [one]) for one in scene.honest]
    assert any(all(np.array_equal(weights[name], one[name]) for name in one) for one in moved)


@pytest.mark.parametrize("attack", ["scaled", "backdoor"])
@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_boosted_updates_lead_astray_the_mean_alone(scene: Scene, name: str, attack: str) -> None:
    updates = scene.updates(attack)
    assert off(scene, scene.after(name, updates)) < 0.65
    assert off(scene, scene.after("fedavg", updates)) > 1.0


def test_more_rounds_of_scaled_attacks_ruin_the_mean_alone() -> None:
    five = training(5, 1)
    assert five.auc(five.go_on("fedavg", "scaled", 3)) < 0.8
    for name in ("median", "multi-krum"):
        assert five.auc(five.go_on(name, "scaled", 3)) > 0.9


@FURTHER
def test_a_backdoor_opens_in_the_mean_alone() -> None:
    # Six rounds of two scenes: processors round differently, and in three of one that was all the margin.
    scenes = [training(5, 1), attackers.scene(TASK, sites=5, attackers=1, rounds=4, seed=1)]
    lost = {
        name: sum(scene.lost_to_mark(scene.go_on(name, "backdoor", 6)) for scene in scenes)
        for name in ("fedavg", "median", "multi-krum")
    }
    assert max(lost["median"], lost["multi-krum"]) < lost["fedavg"] / 3
