"""How much memory the coordinator's part of a round takes by the number of sites, without their engine.

A process of its own keeps update after update as they arrive, aggregates them and writes the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.federation import checkpoints
from appliance.federation.answers import Answer
from appliance.federation.messages import SiteAnswer
from appliance.federation.shelf import Carriage, Shelf
from tests.benchmarks.footprint import forget_peak, memory_of
from tests.trainer.federation.plans import make_plan
from trainer import weights_io
from trainer.federation import aggregation
from trainer.federation.plan import Strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.weights_io import Array

SAID = SiteAnswer("", "", 24, {}, 0.0, "", "")


def measure(model: Mapping[str, Array], counts: list[int], strategy: str, folder: Path) -> dict[str, Any]:
    """Return seconds and peak memory of one round for each number of sites."""
    weights_io.save(folder / "model.safetensors", model)
    return {str(count): _in_a_process(folder, count, strategy) for count in counts}


def _in_a_process(folder: Path, count: int, strategy: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.benchmarks.many_updates", str(folder), str(count), strategy]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def one_round(folder: Path, count: int, strategy: str) -> dict[str, Any]:
    """Do the coordinator's part of a round in this process."""
    plan = make_plan(min_sites=count, strategy=Strategy(strategy, {}))
    model = weights_io.load(folder / "model.safetensors")
    shelf = Shelf.empty(folder / "arrived", "job", Carriage(plan, 1, model))
    forget_peak(os.getpid())
    before, started = memory_of(os.getpid()), time.perf_counter()
    answers = [shelf.keep(Answer(f"site-{i}", SAID, _update(model, i))) for i in range(count)]
    kept = time.perf_counter()
    updates = [aggregation.Update(one.site, one.arrays, one.said.samples) for one in answers]
    result = aggregation.aggregate(model, {}, updates, plan.strategy, count, plan.bounds)
    checkpoints.write(folder / "next.safetensors", result.weights, result.state)
    after = memory_of(os.getpid())
    shelf.clear()
    if before is None or after is None:
        raise RuntimeError("proc(5) says nothing of this process")
    return {
        "seconds_keeping_updates": round(kept - started, 1),
        "seconds_aggregating": round(time.perf_counter() - kept, 1),
        "mib_before": round(before.resident),
        "peak_mib": round(after.largest),
    }


def _update(model: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Return what a site might send: as large as the model, and another one for each site."""
    return {
        name: array * np.asarray(1e-4 * (1 + seed), array.dtype) if array.dtype.kind == "f" else array
        for name, array in model.items()
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one_round(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
