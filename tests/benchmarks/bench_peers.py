"""Learning between peers: the three rules on the sites of all strategies, and graphs of twelve sites.

``python -m tests.benchmarks.bench_peers`` prints the tables; ``cloister bench peers`` the figures as JSON.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean
from typing import Any, Final

from tests.benchmarks.bench_strategies import (
    DESCENT,
    ROUNDS,
    SEEDS,
    Found,
    interval,
    measure,
    measured,
    row_of,
    summary,
)
from tests.benchmarks.skewed_sites import SETS, many_sites
from trainer.local_round import use_threads
from trainer.peers import PEERS
from trainer.simulation import simulate

NAMES: Final = ("fedavg", *PEERS)
# From the second round on a third of the sites is away, another third each time.
_AWAY: Final = {
    number: [f"site-{i:02}" for i in range(12) if (i + number) % 3 == 0] for number in range(2, 100)
}
WAYS: Final[dict[str, dict[str, Any]]] = {
    "FedAvg": {},
    "ring, 32 bits": {"strategy": "dfedavgm", "parameters": {"bits": 32}},
    "ring, 8 bits": {"strategy": "dfedavgm", "parameters": {"bits": 8}},
    "ring, 4 bits": {"strategy": "dfedavgm", "parameters": {"bits": 4}},
    "random graph, 32 bits": {"strategy": "dfedavgm", "parameters": {"bits": 32, "density": 0.3}},
    "random graph, 8 bits": {"strategy": "dfedavgm", "parameters": {"bits": 8, "density": 0.3}},
    "random graph, 4 bits": {"strategy": "dfedavgm", "parameters": {"bits": 4, "density": 0.3}},
    "ring, 8 bits, a third away": {"strategy": "dfedavgm", "parameters": {"bits": 8}, "away": _AWAY},
    "BrainTorrent": {"strategy": "braintorrent"},
    "BrainTorrent, a third away": {"strategy": "braintorrent", "away": _AWAY},
}


def run(seeds: int = SEEDS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure; ``sets`` is as of ``bench strategies``, ``graphs[way]`` by seed."""
    started = time.monotonic()
    orders = [(data, seed, rounds) for seed in range(seeds) for data in SETS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(orders, pool.map(_measure, orders), strict=True))
        graphs = list(pool.map(graph_figures, [(seed, rounds) for seed in range(seeds)]))
    return {
        "seeds": seeds,
        "rounds": rounds,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "sets": summary(found, NAMES),
        "graphs": {way: [one[way] for one in graphs] for way in WAYS},
    }


def _measure(order: tuple[str, int, int]) -> Found:
    return measure(order, NAMES)


def graph_figures(order: tuple[int, int]) -> Found:
    """Run all ways at twelve sites, from one seed; all train by the same gradient descent."""
    seed, rounds = order
    use_threads(1)
    datasets = many_sites(seed)
    found = {}
    for way, options in WAYS.items():
        rule = PEERS.get(options.get("strategy", ""))
        turns = rounds if rule is None else rule.rounds(rounds, len(datasets))
        found[way] = measured(simulate(DESCENT, datasets, rounds=turns, seed=seed, **options))
    return found


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as tables."""
    lines = []
    for data, table in figures["sets"].items():
        lines += [f"### {data.capitalize()}", "", *(row_of(name, row) for name, row in table.items()), ""]
    lines += ["| way | AUC | worst site | beside `fedavg` | KiB sent per local round |", "| - " * 5 + "|"]
    for way, by_seed in figures["graphs"].items():
        pairs = zip(by_seed, figures["graphs"]["FedAvg"], strict=True)
        beside = interval([one["auc"] - other["auc"] for one, other in pairs])
        told = f"{beside['mean']:+.3f} [{beside['low']:+.3f}, {beside['high']:+.3f}]"
        cells = [way, *(f"{mean(one[key] for one in by_seed):.3f}" for key in ("auc", "worst"))]
        cells += ["" if way == "FedAvg" else told, f"{by_seed[0]['kib']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{figures['minutes']} minutes"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown(run()))
