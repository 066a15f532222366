"""Compressed updates beside whole ones, bytes and AUC: ``cloister bench compression``.

``python -m tests.benchmarks.bench_compression results.md`` writes the table.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from inference.preprocessing import PreprocessingSpec
from tests.benchmarks.bench_strategies import interval
from tests.benchmarks.skewed_sites import TASK, adults_at_64_pixels, two_hospitals
from trainer.compression import Compression
from trainer.local_round import use_threads
from trainer.simulation import simulate
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.datasets import Dataset
    from trainer.task import TaskSpec

SEEDS: Final = 16
ROUNDS: Final = 10
NONE: Final = "none"
WAYS: Final = (NONE, "float16", "int8", "top-k", "sketch", "int8:both_ways", "sketch:both_ways")
EQUAL: Final = 0.005
# Chosen before anything was measured: some 50,000 numbers, group normalisation.
_TASK: Final = replace(
    TASK,
    network=NetworkSpec("resnet", {"features": [8, 16, 32, 32], "groups": 4}),
    local=LocalSpec(batch_size=16, local_steps=8, learning_rate=3e-3, shift_fraction=0.0),
)
SETS: Final[dict[str, tuple[TaskSpec, Callable[[int], dict[str, Dataset]]]]] = {
    "two hospitals, 28 pixels": (_TASK, two_hospitals),
    "one hospital, 64 pixels": (
        replace(_TASK, preprocessing=PreprocessingSpec(rows=64, columns=64)),
        adults_at_64_pixels,
    ),
}


def run(seeds: int = SEEDS, rounds: int = ROUNDS, workers: int = 2) -> dict[str, Any]:
    """Measure all ways; ``sets[data][way]`` has AUC by seed, bytes, and the paired difference to none."""
    started = time.monotonic()
    orders = [(data, seed, rounds) for seed in range(seeds) for data in SETS]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(orders, pool.map(measure, orders), strict=True))
    sets = {data: _paired([found[data, seed, rounds] for seed in range(seeds)]) for data in SETS}
    minutes = round((time.monotonic() - started) / 60, 1)
    return {"seeds": seeds, "rounds": rounds, "minutes": minutes, "workers": workers, "sets": sets}


def measure(order: tuple[str, int, int]) -> dict[str, dict[str, float]]:
    """Run FedAvg in every way from one seed; bytes are of one update, as a weights file."""
    data, seed, rounds = order
    use_threads(1)
    task, make = SETS[data]
    datasets = make(seed)
    found = {}
    for way in WAYS:
        compression = None if way == NONE else Compression.parse(way)
        result = simulate(task, datasets, rounds=rounds, seed=seed, compression=compression)
        areas = [one.auc.estimate for one in result.final.values() if one.auc is not None]
        records = [one for record in result.rounds for one in record.sites.values()]
        sent, came = mean(one.update_bytes for one in records), mean(one.model_bytes for one in records)
        found[way] = {"auc": mean(areas), "bytes": sent, "came": came}
    return found


def _paired(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {
        way: {
            "auc": [one[way]["auc"] for one in by_seed],
            "bytes": by_seed[0][way]["bytes"],
            "came": by_seed[0][way]["came"],
            "times_less": by_seed[0][NONE]["bytes"] / by_seed[0][way]["bytes"],
            "times_less_in_all": _in_all(by_seed[0][NONE]) / _in_all(by_seed[0][way]),
            "beside_none": interval([one[way]["auc"] - one[NONE]["auc"] for one in by_seed]),
        }
        for way in WAYS
    }


def _in_all(one: dict[str, float]) -> float:
    return one["bytes"] + one["came"]


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a section of a page."""
    lines = [_HEAD.format(**figures, equal=EQUAL, steps=_TASK.local.local_steps)]
    for data, table in figures["sets"].items():
        lines += [f"### {data.capitalize()}", ""]
        lines += [
            "| way | bytes of an update | times less | there and back | AUC | beside `none` | |",
            "| - " * 7 + "|",
        ]
        lines += [_row(way, row) for way, row in table.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(way: str, row: dict[str, Any]) -> str:
    beside = row["beside_none"]
    difference = f"{beside['mean']:+.4f} [{beside['low']:+.4f}, {beside['high']:+.4f}]"
    if way == NONE:
        difference = verdict = ""
    elif beside["low"] > -EQUAL:
        verdict = "equal or better"
    elif beside["high"] < -EQUAL:
        verdict = "worse"
    else:
        verdict = "not shown equal"
    cells = [
        way,
        f"{row['bytes']:.0f}",
        f"{row['times_less']:.1f}",
        f"{row['times_less_in_all']:.1f}",
        f"{mean(row['auc']):.3f}",
        difference,
        verdict,
    ]
    return f"| {' | '.join(cells)} |"


_HEAD: Final = """## Compressed updates

FedAvg with updates packed as `docs/federation/compression.md` says, beside whole ones: means over {seeds}
seeds, paired by seed, with the 95 % interval (Student's t). Four sites of at most 64 training and 100
held-out cases, {rounds} rounds of {steps} steps, a residual network with group normalisation. "Equal or
better": the interval's lower end is above -{equal} AUC; "worse": its upper end is below. Bytes are of one
update's weights file, its header included; "there and back" counts the global model, too.
`cloister bench compression` took {minutes} minutes on {workers} cores.
"""


if __name__ == "__main__":
    figures = run()
    Path(sys.argv[1]).write_text(markdown(figures), encoding="utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
