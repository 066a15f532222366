"""What papers claim of their strategies, each where its paper says that it works: ``cloister bench claims``.

``python -m tests.benchmarks.bench_claims docs/federation/claims.md`` writes the page. Whoever is
compared is tuned over a grid, what has to be beaten as well; the figures come from other seeds.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.bench_strategies import interval, told
from tests.benchmarks.claims import CLAIMS
from trainer.local_round import use_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

SEEDS: Final = 12
TUNING: Final = 3
_TUNED_ON: Final = 1000  # the first seed that parameters are chosen on

Order = tuple[str, str, int, int]  # title, entrant, seed, trial
Chosen = dict[tuple[str, str], int]


def run(seeds: int = SEEDS, tuning: int = TUNING, workers: int = 2) -> dict[str, Any]:
    """Measure every claim; ``claims[title][entrant]`` has the mean AUC by seed and the paired difference."""
    started = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tuned = tuning_orders(tuning)
        chosen = choose(dict(zip(tuned, pool.map(measure, tuned), strict=True)))
        orders = final_orders(chosen, seeds)
        found = dict(zip(orders, pool.map(measure, orders), strict=True))
    minutes = round((time.monotonic() - started) / 60, 1)
    return {
        "seeds": seeds,
        "tuning": tuning,
        "minutes": minutes,
        "workers": workers,
        "claims": summary(found, chosen),
    }


def tuning_orders(seeds: int) -> list[Order]:
    """Return every entrant's grid on every seed of tuning, one trial an order."""
    return [
        (claim.title, name, _TUNED_ON + seed, position)
        for claim in CLAIMS
        for name, trials in claim.entrants.items()
        for position in range(len(trials))
        for seed in range(seeds)
    ]


def choose(found: Mapping[Order, float]) -> Chosen:
    """Return each entrant's best trial by its mean over the seeds of tuning; the first of equals."""
    scores: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (title, name, _, position), score in found.items():
        scores.setdefault((title, name), {}).setdefault(position, []).append(score)
    return {key: max(by_trial, key=lambda one: mean(by_trial[one])) for key, by_trial in scores.items()}


def final_orders(chosen: Chosen, seeds: int) -> list[Order]:
    """Return each entrant's chosen trial on every seed of the figures, seed by seed."""
    return [(title, name, seed, trial) for seed in range(seeds) for (title, name), trial in chosen.items()]


def measure(order: Order) -> float:
    """Return the mean AUC of a trial on a seed."""
    use_threads(1)
    title, name, seed, trial = order
    [claim] = [one for one in CLAIMS if one.title == title]
    return claim.measure(seed, claim.entrants[name][trial])


def summary(found: Mapping[Order, float], chosen: Chosen) -> dict[str, dict[str, dict[str, Any]]]:
    """Return figures by claim and entrant, beside the claim's first."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for claim in CLAIMS:
        areas = {name: _areas(found, claim.title, name) for name in claim.entrants}
        first = next(iter(areas.values()))
        shared = sorted(set.intersection(*(set(by_seed) for by_seed in areas.values())))
        table[claim.title] = {
            name: {
                "auc": [by_seed[seed] for seed in shared],
                "trial": claim.entrants[name][chosen[claim.title, name]].told(),
                "beside": interval([by_seed[seed] - first[seed] for seed in shared]),
            }
            for name, by_seed in areas.items()
        }
    return table


def _areas(found: Mapping[Order, float], title: str, name: str) -> dict[int, float]:
    return {seed: area for (of, who, seed, _), area in found.items() if (of, who) == (title, name)}


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a page."""
    lines = [_HEAD.format(**figures)]
    for claim in CLAIMS:
        lines += [f"## {claim.title}", "", claim.about, ""]
        lines += ["| | chosen | AUC | difference to the first | |", "| - " * 5 + "|"]
        lines += [_row(*one) for one in enumerate(figures["claims"][claim.title].items())]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(position: int, item: tuple[str, Mapping[str, Any]]) -> str:
    name, row = item
    beside = row["beside"]
    start = f"| {name} | {row['trial']} | {mean(row['auc']):.3f} |"
    if position == 0:
        return f"{start} | |"
    difference, verdict = told(beside)
    return f"{start} {difference} | {verdict} |"


_HEAD: Final = """# What papers claim of their strategies

Each strategy beside what it has to beat, where its paper says that it works: means over {seeds} seeds, which
draw the cases, the initial model and the order of training; differences are paired by seed, with 95 %
intervals (Student's t), one comparison at a time, without correction for their number. Parameters, those of
what has to be beaten too, are the best of a grid by the mean over {tuning} other seeds.
Data are small and training is short: directions, not what a hospital can expect.

```sh
python -m tests.benchmarks.bench_claims docs/federation/claims.md  # {minutes} minutes, {workers} cores
cloister bench claims --json figures.json                         # the same figures, of every seed, as JSON
```
"""


if __name__ == "__main__":
    found = run()
    Path(sys.argv[1]).write_text(markdown(found), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
