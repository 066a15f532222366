"""Updates of one step on some chest X-rays, protected or not, and what two attackers make of them.

One sees updates and keeps to the protocol: it learnt the way back from another hospital's pictures
(:mod:`tests.benchmarks.inversion`). The other sends crafted weights (:mod:`tests.benchmarks.crafted`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.preprocessing import prepare_pixels
from tests.benchmarks import crafted, inversion
from tests.benchmarks.bench_compression import _TASK
from tests.benchmarks.skewed_sites import two_hospitals
from tests.shared_data import shared_data_dir
from trainer.compression import Compression, Draw
from trainer.datasets import Dataset, Samples
from trainer.local_round import Packing, local_round
from trainer.networks import initial_weights
from trainer.privacy.noise import SeededNoise
from trainer.privacy.promise import DP_SGD, UPDATE_GAUSSIAN, Promise
from trainer.strategies import update_norm
from trainer.task import LocalSpec
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.task import TaskSpec

    Array = NDArray[Any]

BATCH: Final = 8
SIZE: Final = crafted.SIZE
PUBLIC: Final = 2400
TRIED: Final = 40  # updates of known pictures by which an attacker chooses
NONE: Final = "none"
GUESS: Final = "no update seen: the mean picture"
CLOSE: Final = "none, weights within a plan's bound"
MATCHING: Final = "none, by matching gradients"
RECOGNISABLE: Final = 0.5  # SSIM
_ANY: Final = 1e3  # what a run may cost: here it is measured, not limited


def gaussian(noise: float) -> Promise:
    """Return noise on whole updates; delta is 1e-3: a site has 64 people."""
    return Promise(UPDATE_GAUSSIAN, 1.0, noise, _ANY, 1e-3)


def private_steps(noise: float) -> Promise:
    """Return noise on every step."""
    return Promise(DP_SGD, 1.0, noise, _ANY, 1e-3, 0.25)


PROMISED: Final[dict[str, Promise | None]] = {
    NONE: None,
    "update-gaussian, noise 0.05": gaussian(0.05),
    "dp-sgd, noise 1.5": private_steps(1.5),
}
PACKED: Final = {
    "int8": Compression("int8"),
    "top-k, share 0.02": Compression("top-k", {"share": 0.02}),
    "sketch, share 0.5, 4 bits": Compression("sketch"),
}
WAYS: Final = (*PROMISED, *PACKED)
# A rate at which one step, of gradient norm 5 at most, fills what update-gaussian clips to.
_STEP: Final = LocalSpec("sgd", learning_rate=0.2, local_steps=1, shift_fraction=0.0, gain_fraction=0.0)


def task_of(cases: int) -> TaskSpec:
    """Return a task whose sites make one plain step on so many cases."""
    return replace(_TASK, local=replace(_STEP, batch_size=cases))


def update_of(
    task: TaskSpec, weights: Mapping[str, Array], cases: Samples, way: str, seed: int
) -> dict[str, Array]:
    """Return what the coordinator has of a site's step on these cases."""
    people = tuple(f"person-{i}" for i in range(len(cases)))
    part = Samples(cases.x, cases.y, people)
    promise = PROMISED.get(way)
    if promise is not None and promise.mechanism == DP_SGD:
        promise = replace(promise, sampling_rate=1.0)
    nobody = Samples(cases.x[:0], cases.y[:0])
    return local_round(
        task,
        weights,
        Dataset(part, nobody),
        seed=seed,
        privacy=promise,
        noise=SeededNoise(seed),
        packing=Packing(PACKED[way], Draw(seed, 1)) if way in PACKED else None,
    ).delta


def other_hospital() -> Samples:
    """Return the attacker's own chest X-rays: children of a hospital that is not the victims'."""
    with np.load(shared_data_dir() / "cxr_pneumonia" / "site_guangzhou_pneumoniamnist28.npz") as content:
        images, labels = content["train_images"], content["train_labels"].reshape(-1)
    chosen = np.random.default_rng(0).permutation(len(labels))[: PUBLIC + TRIED]
    x = np.stack([prepare_pixels(images[i], _TASK.preprocessing) for i in chosen])
    return Samples(x, labels[chosen].astype(np.uint8))


