"""What the federation costs beyond training: seconds per round, memory per process, bytes per round.

Three sites and a coordinator on this machine, all processes real, TLS between them; a small network, so that
the figures are the federation's own. ``cloister bench federation`` runs it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance import node
from tests.appliance.federation.ring import Member, Ring, running_ring, until

if TYPE_CHECKING:
    from trainer.federation.plan import Plan

ROUNDS: Final = 10


def run(json_path: Path | None = None) -> dict[str, Any]:
    """Measure; write the figures to ``json_path`` if given, and return them."""
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder, running_ring(Path(folder)) as ring:
        figures = _measure(ring)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _measure(ring: Ring) -> dict[str, Any]:
    started = time.monotonic()
    plan = ring.submit(total_rounds=ROUNDS, min_sites=3, round_timeout_s=300.0)
    ring.approve(plan, 120)
    shown = time.monotonic() - started
    ring.until_round(plan, 2, 300)
    memory = _memory(ring)
    view = ring.until_over(plan, 300)
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
        "pss_mib": memory,
    }


def _beyond_training(ring: Ring, plan: Plan) -> list[float]:
    """Return, per round, its length less the slowest site's training."""
    slowest: dict[int, float] = {}
    for member in ring.members.values():
        for row in member.rounds(plan.run_id):
            if row.kind == "train":
                slowest[row.number] = max(slowest.get(row.number, 0.0), row.train_seconds or 0.0)
    return [one.seconds - slowest[one.number] for one in ring.view(plan).rounds]


def _memory(ring: Ring) -> dict[str, Any]:
    """Return the proportional set size of every process of the federation, in MiB, summed by role."""
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
    return {
        **{role: sorted(sizes) for role, sizes in roles.items()},
        "sum": sum(sum(s) for s in roles.values()),
    }


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
