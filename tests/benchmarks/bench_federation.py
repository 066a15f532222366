"""What the federation costs beyond training: seconds per round, memory per process, bytes per round.

Three sites and a coordinator on this machine, all processes real, TLS between them. Networks of 0.1, 1.2 and
25 million parameters train for one step a round, so that the figures are the federation's own.
``cloister bench federation`` runs it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from appliance import node
from tests.appliance.federation.ring import Member, Ring, running_ring, until
from tests.trainer.samples import small_task
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from trainer.federation.plan import Plan

MIB: Final = 2**20
LOOK_EVERY_S: Final = 0.5
# Parameters in millions -> network and rounds.
SIZES: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "0.1": ({"features": [8, 16, 32, 64], "groups": 4}, 10),
    "1.2": ({"features": [32, 64, 128, 256], "groups": 4}, 6),
    "25": ({"features": [96, 192, 384, 768], "blocks": [2, 2, 2, 2], "groups": 4}, 4),
}


def run(json_path: Path | None = None) -> dict[str, Any]:
    """Measure; write the figures to ``json_path`` if given, and return them."""
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder, running_ring(Path(folder)) as ring:
        sizes = {size: _measure(ring, *how) for size, how in SIZES.items()}
    figures = {"ok": all(one["ok"] for one in sizes.values()), "million_parameters": sizes}
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _measure(ring: Ring, network: dict[str, Any], rounds: int) -> dict[str, Any]:
    task = small_task(
        network=NetworkSpec("resnet", network),
        local=LocalSpec(batch_size=8, local_steps=1, learning_rate=1e-3),
    )
    started = time.monotonic()
    plan = ring.submit(total_rounds=rounds, min_sites=3, round_timeout_s=600.0, task=task)
    ring.approve(plan, 120)
    shown = time.monotonic() - started
    with _Peaks(ring) as peaks:
        view = ring.until_over(plan, 600)
    ended = time.monotonic()
    beyond = _beyond_training(ring, plan)
    until(lambda: not _job_processes(ring), 60, "the engine's job processes end")
    return {
        "ok": view.state == "done",
        "rounds": view.finished_rounds,
        "sites": len(ring.members),
        "seconds_until_the_plan_is_shown": round(shown, 2),
        "seconds_per_round": round(statistics.median(one.seconds for one in view.rounds[1:]), 3),
        "seconds_per_round_beyond_training": round(statistics.median(beyond[1:]), 3),
        "seconds_first_round_beyond_training": round(beyond[0], 2),
        "seconds_teardown": round(time.monotonic() - ended, 2),
        "bytes_per_update": view.rounds[0].sites[0].bytes_received,
        "peak_pss_mib": dict(sorted(peaks.found.items())),
    }


def _beyond_training(ring: Ring, plan: Plan) -> list[float]:
    """Return, per round, its length less the slowest site's training."""
    slowest: dict[int, float] = {}
    for member in ring.members.values():
        for row in member.rounds(plan.run_id):
            if row.kind == "train":
                slowest[row.number] = max(slowest.get(row.number, 0.0), row.train_seconds or 0.0)
    return [one.seconds - slowest[one.number] for one in ring.view(plan).rounds]


class _Peaks:
    """Looks at every process of the federation while a run goes on; ``found`` is the largest of each role."""

    def __init__(self, ring: Ring) -> None:
        self.found: Counter[str] = Counter()
        self._ring = ring
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peaks")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            for role, sizes in _memory(self._ring).items():
                self.found[role] = max(self.found[role], *sizes)


def _memory(ring: Ring) -> dict[str, list[int]]:
    """Return the proportional set size of every process of the federation, in MiB, by role."""
    roles: dict[str, list[int]] = {}
    trees = [(ring.coordinator.tree(), {ring.coordinator.pid: "coordinator up"}, "coordinator")]
    trees.extend(
        (member.program.tree(), {member.program.pid: "supervisor", **_table(member)}, "site")
        for member in ring.members.values()
    )
    for pids, names, side in trees:
        for pid in pids:
            size = _pss_mib(pid)
            if size is not None:
                roles.setdefault(_role(pid, names, side), []).append(size)
    return roles


def _table(member: Member) -> dict[int, str]:
    """Return the names of a node's processes by process number, as its supervisor wrote them down."""
    [path] = node.run_dir(member.settings).glob("processes*.json")
    table = json.loads(path.read_text(encoding="utf-8"))["processes"]
    return {row["pid"]: name for name, row in table.items() if row["pid"] is not None}


def _role(pid: int, names: dict[int, str], side: str) -> str:
    if pid in names:
        return names[pid]
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return "ended"
    if "_process" in line and "nvflare" in line:
        return f"{side} engine job"
    return f"{side} engine" if "enginehost" in line else "research_worker child"


def _pss_mib(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("Pss:")), None)


def _job_processes(ring: Ring) -> list[int]:
    programs = [ring.coordinator, *(member.program for member in ring.members.values())]
    return [pid for program in programs for pid in program.find("nvflare.private.fed.app", "_process")]
