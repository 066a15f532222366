"""Our side of the federation's benchmark: sites and coordinator as a hospital runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance import node
from appliance.db.base import WorkState
from appliance.federation import jobhost
from inference import session_process
from tests.appliance.federation.ring import until
from tests.benchmarks.footprint import Footprint
from tests.benchmarks.measured import COORDINATOR, Measured

if TYPE_CHECKING:
    from tests.appliance.federation.ring import Member, Ring
    from tests.benchmarks.footprint import Processes
    from trainer.federation.plan import Plan
    from trainer.task import TaskSpec

ROUND_TIMEOUT_S = 1200.0
LAST_STEP_LOOK_S = 0.1  # a process of a second is in it


def measure(ring: Ring, task: TaskSpec, rounds: int, timeout_s: float) -> Measured:
    """Run one plan to its end; its rounds are measured, then what sites do with the model."""
    plan = ring.submit(
        total_rounds=rounds, min_sites=len(ring.members), round_timeout_s=ROUND_TIMEOUT_S, task=task
    )
    ring.approve(plan, 180)
    with Footprint(lambda: processes(ring), ring.wires) as footprint:
        until(lambda: _is_past(ring, plan, rounds), timeout_s, "the last round")
    with Footprint(lambda: processes(ring), {}, LAST_STEP_LOOK_S) as last:
        view = ring.until_over(plan, timeout_s)
        until(lambda: view.state != "done" or _is_exported(ring, plan), timeout_s, "every site's export")
    until(lambda: not _job_processes(ring), 60, "the engine's job processes end")
    ends = [one.finished_at.timestamp() for one in view.rounds]
    return Measured(view.state == "done", ends, _training(ring, plan), footprint, last)


def _is_past(ring: Ring, plan: Plan, rounds: int) -> bool:
    view = ring.view(plan)
    return view.finished_rounds >= rounds or view.state not in {"queued", "running"}


def _is_exported(ring: Ring, plan: Plan) -> bool:
    """Whether every site has evaluated and exported the model; fails if one of them cannot."""
    rows = [row for one in ring.members.values() for row in one.rounds(plan.run_id) if row.kind == "finalize"]
    for row in rows:
        if row.state == WorkState.DEAD:
            pytest.fail(f"the last step at {row.site}: {row.reason}")
    return sum(row.state == WorkState.DONE for row in rows) == len(ring.members)


def _training(ring: Ring, plan: Plan) -> list[float]:
    """Return the slowest site's training of each round."""
    slowest: dict[int, float] = {}
    for member in ring.members.values():
        for row in member.rounds(plan.run_id):
            if row.kind == "train":
                slowest[row.number] = max(slowest.get(row.number, 0.0), row.train_seconds or 0.0)
    return [slowest[number] for number in sorted(slowest)]


def processes(ring: Ring) -> Processes:
    """Return every process of the federation by place and role."""
    trees = [(COORDINATOR, ring.coordinator.tree(), {ring.coordinator.pid: "coordinator up"}, COORDINATOR)]
    trees.extend(
        (name, member.program.tree(), {member.program.pid: "supervisor", **_table(member)}, "site")
        for name, member in ring.members.items()
    )
    found: Processes = {}
    for place, pids, names, side in trees:
        for pid in pids:
            found.setdefault(place, {}).setdefault(_role(pid, names, side), []).append(pid)
    return found


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
    if jobhost.MODULE in line:
        return f"{side} engine job"
    if session_process.__name__ in line:
        return "runtime of the exported model"
    return f"{side} engine" if "enginehost" in line else "research_worker child"


def _job_processes(ring: Ring) -> list[int]:
    programs = [ring.coordinator, *(member.program for member in ring.members.values())]
    return [pid for program in programs for pid in program.find(jobhost.MODULE)]
