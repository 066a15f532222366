"""Attacks on models and updates, with and without protection: ``cloister bench privacy``.

``python -m tests.benchmarks.bench_privacy results.md`` writes the tables.
"""

from __future__ import annotations

import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.benchmarks import attacks
from tests.benchmarks.bench_compression import _TASK
from tests.benchmarks.skewed_sites import two_hospitals
from trainer.compression import Compression, Draw
from trainer.datasets import Dataset, Samples
from trainer.local_round import Packing, local_round, use_threads
from trainer.networks import initial_weights
from trainer.privacy.noise import SeededNoise
from trainer.privacy.promise import DP_SGD, UPDATE_GAUSSIAN, Promise
from trainer.simulation import simulate
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS: Final = 8
ROUNDS: Final = 6
STEPS: Final = 15
VICTIMS: Final = 4
FALSE_ALARMS: Final = 0.01
NONE: Final = "none"
_ANY: Final = 1e3  # what a run may cost: here it is measured, not limited


def _gaussian(noise: float) -> Promise:
    return Promise(UPDATE_GAUSSIAN, 1.0, noise, _ANY, 1e-3)


def _sgd(noise: float) -> Promise:
    return Promise(DP_SGD, 1.0, noise, _ANY, 1e-3, 0.25)


# Delta is 1e-3: a site has 64 people.
WAYS: Final[dict[str, Promise | None]] = {
    NONE: None,
    "update-gaussian, noise 0.05": _gaussian(0.05),
    "dp-sgd, noise 1.5": _sgd(1.5),
}
PACKED: Final = {"int8": Compression("int8"), "top-k, share 0.02": Compression("top-k", {"share": 0.02})}
_LOCAL: Final = LocalSpec(batch_size=16, local_steps=STEPS, learning_rate=3e-3, shift_fraction=0.0)
TASK: Final = replace(_TASK, local=replace(_LOCAL, gain_fraction=0.0))


def run(models: int = MODELS, victims: int = VICTIMS) -> dict[str, Any]:
    """Measure membership inference on final models and gradient inversion on single updates."""
    started = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        orders = [(way, number) for way in WAYS for number in range(models)]
        trained = dict(zip(orders, pool.map(_shadow, orders), strict=True))
        inversions = [(way, batch, v) for way in (*WAYS, *PACKED) for batch in (1, 8) for v in range(victims)]
        found = dict(zip(inversions, pool.map(_inversion, inversions), strict=True))
    membership = {way: _membership([trained[way, n] for n in range(models)], way) for way in WAYS}
    inversion = {
        way: {str(batch): _inverted([found[way, batch, v] for v in range(victims)]) for batch in (1, 8)}
        for way in (*WAYS, *PACKED)
    }
    minutes = round((time.monotonic() - started) / 60, 1)
    return {
        "models": models,
        "victims": victims,
        "minutes": minutes,
        "membership": membership,
        "inversion": inversion,
    }


def _pool() -> dict[str, Samples]:
    """Return each site's cases, one person each."""
    return {site: Samples.join([one.train, one.validation]) for site, one in two_hospitals(0).items()}


