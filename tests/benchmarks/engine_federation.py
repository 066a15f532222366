"""The engine as it comes, to compare with: its own FedAvg, its own client for PyTorch, its own start-up kits.

All processes are real and speak mutual TLS over loopback, as ours do.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.appliance.federation.ring import Program, until
from tests.appliance.federation.wire import Wire
from tests.benchmarks.footprint import Footprint
from tests.benchmarks.measured import COORDINATOR, Measured
from tests.dicom_node.support import free_port
from tests.trainer.samples import drawn_dataset
from trainer.engine.exchange import save_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.footprint import Processes
    from trainer.task import TaskSpec

ADMIN: Final = "bench@cloister.local"
HOST: Final = "localhost"
INSTALLED: Final = ("trainer", "inference")
_APP: Final = "nvflare.private.fed.app"
_HERE: Final = Path(__file__).parent
# A round's start ends the one before it.
_ROUND: Final = re.compile(
    r"^(\S+ \S+) - FedAvg - .*\brun=([\w-]+).*\n[-=]+\n +(?:Round \d+ started|Finished FedAvg)\.",
    re.MULTILINE,
)


@dataclass
class EngineFederation:
    """A provisioned federation of the engine's own; ``programs`` by participant, the server's first."""

    folder: Path
    kits: Path
    port: int
    sites: tuple[str, ...]
    programs: dict[str, Program] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)

    def start(self) -> None:
        """Start the server, then each site over a wire that counts."""
        self._start(HOST, "server", "fed_server.json")
        until(lambda: b"Server started" in self.programs[HOST].log.read_bytes(), 60.0, "the server starts")
        for site in self.sites:
            self.wires[site] = Wire((HOST, self.port))
            _point(self.kits / site / "startup" / "fed_client.json", self.wires[site].port)
            self._start(site, "client", "fed_client.json")

    def stop(self) -> None:
        """End everything."""
        for program in reversed(self.programs.values()):
            program.kill()
        for wire in self.wires.values():
            wire.close()

    def processes(self) -> Processes:
        """Return the running processes by place and role."""
        found: Processes = {}
        for name, program in self.programs.items():
            place, side = (COORDINATOR, COORDINATOR) if name == HOST else (name, "site")
            for pid in program.tree():
                role = f"{side} engine" if pid == program.pid else f"{side} engine job"
                found.setdefault(place, {}).setdefault(role, []).append(pid)
        return found

    def measure(self, task: TaskSpec, rounds: int, interval_s: float | None, timeout_s: float) -> Measured:
        """Run one job to its end and read what it left.

        Parameters
        ----------
        interval_s : float, optional
            How often a site asks for its next task; None leaves the engine's own two seconds.
        """
        (self.folder / "task.json").write_text(json.dumps(task.to_json()), encoding="utf-8")
        for seed, site in enumerate(self.sites):
            save_dataset(self.folder, site, drawn_dataset(seed, task, train=20, validation=4))
        job = _export(self.folder, task, len(self.sites), rounds, interval_s)
        with (
            Footprint(self.processes, self.wires) as footprint,
            _session(self.kits / ADMIN) as session,
        ):
            job_id = session.submit_job(str(job))
            until(lambda: _status(session, job_id).startswith("FINISHED"), timeout_s, "the engine's job ends")
            ended = _status(session, job_id)
        ok = ended == "FINISHED:COMPLETED"
        if not ok:
            raise RuntimeError(f"the engine's own job ended as {ended}: {self.programs[self.sites[0]].log}")
        return Measured(ok, self._ends(job_id), self._training(), footprint)

    def _start(self, name: str, kind: str, configuration: str) -> None:
        kit = self.kits / name
        argv = [
            sys.executable,
            "-u",
            "-m",
            f"{_APP}.{kind}.{kind}_train",
            "-m",
            str(kit),
            "-s",
            configuration,
        ]
        argv += ["--set", "secure_train=true", "org=cloister", "config_folder=config"]
        argv += [] if kind == "server" else [f"uid={name}"]
        self.programs[name] = Program(argv, self.folder / f"{name}.log")
        self.programs[name].start()

    def _ends(self, job_id: str) -> list[float]:
        """Return when rounds ended, from what the server's log says in the time of this machine."""
        text = self.programs[HOST].log.read_text(encoding="utf-8")
        stamps = [stamp for stamp, job in _ROUND.findall(text) if job == job_id]
        return [
            datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp() for stamp in stamps
        ][1:]

    def _training(self) -> list[float]:
        """Return how long the slowest site trained in each round."""
        files = [self.folder / f"{site}.seconds.json" for site in self.sites]
        return [max(all_sites) for all_sites in zip(*(json.loads(f.read_text()) for f in files), strict=True)]


