"""Attacks on models and updates, with and without protection: ``cloister bench privacy``.

``python -m tests.benchmarks.bench_privacy results.md`` writes the tables; ``--pictures FILE`` of the command
draws, for the eye, true pictures above what crafted weights got. Those show patients: the file stays here.
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
from PIL import Image

from tests.benchmarks import attacks, crafted, shadows, victims
from tests.benchmarks.bench_compression import _TASK
from tests.benchmarks.victims import PROMISED
from trainer.local_round import use_threads
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MODELS: Final = 8
ROUNDS: Final = 6
STEPS: Final = 15
VICTIMS: Final = 8
FALSE_ALARMS: Final = 0.01
_LOCAL: Final = LocalSpec(batch_size=16, local_steps=STEPS, learning_rate=3e-3, shift_fraction=0.0)
TASK: Final = replace(_TASK, local=replace(_LOCAL, gain_fraction=0.0))
_ENLARGED: Final = 4


def run(models: int = MODELS, attacked: int = VICTIMS, pictures: str = "") -> dict[str, Any]:
    """Measure membership inference on models and updates, and inversion of single updates.

    ``attacked``: how many sites each inversion has for victims, 8 at most. ``pictures``: a PNG to write.
    """
    started = time.monotonic()
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=use_threads, initargs=(1,)
    ) as pool:
        honest = pool.submit(victims.honest_attack, attacked)
        hostile = pool.submit(victims.crafted_attack, attacked)
        orders = [(way, number) for way in PROMISED for number in range(models)]
        trained = dict(zip(orders, pool.map(_shadow, orders), strict=True))
        seen, read = honest.result(), hostile.result()
    if pictures:
        draw(read, Path(pictures))
    return {
        "models": models,
        "victims": attacked,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "membership": {way: _membership([trained[way, n] for n in range(models)], way) for way in PROMISED},
        "inversion": {
            way: {count: _inverted(one) for count, one in row.items()} for way, row in seen.items()
        },
        "crafted": {way: _crafted(found) for way, found in read.items()},
        "crafted_distance": victims.distance_from_first(attacked),
    }


def draw(read: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write a PNG: for each protection a row of true pictures, and below it what the attacker got."""
    rows = [
        np.hstack([_grey(one[kind]) for one in found])
        for found in read.values()
        for kind in ("true", "guess")
    ]
    whole = np.vstack(rows)
    size = (whole.shape[1] * _ENLARGED, whole.shape[0] * _ENLARGED)
    Image.fromarray(whole).resize(size, Image.Resampling.NEAREST).save(path)