def _shadow(order: tuple[str, int]) -> dict[str, Any]:
    """Train a federation on a random half of each site's cases; return what its model says of all."""
    way, number = order
    use_threads(1)
    generator = np.random.default_rng(number)
    chosen, sites = [], {}
    for site, cases in _pool().items():
        inside = np.zeros(len(cases), dtype=bool)
        inside[generator.permutation(len(cases))[: len(cases) // 2]] = True
        chosen.append(inside)
        people = tuple(f"{site}-{i}" for i in np.flatnonzero(inside))
        sites[site] = Dataset(
            Samples(cases.x[inside], cases.y[inside], people), Samples(cases.x[~inside], cases.y[~inside])
        )
    result = simulate(TASK, sites, rounds=ROUNDS, seed=number, privacy=WAYS[way])
    said = [attacks.confidence(TASK, result.weights, cases) for cases in _pool().values()]
    areas = [one.auc.estimate for one in result.final.values() if one.auc is not None]
    return {"member": np.concatenate(chosen), "values": np.concatenate(said), "auc": mean(areas)}


def _membership(models: Sequence[dict[str, Any]], way: str) -> dict[str, Any]:
    values = np.stack([one["values"] for one in models])
    member = np.stack([one["member"] for one in models])
    ratios = attacks.likelihood_ratios(values, member)
    promise = WAYS[way]
    found: dict[str, Any] = {
        "epsilon": math.inf if promise is None else promise.run_epsilon(TASK, ROUNDS),
        "auc": mean(one["auc"] for one in models),
    }
    for name, scores in (("loss", values), ("likelihood ratio", ratios)):
        areas = [attacks.area(s, m) for s, m in zip(scores, member, strict=True)]
        hits = [attacks.found_at(s, m, FALSE_ALARMS) for s, m in zip(scores, member, strict=True)]
        found[name] = {"area": _spread(areas), "found_at_1_percent": _spread(hits)}
    return found


def _inversion(order: tuple[str, int, int]) -> tuple[float, float]:
    """Attack the update of one local step on some cases; return PSNR and SSIM."""
    way, batch, victim = order
    use_threads(1)
    cases = two_hospitals(0)["adults-0"].train
    chosen = np.arange(victim * batch, (victim + 1) * batch) % len(cases)
    part = Samples(cases.x[chosen], cases.y[chosen], tuple(f"person-{i}" for i in range(batch)))
    task = replace(TASK, local=replace(TASK.local, optimizer="sgd", batch_size=batch, local_steps=1))
    weights = initial_weights(task, seed=1)
    promise = WAYS.get(way)
    if promise is not None and promise.mechanism == DP_SGD:
        promise = replace(promise, sampling_rate=1.0)
    update = local_round(
        task,
        weights,
        Dataset(part, part),
        seed=victim,
        privacy=promise,
        noise=SeededNoise(victim),
        packing=Packing(PACKED[way], Draw(victim, 1)) if way in PACKED else None,
    )
    guesses = attacks.inverted(task, weights, update.delta, part.y, victim)
    return attacks.likeness(guesses, part.x)


def _inverted(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {"psnr": _spread([one[0] for one in found]), "ssim": _spread([one[1] for one in found])}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "spread": stdev(values)}


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a section of a page."""
    lines = [_HEAD.format(**figures, rounds=ROUNDS, steps=STEPS)]
    lines += ["| protection | epsilon | AUC of the model | loss: area | at 1 % | ratio: area | at 1 % |"]
    lines += ["| - " * 7 + "|"]
    for way, row in figures["membership"].items():
        cells = [way, f"{row['epsilon']:.3g}", f"{row['auc']:.3f}"]
        for attack in ("loss", "likelihood ratio"):
            cells += [_cell(row[attack]["area"], 3), _cell(row[attack]["found_at_1_percent"], 3)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _INVERSION.format(**figures)]
    lines += ["| protection | PSNR, 1 case | SSIM | PSNR, 8 cases | SSIM |", "| - " * 5 + "|"]
    for way, row in figures["inversion"].items():
        cells = [way]
        for batch in ("1", "8"):
            cells += [_cell(row[batch]["psnr"], 1), _cell(row[batch]["ssim"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['spread']:.{digits}f}"


_HEAD: Final = """## Attacks

What an attacker learns, with and without [differential privacy](federation/privacy.md), on chest X-rays
of two hospitals at 28 pixels. `cloister bench privacy` took {minutes} minutes on two cores. After ±
stands the standard deviation over models, or over victims; models share cases, so it is no interval.

**Membership inference** on the final model of FedAvg: {rounds} rounds of {steps} steps, four sites,
each model on a random half of each site's cases, {models} models. *Loss*: the surer a model is of the
true label, the likelier a member. *Ratio*: each case's confidence beside that in the other models
(likelihood ratio). Area: 0.5 tells nothing, 1 everything. "At 1 %": share of members found while 1 % of
the others are taken for members. Epsilon is of the whole run at a site, at delta 1e-3.
"""
_INVERSION: Final = """\
**Gradient inversion** of one site's update after one plain step on 1 or 8 cases, from an untrained
network: the best that an attacker can hope for, with the labels and each picture's mean and contrast
given. {victims} victims. Higher PSNR (dB) and SSIM is more of the picture; noise that guesses nothing
gives what the noisiest rows show.
"""


if __name__ == "__main__":
    figures = run()
    Path(sys.argv[1]).write_text(markdown(figures), encoding="utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