@contextlib.contextmanager
def running_engine(folder: Path, sites: tuple[str, ...]) -> Iterator[EngineFederation]:
    """Provision and start; everything is gone afterwards."""
    folder.mkdir(parents=True)
    federation = _provision(folder, sites)
    try:
        federation.start()
        yield federation
    finally:
        federation.stop()


def _provision(folder: Path, sites: tuple[str, ...]) -> EngineFederation:
    from nvflare.lighter.entity import Participant, Project  # noqa: PLC0415 - heavy
    from nvflare.lighter.impl.cert import CertBuilder  # noqa: PLC0415
    from nvflare.lighter.impl.static_file import StaticFileBuilder  # noqa: PLC0415
    from nvflare.lighter.impl.workspace import WorkspaceBuilder  # noqa: PLC0415
    from nvflare.lighter.provisioner import Provisioner  # noqa: PLC0415

    port = free_port()
    project = Project("bench", "The engine as it comes", props={"api_version": 3})
    project.add_participant(Participant("server", HOST, "cloister", {"fed_learn_port": port}))
    project.add_participant(Participant("admin", ADMIN, "cloister", {"role": "project_admin"}))
    for site in sites:
        project.add_participant(Participant("client", site, "cloister"))
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config", scheme="tcp"), CertBuilder()]
    with contextlib.redirect_stdout(io.StringIO()):
        context = Provisioner(str(folder / "provision"), builders).provision(project)
    return EngineFederation(folder, Path(context["current_prod_dir"]), port, sites)


def _point(path: Path, port: int) -> None:
    """Let a site's kit name another port of the same host."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["servers"][0]["service"]["target"] = f"{HOST}:{port}"
    path.write_text(json.dumps(content), encoding="utf-8")


def _export(folder: Path, task: TaskSpec, sites: int, rounds: int, interval_s: float | None) -> Path:
    """Write the job as the engine's recipe makes it."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe  # noqa: PLC0415 - heavy

    network = {"name": task.network.name, "parameters": dict(task.network.parameters)}
    recipe = FedAvgRecipe(
        name="bench",
        model={"class_path": "tests.benchmarks.engine_model.Network", "args": network},
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(_HERE / "engine_client.py"),
        train_args=str(folder),
    )
    jobs = folder / f"jobs-{len(list(folder.glob('jobs-*')))}"
    recipe.export(str(jobs))
    [configuration] = jobs.glob("*/app*/config/config_fed_server.json")
    content = json.loads(configuration.read_text(encoding="utf-8"))
    if interval_s is not None:
        content["server"] = {**content.get("server", {}), "task_request_interval": interval_s}
    configuration.write_text(json.dumps(content), encoding="utf-8")
    # The engine packs every module that the script imports, but no __init__: what is installed shall run.
    for packed in jobs.glob("*/app*/custom/*/"):
        if packed.name in INSTALLED:
            shutil.rmtree(packed)
    return jobs / "bench"


@contextlib.contextmanager
def _session(kit: Path) -> Iterator[Any]:
    from nvflare.fuel.flare_api.flare_api import new_secure_session  # noqa: PLC0415 - heavy

    with contextlib.redirect_stdout(io.StringIO()):
        session = new_secure_session(ADMIN, str(kit), timeout=60.0)
    try:
        yield session
    finally:
        session.close()


def _status(session: Any, job_id: str) -> str:
    return str(session.get_job_meta(job_id).get("status", ""))
