"""What the federation costs, beside the engine's own client for PyTorch on the same models and machine.

All processes are real, with TLS between them; networks train for one step a round, so that the figures are
the federation's own. ``cloister bench federation`` runs it, in parts if asked: ``beside`` measures rounds of
``--sizes`` (million parameters) both ways, ``many`` the coordinator's memory for ``--counts`` sites,
``long`` whether memory grows over ``--long-rounds``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest
import torch

from tests.appliance.federation.ring import SITES, running_ring
from tests.benchmarks import cloister_federation, many_updates
from tests.benchmarks.engine_federation import running_engine
from tests.benchmarks.measured import BY_SITES, MIB, side_by_side
from tests.trainer.samples import small_task
from trainer.networks import build, initial_weights
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.measured import Measured
    from trainer.task import TaskSpec

LONG: Final = "1 long"
TIMEOUT_S: Final = 1800.0
ASK_EVERY_S: Final = 0.2  # as our jobs have it; the engine's own is two seconds
# What coordinator and site hold at most, in models, and each beside them: measured at 25 million parameters.
OUR_MODELS: Final = (8, 5)
ENGINE_MODELS: Final = (13, 6)
BASE_MIB: Final = 600
WARM_UP: Final = 0.2  # of a long run: what libraries load and pools fill is no leak
# Parameters in millions -> network and rounds.
SIZES: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "0.1": ({"features": [8, 16, 32, 64], "groups": 4}, 4),
    "1": ({"features": [32, 64, 128, 256], "groups": 4}, 8),
    "25": ({"features": [96, 192, 384, 768], "blocks": [2, 2, 2, 2], "groups": 4}, 5),
    "250": ({"features": [128, 256, 512, 1024], "blocks": [2, 2, 2, 13], "groups": 4}, 3),
}


def run(
    sizes: str = "1,25,250",
    rounds: int = 0,
    sites: int = 2,
    counts: str = "2,5,10,50",
    counts_size: str = "25",
    long_rounds: int = 100,
    parts: str = "beside,many,long",
) -> dict[str, Any]:
    """Measure; ``rounds`` 0 takes as many as each size needs.

    ``ok`` says that everything was measured. Whether a goal is met stands beside its figure.
    """
    names, asked = SITES[:sites], set(parts.split(","))
    lengths = {size: rounds or SIZES[size][1] for size in sizes.split(",") if "beside" in asked}
    long = long_rounds if "long" in asked else 0
    figures: dict[str, Any] = {"ok": True, "processors": os.cpu_count(), "sites": sites}
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as path:
        folder = Path(path)
        if lengths or long:
            ours = _ours(folder, names, lengths, long)
            engine = _engine(folder / "engine", names, lengths, long)
            figures |= _compared(lengths, long, ours, engine)
            figures["ok"] = all(one.ok for one in (*ours.values(), *engine.values()))
        if "many" in asked:
            figures["many"] = _many(counts, counts_size, folder)
    return figures


def task_of(size: str) -> TaskSpec:
    """Return a task whose network has so many million parameters and which trains for one step."""
    local = LocalSpec(batch_size=8, local_steps=1, learning_rate=1e-3, optimizer="sgd")
    return small_task(network=NetworkSpec("resnet", SIZES[size][0]), local=local)


def _ours(folder: Path, names: tuple[str, ...], lengths: Mapping[str, int], long: int) -> dict[str, Measured]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOISTER_FEDERATION__MAX_MODEL_MIB", "2048")  # the default takes 512
        # A large model's export takes longer than a test's lease, and nothing renews it meanwhile.
        patch.setenv("CLOISTER_TRAINING__ROUND_LEASE_S", "600")
        with running_ring(folder, names, wired=True) as ring:
            return {
                size: cloister_federation.measure(ring, task_of(size.partition(" ")[0]), rounds, TIMEOUT_S)
                for size, rounds in _all(lengths, long).items()
                if _fits(size.partition(" ")[0], len(names), OUR_MODELS)
            }


def _fits(size: str, sites: int, models: tuple[int, int]) -> bool:
    """Whether the memory that is free takes this: a run must not end what else goes on here."""
    held = (models[0] + sites * models[1]) * _model_mib(size) + (1 + sites) * BASE_MIB
    return bool(psutil.virtual_memory().available / MIB > held)


def _engine(
    folder: Path, names: tuple[str, ...], lengths: Mapping[str, int], long: int
) -> dict[str, Measured]:
    with running_engine(folder, names) as engine:
        return {
            size: engine.measure(task_of(size.partition(" ")[0]), rounds, ASK_EVERY_S, TIMEOUT_S)
            for size, rounds in _all(lengths, long).items()
            if _fits(size.partition(" ")[0], len(names), ENGINE_MODELS)
        }


def _all(lengths: Mapping[str, int], long: int) -> dict[str, int]:
    """Return rounds by size, the long run among them."""
    return {**lengths, **({LONG: long} if long else {})}


def _compared(
    lengths: Mapping[str, int], long: int, ours: Mapping[str, Measured], engine: Mapping[str, Measured]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if lengths:
        found["million_parameters"] = {
            size: side_by_side(_figures(ours, size), _figures(engine, size), _model_mib(size))
            for size in lengths
        }
    if long:
        found["long"] = {"cloister": ours[LONG].growth(WARM_UP), "engine": engine[LONG].growth(WARM_UP)}
    return found


def _figures(measured: Mapping[str, Measured], size: str) -> dict[str, Any]:
    return measured[size].figures() if size in measured else {}


def _model_mib(size: str) -> float:
    with torch.device("meta"):
        network = build(task_of(size).network)
    return float(sum(one.numel() * one.element_size() for one in network.state_dict().values())) / MIB


def _many(counts: str, size: str, folder: Path) -> dict[str, Any]:
    found = many_updates.measure(
        initial_weights(task_of(size)), [int(one) for one in counts.split(",")], "fedavg", folder
    )
    peaks = [one["peak_mib"] for one in found.values()]
    return {
        "million_parameters": size,
        "sites": found,
        "most_to_fewest": round(peaks[-1] / peaks[0], 2),
        "independent_of_sites": peaks[-1] <= BY_SITES * peaks[0],
    }
