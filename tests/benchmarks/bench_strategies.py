"""Every strategy beside FedAvg, over seeds, on sites that differ: ``cloister bench strategies``.

``python -m tests.benchmarks.bench_strategies docs/results.md`` writes its tables there and leaves what stands
below them.
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

from tests.benchmarks.skewed_sites import SETS, TASK, label_skew
from trainer.first_model import ANOMALY_ALONE
from trainer.local_round import use_threads
from trainer.peers import NAMES as ALL
from trainer.peers import PEERS, terms
from trainer.privacy.promise import Promise
from trainer.simulation import bytes_by_site, simulate
from trainer.strategies import STRATEGIES
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.simulation import Simulation

NAMES: Final = tuple(name for name in ALL if name not in ANOMALY_ALONE)  # these learn labels
SEEDS: Final = 8
NEXT: Final = "## Between peers"  # where the page goes on with what is measured elsewhere
_OTHER_PICTURES: Final = 100
ROUNDS: Final = 6
# Where a default is not for few short rounds; set before anything was measured, and not tuned since.
PARAMETERS: Final[dict[str, dict[str, float]]] = {
    "fedprox": {"mu": 0.1},
    "fedavgm": {"beta1": 0.5},
    "scaffold": {"local_learning_rate": 0.1},
}
# What needs a promise has it, and a network that it can protect; it is compared with FedAvg on that network.
PROMISES: Final = {"svt": Promise("svt", 0.01, 0.05, 1e3, 1e-3, share=0.1)}
_PROTECTED: Final = replace(TASK, network=NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2}))
# DFedAvgM is gradient descent with momentum: it is compared with FedAvg that trains so, too.
DESCENT: Final = replace(TASK, local=replace(TASK.local, optimizer="sgd", learning_rate=0.05))
TASKS: Final = {"svt": _PROTECTED, "dfedavgm": DESCENT}
# Student's t, 0.975, n - 1 degrees.
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_T_95 |= {12: 2.201, 16: 2.131, 20: 2.093, 24: 2.069, 30: 2.045, 40: 2.023, 48: 2.012}


Found = dict[str, dict[str, float]]


def run(seeds: int = SEEDS, rounds: int = ROUNDS, workers: int = 2) -> dict[str, Any]:
    """Measure all strategies; ``sets[data][strategy]`` has the mean AUC over sites, by seed."""
    started = time.monotonic()
    orders = [(data, seed, rounds) for seed in range(seeds) for data in SETS]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(orders, pool.map(measure, orders), strict=True))
    minutes = round((time.monotonic() - started) / 60, 1)
    return {"seeds": seeds, "rounds": rounds, "minutes": minutes, "workers": workers, "sets": summary(found)}


def measure(order: tuple[str, int, int], names: Sequence[str] = NAMES) -> Found:
    """Run strategies on one set of sites, from one seed.

    Where one starts from an earlier model, that is FedAvg's of other drawn pictures, for chest X-rays too: no
    case that is measured has been trained on.
    """
    data, seed, rounds = order
    use_threads(1)
    datasets = SETS[data](seed)
    earlier = simulate(TASK, label_skew(seed + _OTHER_PICTURES), rounds=rounds, seed=seed).weights
    found = {}
    for name in names:
        promise, task = PROMISES.get(name), TASKS.get(name, TASK)
        result = simulate(
            task,
            datasets,
            rounds=_as_much_training(name, rounds, len(datasets)),
            strategy=name,
            parameters=PARAMETERS.get(name),
            initial=earlier if terms(name).needs_initial else None,
            seed=seed,
            privacy=promise,
        )
        found[name] = measured(result)
        if task is not TASK:
            found[name]["beside"] = measured(simulate(task, datasets, rounds=rounds, seed=seed))["auc"]
    return found


def _as_much_training(name: str, rounds: int, sites: int) -> int:
    """Return the rounds in which every site trains as often as in that many of FedAvg."""
    if name in PEERS:
        return PEERS[name].rounds(rounds, sites)
    return rounds * sites if STRATEGIES[name].one_at_a_time else rounds


def measured(result: Simulation) -> dict[str, float]:
    """Return mean and least AUC over sites, and what a site sent for one local round."""
    areas = [one.auc.estimate for one in result.final.values() if one.auc is not None]
    trainings = sum(len(record.sites) for record in result.rounds)
    sent = sum(one["sent"] for one in bytes_by_site(result.rounds).values())
    return {"auc": mean(areas), "worst": min(areas), "kib": sent / trainings / 1024}


def summary(
    found: dict[tuple[str, int, int], Found], names: Sequence[str] = NAMES
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return figures by data and strategy, with the paired difference to FedAvg."""
    sets: dict[str, dict[str, dict[str, Any]]] = {data: {} for data in SETS}
    for data, table in sets.items():
        by_seed = [one for (of, _, _), one in sorted(found.items()) if of == data]
        for name in names:
            table[name] = {
                "auc": [one[name]["auc"] for one in by_seed],
                "worst": [one[name]["worst"] for one in by_seed],
                "kib_per_round_and_site": by_seed[0][name]["kib"],
                "beside_fedavg": interval(
                    [one[name]["auc"] - one[name].get("beside", one["fedavg"]["auc"]) for one in by_seed]
                ),
            }
    return sets


