"""The benchmark's attacks on updates find what is there where nothing protects it, and not where it does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.benchmarks import attacks, crafted, inversion, shadows, victims
from tests.benchmarks.bench_privacy import TASK
from tests.trainer.federation.plans import make_plan
from trainer.datasets import Dataset, Samples
from trainer.errors import UnfitModelError
from trainer.first_model import check_reachable, first_model, reach
from trainer.local_round import use_threads
from trainer.networks import initial_weights, with_weights

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 28
use_threads(1)


def blobs(seed: int, count: int) -> Samples:
    """Draw pictures of a few bright and dark spots, no two alike; labels by chance."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    x = np.zeros((count, 1, SIZE, SIZE), dtype=np.float32)
    for one in x:
        for _ in range(4):
            y0, x0, width = *generator.uniform(4, 24, 2), generator.uniform(2, 6)
            spot = np.exp(-((rows - y0) ** 2 + (columns - x0) ** 2) / (2 * width**2))
            one[0] += spot * generator.choice([-1.5, 1.5])
    return Samples(x, generator.integers(0, 2, count).astype(np.uint8))


def mean_picture(pictures: NDArray[np.float32]) -> NDArray[Any]:
    return np.asarray(pictures.mean(0, keepdims=True))


def read(way: str, strength: crafted.Strength = crafted.FAR) -> tuple[float, float]:
    """Return what crafted weights get out of a batch, and what the mean picture is: SSIM to the nearest."""
    cases, public = blobs(1, 8), blobs(2, 200).x
    rounds = crafted.crafted_weights(victims.task_of(len(cases)), public, 1, strength)
    picture, _ = victims.fished(rounds, cases, way, 0, crafted.Prior.of(public))
    found = [
        max(inversion.likeness(guess, one[None])[1] for one in cases.x)
        for guess in (picture, mean_picture(public))
    ]
    return found[0], found[1]


@pytest.mark.parametrize(
    ("way", "strength"), [("none", crafted.FAR), ("none", crafted.NEAR), ("int8", crafted.FAR)]
)
def test_crafted_weights_show_one_picture_of_a_batch(way: str, strength: crafted.Strength) -> None:
    found, guessed = read(way, strength)

    assert found > 0.9
    assert guessed < 0.5


@pytest.mark.parametrize("way", ["dp-sgd, noise 1.5", "update-gaussian, noise 0.05"])
def test_noise_hides_it_from_crafted_weights(way: str) -> None:
    found, _ = read(way)

    assert found < 0.6


def test_an_update_in_which_nothing_came_through_is_known_for_one() -> None:
    task, cases, public = victims.task_of(8), blobs(1, 8), blobs(2, 200).x
    shut = crafted.crafted_weights(task, public, seed=1)[0]
    shut = {**shut, "layer4.0.downsample.1.bias": shut["layer4.0.downsample.1.bias"] * 2}

    assert not crafted.something_came(task, shut, victims.update_of(task, shut, cases, "none", 0))


def test_crafted_weights_fit_the_network_but_a_site_refuses_them_for_its_first_round() -> None:
    """Later ones within what sites say they moved would pass: noise alone protects from them."""
    task = victims.task_of(8)
    near, far = (
        crafted.crafted_weights(task, blobs(2, 50).x, 1, strength)[0]
        for strength in (crafted.NEAR, crafted.FAR)
    )
    plan = make_plan(task=task)

    first = first_model(plan.task, plan.strategy.name, plan.seed)
    with_weights(task, near)
    for weights, norms in ((near, []), (far, []), (far, [[100.0]]), (near, [[5.0, 8.0]])):
        with pytest.raises(UnfitModelError, match="seed"):
            check_reachable(weights, first, reach(plan, norms, 0, first))
    check_reachable(near, first, reach(plan, [[5.0, 100.0]], 0, first))


def test_an_attacker_learns_the_way_from_an_update_to_its_picture() -> None:
    """Without crafted weights, of one case; a step that is noisy shows less."""
    task, victim = victims.task_of(1), blobs(1, 4)
    weights = initial_weights(task, 1)
    learnt = inversion.Learnt(task, weights, blobs(2, 300).x)

    def seen(way: str) -> float:
        found = []
        for i in range(4):
            one = victims.part_of(victim, i, 1)
            update = victims.update_of(task, weights, one, way, i)
            found.append(inversion.likeness(learnt.guesses(update, 1.0, one.y.tolist()), one.x)[1])
        return float(np.mean(found))

    guessed = float(np.mean([inversion.likeness(learnt.mean, one[None])[1] for one in victim.x]))
    assert seen("none") > guessed + 0.15
    assert seen("dp-sgd, noise 1.5") < seen("none") - 0.1


def test_a_plain_step_reveals_its_gradient() -> None:
    task, cases = victims.task_of(1), blobs(1, 1)
    weights = initial_weights(task, 1)

    update = victims.update_of(task, weights, cases, "none", 0)
    gradient = inversion.revealed(task, weights, update)

    flat = np.concatenate([one.ravel() for one in gradient.values()])
    sign = 1.0 if cases.y[0] == 0 else -1.0
    way = inversion.directions(task, weights, cases.x)[0].numpy()
    assert sign * float(flat @ way) / float(np.linalg.norm(flat)) == pytest.approx(1.0, abs=1e-3)


def test_whoever_sees_every_round_finds_members_of_an_overfitted_model() -> None:
    task = replace(TASK, local=replace(TASK.local, local_steps=12, batch_size=8))
    everybody, sites, member = {}, {}, []
    for number in range(2):
        cases = blobs(10 + number, 32)
        everybody[f"s{number}"] = cases
        people = tuple(f"{number}-{i}" for i in range(16))
        sites[f"s{number}"] = Dataset(
            Samples(cases.x[:16], cases.y[:16], people), Samples(cases.x[16:], cases.y[16:])
        )
        member += [True] * 16 + [False] * 16

    seen, _ = shadows.watched(task, everybody, sites, 3, 0, None)

    found = {view: attacks.area(scores, np.array(member)) for view, scores in seen.items()}
    assert found[shadows.COSINE] > 0.8
    assert found[shadows.RISE] > 0.8
    assert found[shadows.FINAL] > 0.6


def test_a_step_along_a_case_s_own_gradient_is_aligned_with_it() -> None:
    slopes = np.eye(3, dtype=np.float32)

    found = attacks.alignment(slopes, {"b": np.array([2.0]), "a": np.array([-3.0, 0.0])}, ["a", "b"])

    assert found == pytest.approx(np.array([3.0, 0.0, -2.0]) / np.sqrt(13))


def test_pictures_are_drawn_true_above_found(tmp_path: Path) -> None:
    from PIL import Image  # noqa: PLC0415

    from tests.benchmarks.bench_privacy import draw  # noqa: PLC0415

    one = {"true": np.eye(SIZE), "guess": np.zeros((SIZE, SIZE))}
    draw({"none": [one, one], "dp": [one, one]}, tmp_path / "found.png")

    assert Image.open(tmp_path / "found.png").size == (2 * SIZE * 4, 4 * SIZE * 4)