def _grey(picture: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.quantile(picture, [0.01, 0.99])
    return np.asarray(np.clip((picture - low) / max(high - low, 1e-9), 0, 1) * 255, dtype=np.uint8)


def _shadow(order: tuple[str, int]) -> dict[str, Any]:
    way, number = order
    everybody, sites, member = shadows.sites_of(number)
    seen, auc = shadows.watched(TASK, everybody, sites, ROUNDS, number, PROMISED[way])
    return {"member": member, "seen": seen, "auc": auc}


def _membership(models: Sequence[dict[str, Any]], way: str) -> dict[str, Any]:
    member = np.stack([one["member"] for one in models])
    promise = PROMISED[way]
    found: dict[str, Any] = {
        "epsilon": math.inf if promise is None else promise.run_epsilon(TASK, ROUNDS),
        "auc": mean(one["auc"] for one in models),
        "views": {},
    }
    for view in shadows.VIEWS:
        values = np.stack([one["seen"][view] for one in models])
        ratios = attacks.likelihood_ratios(values / values.std(), member)
        found["views"][view] = {"alone": _found(values, member), "ratio": _found(ratios, member)}
    return found


def _found(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> dict[str, Any]:
    pairs = list(zip(scores, member, strict=True))
    hits = [attacks.found_at(s, m, FALSE_ALARMS) for s, m in pairs]
    return {"area": _spread([attacks.area(s, m) for s, m in pairs]), "found_at_1_percent": _spread(hits)}


def _inverted(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {"psnr": _spread([one[0] for one in found]), "ssim": _spread([one[1] for one in found])}


def _crafted(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = [(one["psnr"], one["ssim"]) for one in found]
    return {**_inverted(pairs), "recognised": sum(one["ssim"] > victims.RECOGNISABLE for one in found)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "spread": stdev(values)}


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a section of a page."""
    lines = [_HEAD.format(**figures, rounds=ROUNDS, steps=STEPS)]
    lines += [
        "| protection | epsilon | AUC of the model | what is seen | area | at 1 % | ratio: area | at 1 % |"
    ]
    lines += ["| - " * 8 + "|"]
    for way, row in figures["membership"].items():
        first = [way, f"{row['epsilon']:.3g}", f"{row['auc']:.3f}"]
        for view, found in row["views"].items():
            cells = [*first, view]
            for attack in ("alone", "ratio"):
                cells += [_cell(found[attack][name], 3) for name in ("area", "found_at_1_percent")]
            lines.append(f"| {' | '.join(cells)} |")
            first = ["", "", ""]
    lines += ["", _INVERSION.format(**figures)]
    lines += ["| protection | PSNR, 1 case | SSIM | PSNR, 8 cases | SSIM |", "| - " * 5 + "|"]
    for way, row in figures["inversion"].items():
        cells = [_cell(row[count][name], digits) for count in ("1", "8") for name, digits in _DIGITS]
        lines.append(f"| {' | '.join([way, *cells])} |")
    lines += ["", _CRAFTED.format(**figures, rounds=crafted.ROUNDS, limit=victims.RECOGNISABLE)]
    lines += ["| protection | recognised | PSNR | SSIM |", "| - " * 4 + "|"]
    for way, row in figures["crafted"].items():
        cells = [f"{row['recognised']} of {figures['victims']}"]
        cells += [_cell(row[name], digits) for name, digits in _DIGITS]
        lines.append(f"| {' | '.join([way, *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['spread']:.{digits}f}"


_DIGITS: Final = (("psnr", 1), ("ssim", 2))
_HEAD: Final = """## Attacks

What an attacker learns, with and without [differential privacy](federation/privacy.md), on chest X-rays
of two hospitals at 28 pixels. `cloister bench privacy` took {minutes} minutes on two cores. After ±
stands the standard deviation over models, or over victims; models share cases, so it is no interval.

### Who was trained on

Membership inference on FedAvg: {rounds} rounds of {steps} steps, four sites, each model on a random half
of each site's cases, {models} models. The *final model* tells by the loss: the surer it is of the true
label, the likelier a member. Whoever sees single updates in all rounds, as a coordinator does without
encryption, has more: how much surer a site's own model is than the global one it came from (*rise*), and
how far a site's update points down the case's own loss (*cosine*), both added up over the rounds.
*Sum of updates* is the same of what all sites moved the global model by, which is what the sites see.
*Ratio*: each case's score beside that in the other models (likelihood ratio). Area: 0.5 tells nothing, 1
everything. "At 1 %": share of members found while 1 % of the others are taken for members. Epsilon is of
the whole run at a site, at delta 1e-3.
"""
_INVERSION: Final = """\
### What the picture was

From one site's update after one plain step on 1 or 8 adults' cases, from an untrained network, whose
labels and whose pictures' mean and contrast are given; its rate lets one step fill what
`update-gaussian` clips to. {victims} victims. *Matching gradients* (Geiping 2020; 4 victims) searches a
picture with the same gradient, and finds none. All other rows are an attacker who computes the
gradients of another hospital's pictures, of children, and learns the way back (ridge regression), with
what does best under that very protection. Higher PSNR (dB) and SSIM is more of the picture. The first row
is a guess that saw no update. Of 8 cases the guess is compared with each.
"""
_CRAFTED: Final = """\
### What a coordinator gets that sends crafted weights

The same network with weights that no training made: they let the pictures of a few cases through to the
gradient (`tests/benchmarks/crafted.py`). The coordinator has up to {rounds} rounds of one step on the same 8
cases, and in each lets some more through, until something comes. Likeness is to the nearest of the 8;
*recognised*: SSIM above {limit}. Labels are not given. *Within a plan's bound*: weights that lie at most
{crafted_distance:.0f} (L2) from an untrained model, where `max_update_norm` is 100 by default; those of
the other rows are larger.
"""


if __name__ == "__main__":
    figures = run()
    Path(sys.argv[1]).write_text(markdown(figures), encoding="utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