def part_of(cases: Samples, start: int, count: int) -> Samples:
    """Return some cases."""
    return Samples(cases.x[start : start + count], cases.y[start : start + count])


def honest_attack(victims: int) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return likeness by way and number of cases, of an attacker that keeps to the protocol."""
    single, weights = task_of(1), initial_weights(task_of(1), seed=1)
    public, cases = other_hospital(), two_hospitals(0)["adults-0"].train
    learnt = inversion.Learnt(single, weights, inversion.varied(public.x[:PUBLIC], 0))
    known = part_of(public, PUBLIC, TRIED)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {GUESS: {}, MATCHING: {}}
    for count in (1, BATCH):
        parts = [part_of(cases, victim * count, count) for victim in range(victims)]
        found[GUESS][str(count)] = [inversion.likeness(learnt.mean, one.x) for one in parts]
        found[MATCHING][str(count)] = [
            inversion.likeness(_matched(weights, one, seed), one.x) for seed, one in enumerate(parts[:4])
        ]
    for way in WAYS:
        tried = [update_of(single, weights, part_of(known, i, 1), way, i) for i in range(TRIED)]
        smoothing = learnt.smoothing_for(tried, known)
        found[way] = {}
        for count in (1, BATCH):
            parts = [part_of(cases, victim * count, count) for victim in range(victims)]
            updates = [update_of(task_of(count), weights, one, way, seed) for seed, one in enumerate(parts)]
            found[way][str(count)] = [
                inversion.likeness(learnt.guesses(update, smoothing, one.y.tolist()), one.x)
                for update, one in zip(updates, parts, strict=True)
            ]
    return found


def _matched(weights: Mapping[str, Array], cases: Samples, seed: int) -> Array:
    task = task_of(len(cases))
    update = update_of(task, weights, cases, NONE, seed)
    return inversion.matched(task, weights, update, cases.y, seed)


def crafted_attack(victims: int) -> dict[str, list[dict[str, Any]]]:
    """Return by way what each attack found among 8 cases: the picture, the nearest true one, likeness."""
    public, cases = other_hospital().x, two_hospitals(0)["adults-0"].train
    prior = crafted.Prior.of(public)
    blind = prior.mean.reshape(1, 1, SIZE, SIZE).astype(np.float32)
    orders = [(way, way, crafted.FAR) for way in WAYS]
    orders.insert(1, (CLOSE, NONE, crafted.NEAR))
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in (GUESS, *(one[0] for one in orders))}
    for victim in range(victims):
        part = part_of(cases, victim * BATCH, BATCH)
        found[GUESS].append(_nearest(blind, part))
        for name, way, strength in orders:
            rounds = crafted.crafted_weights(task_of(BATCH), public, victim, strength)
            picture, number = fished(rounds, part, way, victim, prior)
            found[name].append({**_nearest(picture, part), "rounds": number})
    return found


def fished(
    rounds: Sequence[Mapping[str, Array]], cases: Samples, way: str, seed: int, prior: crafted.Prior
) -> tuple[Array, int]:
    """Return the picture of the first round in which something came, or of the last, and its number."""
    task, number = task_of(len(cases)), 1
    weights = rounds[0]
    update = update_of(task, weights, cases, way, seed * 100 + number)
    while number < len(rounds) and not crafted.something_came(task, weights, update):
        weights, number = rounds[number], number + 1
        update = update_of(task, weights, cases, way, seed * 100 + number)
    return crafted.read_out(task, weights, update, prior), number


def _nearest(guess: Array, cases: Samples) -> dict[str, Any]:
    """Return the guess beside the case that it is most like."""
    likeness = [inversion.likeness(guess, one[None]) for one in cases.x]
    best = max(range(len(cases)), key=lambda i: likeness[i][1])
    peak, structure = likeness[best]
    return {"guess": guess[0, 0], "true": cases.x[best, 0], "psnr": peak, "ssim": structure}


def distance_from_first(victims: int) -> float:
    """Return how far crafted weights lie from an untrained model at most, as the site's bound counts."""
    task, public = task_of(BATCH), other_hospital().x
    first = initial_weights(task, seed=1)
    every = [crafted.crafted_weights(task, public, victim, crafted.NEAR) for victim in range(victims)]
    return max(float(update_norm(difference(weights, first))) for rounds in every for weights in rounds)
