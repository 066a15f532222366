"""Claims of medical strategies beside FedAvg, each on data made for it: ``cloister bench medical``.

``python -m tests.benchmarks.bench_medical results-medical.md`` writes a page.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.bench_strategies import ROUNDS, interval
from tests.benchmarks.skewed_sites import (
    FEW,
    SIZES,
    TASK,
    feature_skew,
    few_labels,
    size_and_domain_skew,
    two_hospitals,
)
from trainer.local_round import use_threads
from trainer.simulation import held_out, simulate, unseen_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainer.datasets import Dataset
    from trainer.measuring import AnyMetrics

SEEDS: Final = 3
Sites = dict[str, "Dataset"]


def run(seeds: int = SEEDS) -> dict[str, Any]:
    """Measure every claim; ``claims[title][strategy]`` has the mean AUC by seed and the paired difference."""
    started = time.monotonic()
    use_threads(1)
    claims = {
        title: {
            "about": about,
            "strategies": paired({seed: measure(seed) for seed in range(seeds)}),
        }
        for title, about, measure in _CLAIMS
    }
    return {"seeds": seeds, "minutes": round((time.monotonic() - started) / 60, 1), "claims": claims}


def paired(found: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return figures by strategy; the first of each seed is what the others are compared with."""
    first = next(iter(found[0]))
    return {
        name: {
            "auc": [one[name] for one in found.values()],
            "beside": interval([one[name] - one[first] for one in found.values()]),
        }
        for name in found[0]
    }


def unseen(make: Callable[[int], Sites], seed: int) -> dict[str, float]:
    """Leave each site out once; the mean AUC of the model of the others there."""
    sites = make(seed)
    found: dict[str, float] = {}
    for name in ("fedavg", "domain-generalisation", "domain-adaptation", "variation-aware"):
        areas = []
        for left_out, dataset in sites.items():
            others = {site: one for site, one in sites.items() if site != left_out}
            result = simulate(TASK, others, rounds=ROUNDS, strategy=name, seed=seed)
            measured = unseen_metrics(TASK, name, result.weights, {left_out: held_out(dataset)})
            areas.append(_area(measured))
        found[name] = mean(areas)
    return found


def sizes(seed: int) -> dict[str, float]:
    """Measure the mean AUC over sites of which one has most cases."""
    sites = size_and_domain_skew(seed)
    found = {}
    for name in ("fedavg", "auto-fedavg"):
        found[name] = _area(simulate(TASK, sites, rounds=2 * ROUNDS, strategy=name, seed=seed).final)
    return found


def labels(seed: int) -> dict[str, float]:
    """Measure training from scratch on few labels, and from the model of another hospital."""
    many, few = few_labels(seed)
    earlier = simulate(TASK, many, rounds=2 * ROUNDS, seed=seed).weights
    scratch = simulate(TASK, few, rounds=ROUNDS, seed=seed)
    frozen = {"frozen_rounds": 2.0}
    moved = simulate(
        TASK, few, rounds=ROUNDS, strategy="transfer", parameters=frozen, initial=earlier, seed=seed
    )
    untouched = unseen_metrics(TASK, "fedavg", earlier, few)
    return {
        "fedavg from scratch": _area(scratch.final),
        "transfer": _area(moved.final),
        "the other hospital's model, untouched": _area(untouched),
    }


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a page."""
    lines = [_HEAD.format(**figures, steps=TASK.local.local_steps, rounds=ROUNDS)]
    for title, claim in figures["claims"].items():
        lines += [f"## {title}", "", claim["about"], "", "| | AUC | difference to the first | |"]
        lines += ["| - " * 4 + "|", *(_row(*one) for one in enumerate(claim["strategies"].items())), ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(position: int, item: tuple[str, dict[str, Any]]) -> str:
    name, row = item
    beside = row["beside"]
    if position == 0:
        return f"| {name} | {mean(row['auc']):.3f} | | |"
    difference = f"{beside['mean']:+.3f} [{beside['low']:+.3f}, {beside['high']:+.3f}]"
    verdict = "better" if beside["low"] > 0 else "worse" if beside["high"] < 0 else "no difference shown"
    return f"| {name} | {mean(row['auc']):.3f} | {difference} | {verdict} |"


def _area(by_site: Mapping[str, AnyMetrics]) -> float:
    return mean(one.auc.estimate for one in by_site.values() if one.auc is not None)


_UNSEEN_MACHINE: Final = """\
The drawn pictures of the feature skew: each of the four sites is left out once, and the model of the other
three is measured on all its cases; the mean over the four."""
_UNSEEN_SITE: Final = """\
Real chest X-rays at 28 pixels, two sites of each of two hospitals: each site is left out once."""
_SIZES: Final = f"""\
Drawn pictures at 28 pixels: sites of {", ".join(map(str, SIZES))} training cases, of which the machines
of the three small ones invert; {2 * ROUNDS} rounds."""
_LABELS: Final = f"""\
Real chest X-rays at 28 pixels: two sites of adults with {FEW} labelled training cases each. Transfer starts
from what {2 * ROUNDS} rounds of FedAvg made of children of another hospital."""
_CLAIMS: Final[tuple[tuple[str, str, Callable[[int], dict[str, float]]], ...]] = (
    ("An unseen machine", _UNSEEN_MACHINE, lambda seed: unseen(feature_skew, seed)),
    ("An unseen hospital's site", _UNSEEN_SITE, lambda seed: unseen(two_hospitals, seed)),
    ("Sites of very different size", _SIZES, sizes),
    ("Few labels", _LABELS, labels),
)
_HEAD: Final = """# What medical strategies claim

Each beside what it has to beat, on data made for the claim: means over {seeds} seeds, which draw the cases,
the initial model and the order of training; differences are paired by seed, with 95 % intervals (Student's
t), one comparison at a time. Parameters are the defaults. Unless said otherwise {rounds} rounds of {steps}
steps, the network and the sites of [Results](results.md). Data are small and training is short: directions,
not what a hospital can expect.

```sh
python -m tests.benchmarks.bench_medical results-medical.md  # {minutes} minutes, one process
```
"""


if __name__ == "__main__":
    found = run()
    Path(sys.argv[1]).write_text(markdown(found), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
