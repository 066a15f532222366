"""Run a simulation on the federation engine's simulator: processes of their own, messages, one job."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from trainer import strategies, weights_io
from trainer.engine.exchange import MODEL, RECORDS, TASK_NAME, Order, load_own, save_dataset
from trainer.errors import SimulationError
from trainer.first_model import first_model
from trainer.simulation import RoundRecord, Simulation, SiteRecord, final_metrics

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trainer.compression import Compression
    from trainer.datasets import Dataset
    from trainer.privacy.promise import Promise
    from trainer.task import TaskSpec
    from trainer.weights_io import Array

COMPONENTS: Final = "trainer.engine.components"
_SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}\Z")
_LOG_TAIL: Final = 2000


def simulate_on_engine(  # noqa: PLR0913 - as simulate
    task: TaskSpec,
    datasets: Mapping[str, Dataset],
    *,
    rounds: int,
    strategy: str = "fedavg",
    parameters: Mapping[str, Any] | None = None,
    initial: Mapping[str, Array] | None = None,
    seed: int = 0,
    privacy: Promise | None = None,
    compression: Compression | None = None,
    away: Mapping[int, Collection[str]] | None = None,
    time_limit_s: float = 3600.0,
) -> Simulation:
    """Do what :func:`trainer.simulation.simulate` does, through the engine; the models are the same.

    Each site has a process of its own with torch in it, two or three hundred MiB, and the engine takes its
    time to start and to end; for many sites or many runs the loop in one process is the thrifty way.

    Raises
    ------
    SimulationError
        If the engine ends without a result or takes longer than ``time_limit_s``.
    """
    chosen = strategies.get(strategy)
    chosen.check_parameters(parameters or {})
    if rounds < 1 or not datasets:
        raise SimulationError("nothing to simulate; expected at least one round and one site")
    if not all(_SITE_NAME.match(site) and site != "server" for site in datasets):
        raise SimulationError("site: expected a name of letters, digits and hyphens, not server")
    folder = Path(tempfile.mkdtemp(prefix="cloister-simulation-"))
    try:
        sites, parameters = tuple(datasets), parameters or {}
        order = Order(task, sites, rounds, strategy, parameters, seed, privacy, compression, away or {})
        order.write(folder)
        weights_io.save(folder / MODEL, first_model(task, strategy, seed, initial))
        for site, dataset in datasets.items():
            save_dataset(folder, site, dataset)
        _write_job(folder, list(datasets))
        _run(folder, list(datasets), time_limit_s)
        records = tuple(
            RoundRecord(
                number=record["number"],
                seconds=record["seconds"],
                sites={site: SiteRecord.from_json(item) for site, item in record["sites"].items()},
                away=tuple(record["away"]),
            )
            for record in json.loads((folder / RECORDS).read_text(encoding="utf-8"))
        )
        weights = weights_io.load(folder / MODEL)
        own = {site: load_own(folder, site) for site in datasets}
    finally:
        shutil.rmtree(folder)
    return Simulation(weights, records, final_metrics(task, strategy, weights, own, datasets))


def _write_job(folder: Path, sites: list[str]) -> None:
    config = folder / "job" / "app" / "config"
    config.mkdir(parents=True)
    local = folder / "workspace" / "local"
    local.mkdir(parents=True)
    arguments = {"folder": str(folder)}
    files = {
        folder / "job" / "meta.json": {
            "name": "simulation",
            "resource_spec": {},
            "deploy_map": {"app": ["@ALL"]},
            "min_clients": len(sites),
        },
        config / "config_fed_server.json": {
            "format_version": 2,
            "server": {"task_request_interval": 0.2},
            "workflows": [{"id": "rounds", "path": f"{COMPONENTS}.SimulationController", "args": arguments}],
        },
        config / "config_fed_client.json": {
            "format_version": 2,
            "executors": [
                {
                    "tasks": [TASK_NAME],
                    "executor": {"path": f"{COMPONENTS}.SimulationExecutor", "args": arguments},
                }
            ],
        },
        local / "resources.json": {"format_version": 2, "class_allow_list": [COMPONENTS]},
    }
    for path, content in files.items():
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _command(folder: Path, sites: list[str]) -> list[str]:
    """Name one thread per site: with fewer the engine starts a site's process anew for each task."""
    module = "nvflare.private.fed.app.simulator.simulator"
    names, workspace = ",".join(sites), str(folder / "workspace")
    return [
        sys.executable,
        "-m",
        module,
        str(folder / "job"),
        *("-w", workspace),
        *("-c", names),
        *("-t", str(len(sites))),
    ]


def _run(folder: Path, sites: list[str], time_limit_s: float) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    log_path = folder / "engine.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(folder, sites),
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            raise SimulationError(
                f"the engine did not end within {time_limit_s} s", _tail(log_path)
            ) from None
        finally:
            _end_all(folder)
            process.wait()
    if code != 0:
        raise SimulationError(f"the engine ended with code {code}", _tail(log_path))
    if not (folder / RECORDS).is_file():
        raise SimulationError("the engine ended without a result", _tail(log_path))


def _end_all(folder: Path) -> None:
    """End what runs on this folder: the engine gives each site's process a session of its own."""
    for found in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in argument for argument in found.cmdline()):
                found.kill()


def _tail(path: Path) -> str:
    return path.read_bytes()[-_LOG_TAIL:].decode("utf-8", errors="replace")