def interval(differences: list[float]) -> dict[str, float]:
    """Return the mean of paired differences and its 95 % interval by Student's t."""
    half = _T_95[len(differences)] * stdev(differences) / math.sqrt(len(differences))
    centre = mean(differences)
    return {"mean": centre, "low": centre - half, "high": centre + half}


def told(beside: Mapping[str, float]) -> tuple[str, str]:
    """Return a difference with its interval, and what it says, in words."""
    difference = f"{beside['mean']:+.3f} [{beside['low']:+.3f}, {beside['high']:+.3f}]"
    verdict = "better" if beside["low"] > 0 else "worse" if beside["high"] < 0 else "no difference shown"
    return difference, verdict


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a page."""
    changed = "; ".join(
        f"`{name}` {key} {value:g}" for name, values in PARAMETERS.items() for key, value in values.items()
    )
    lines = [_HEAD.format(**figures, steps=TASK.local.local_steps, changed=changed)]
    for data, table in figures["sets"].items():
        lines += [f"## {data.capitalize()}", "", _ABOUT[data], ""]
        lines += [
            "| strategy | AUC | worst site | beside `fedavg` | | KiB a round and site |",
            "| - " * 6 + "|",
        ]
        lines += [row_of(name, row) for name, row in table.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def row_of(name: str, row: dict[str, Any]) -> str:
    """Return a row of the page's tables."""
    beside = row["beside_fedavg"]
    if name == "fedavg":
        difference, verdict = "", ""
    else:
        difference, verdict = told(beside)
    cells = [name, f"{mean(row['auc']):.3f}", f"{mean(row['worst']):.3f}", difference, verdict]
    return f"| {' | '.join(cells)} | {row['kib_per_round_and_site']:.0f} |"


_HEAD: Final = """# Results

Strategies beside `fedavg` on sites that differ: means over {seeds} seeds, which draw the cases, the initial
model and the order of training. The difference is paired by seed, of the mean AUC over sites, with its 95 %
interval (Student's t). "Better" and "worse" are said where that interval leaves zero out, one comparison at a
time, without correction for their number. Data are small and training is short: directions, not what a
hospital can expect, and no difference shown is not the same as none.

Four sites of at most 64 training and 100 held-out cases; {rounds} rounds of {steps} steps; a residual network
with batch normalisation, at 28 pixels. AUC is measured at each site on its own held-out cases, of the model
that the site would use. With four sites `multi-krum` withstands nobody and is the mean, and `trimmed-mean` is
the median. Where one site trains per round, there are four times as many rounds, so that as much is trained.
Bytes are those that sites send, per local round: to the coordinator, or to each other.
Parameters other than the defaults, none of them tuned: {changed}.

```sh
python -m tests.benchmarks.bench_strategies docs/results.md  # {minutes} minutes, {workers} cores
cloister bench strategies --json figures.json                # the same figures, of every seed, as JSON
```

Not measured here: attackers, for which see `tests/trainer/strategies/test_attacks.py`. Few strategies on
volumes stand under [Hippocampus](#hippocampus).

`transfer` starts from a FedAvg model of other drawn pictures with label skew, for chest X-rays too.

`dfedavgm` trains by gradient descent with momentum (rate 0.05) and is compared with `fedavg` that trains
so, too. Of `dfedavgm`, on a ring, and `braintorrent` each site's own model is measured.
"""
_ABOUT: Final = {
    "two hospitals": "Real chest X-rays at 28 pixels, pneumonia or not: two sites have children of one\n"
    "hospital, two have adults of another.",
    "label skew": "Drawn pictures, a disc in noise; 8, 30, 70 and 92 % of a site's cases have it.",
    "feature skew": "The same pictures, half of them with a disc; the second site's machine inverts, the\n"
    "third is flat and bright, the fourth steep, dark and blurred.",
}


if __name__ == "__main__":
    found = run()
    page = Path(sys.argv[1])
    _, heading, rest = page.read_text(encoding="utf-8").partition(f"\n{NEXT}\n")
    page.write_text(f"{markdown(found)}{heading}{rest}", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
