"""Dice against privacy, on hippocampus volumes over four sites: ``cloister bench curve``.

``python -m tests.benchmarks.bench_curve docs/results.md`` writes that page's section.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks import bench_segmentation
from tests.benchmarks.bench_segmentation import prepare, sites_of, with_section
from trainer.local_round import use_threads
from trainer.privacy.promise import DP_SGD, SVT, UPDATE_GAUSSIAN, Promise
from trainer.simulation import simulate
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

SEEDS: Final = 6
ROUNDS: Final = 20
_DELTA: Final = 1e-3
_MOST: Final = 1e3  # what a plan may allow; nothing stops a simulation
# No mechanism protects batch normalisation.
TASK: Final = replace(
    bench_segmentation.TASK, network=NetworkSpec("unet", {"features": [8, 16, 32], "norm": "group"})
)
# A step takes as many subjects as one without protection, by chance.
_RATE: Final = TASK.local.batch_size / bench_segmentation.TRAIN
WAYS: Final[dict[str, Promise | None]] = {
    "none": None,
    **{
        f"dp-sgd, noise {noise:g}": Promise(DP_SGD, 0.5, noise, _MOST, _DELTA, sampling_rate=_RATE)
        for noise in (0.25, 0.5, 1.0, 2.0)
    },
    **{
        f"update-gaussian, noise {noise:g}": Promise(UPDATE_GAUSSIAN, 2.0, noise, _MOST, _DELTA)
        for noise in (0.05, 0.5)
    },
    **{
        f"svt, {share:.1%} of the numbers": Promise(SVT, 0.01, 0.05, _MOST, _DELTA, share=share)
        for share in (0.001, 0.01, 0.1)
    },
}


def run(seeds: int = SEEDS, rounds: int = ROUNDS, workers: int = 2) -> dict[str, Any]:
    """Measure all; ``ways[way]`` has epsilon of the run at a site and the mean Dice over sites, by seed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        prepared = Path(name) / "hippocampus.npz"
        prepare(prepared, Path(name) / "dicom")
        orders = [(str(prepared), way, seed, rounds) for seed in range(seeds) for way in WAYS]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            found = dict(zip(orders, pool.map(measure, orders), strict=True))
    minutes = round((time.monotonic() - started) / 60, 1)
    return {
        "seeds": seeds,
        "rounds": rounds,
        "minutes": minutes,
        "workers": workers,
        "ways": summary(found, rounds),
    }


def measure(order: tuple[str, str, int, int]) -> float:
    """Return the mean Dice over sites of one way from one seed."""
    path, way, seed, rounds = order
    use_threads(1)
    promise = WAYS[way]
    strategy = SVT if promise is not None and promise.mechanism == SVT else "fedavg"
    sites = sites_of(Path(path), "one scanner", seed)
    result = simulate(TASK, sites, rounds=rounds, strategy=strategy, seed=seed, privacy=promise)
    return mean(one.headline.estimate for one in result.final.values() if one.headline is not None)


def summary(found: Mapping[tuple[str, str, int, int], float], rounds: int) -> dict[str, dict[str, Any]]:
    """Return figures by way."""
    return {
        way: {
            "epsilon": math.inf if promise is None else promise.run_epsilon(TASK, rounds),
            "dice": [dice for (_, of, _, _), dice in sorted(found.items()) if of == way],
        }
        for way, promise in WAYS.items()
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a section of a page: a curve and a table."""
    ways = figures["ways"]
    curve = sorted(
        (row["epsilon"], mean(row["dice"])) for name, row in ways.items() if name.startswith(DP_SGD)
    )
    about = _HEAD.format(
        **figures,
        steps=TASK.local.local_steps,
        delta=_DELTA,
        none=mean(ways["none"]["dice"]),
        ticks=", ".join(f'"{epsilon:.3g}"' for epsilon, _ in curve),
        points=", ".join(f"{dice:.3f}" for _, dice in curve),
    )
    lines = [about, "| protection | epsilon | Dice |", "| - " * 3 + "|"]
    for name, row in ways.items():
        spread = stdev(row["dice"])
        lines.append(f"| {name} | {row['epsilon']:.3g} | {mean(row['dice']):.3f} ± {spread:.3f} |")
    return "\n".join(lines) + "\n"


_HEAD: Final = """## Dice against privacy

Hippocampus volumes over four sites, dealt out as [above](#hippocampus), one scanner; a U-Net with group
normalisation, {rounds} rounds of {steps} steps. Epsilon is of the whole run at a site, at delta {delta:g}.
Means over {seeds} seeds, after ± the standard deviation over seeds. Without protection Dice is {none:.3f}; of
`dp-sgd`:

```mermaid
xychart-beta
    x-axis "epsilon" [{ticks}]
    y-axis "Dice" 0 --> 1
    line [{points}]
```

`cloister bench curve` took {minutes} minutes on {workers} cores.
"""


if __name__ == "__main__":
    found = run()
    page = Path(sys.argv[1])
    page.write_text(with_section(page.read_text(encoding="utf-8"), markdown(found)), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
