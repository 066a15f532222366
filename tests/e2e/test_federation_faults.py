"""A federation of three whose processes are killed one after the other and whose wires fail, in one run.

The matrix has every process in every phase of a round. Whatever dies, the run goes on from the last finished
round; nobody does anything but start again what stands alone: the coordinator's program and the node's. In
``make test`` each process dies once, and each phase occurs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from appliance import node
from appliance.children import descendants_of
from appliance.federation import coordinator
from tests.appliance.federation.ring import SITES, Program, Ring, cloister, running_ring, until
from tests.appliance.federation.test_federation_e2e import check_arithmetic
from tests.further import FURTHER, cases
from tests.trainer.samples import small_task
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.appliance.federation.wire import Wire
    from trainer.federation.plan import Plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

WITHIN_S: Final = 180.0
VICTIM: Final = "north"
JOBS_ENDED: Final[list[str]] = []
"""Processes that were killed and took the run's job with them: another begins after each."""
HOLDER: Final = "west"  # stopped, it holds a round open for as long as it takes to aim


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("faults"), wired=True) as running:
        yield running


@pytest.fixture(scope="module")
def plan(ring: Ring) -> Plan:
    """A run that needs every site in every round, and is far from its end when the last cell is done."""
    task = small_task(local=LocalSpec(batch_size=8, local_steps=100, learning_rate=1e-3))
    made = ring.submit(total_rounds=2000, min_sites=3, task=task, round_timeout_s=240.0)
    ring.approve(made, 120.0)
    ring.until_round(made, 1, WITHIN_S)
    return made


def standing(ring: Ring, name: str, site: str = VICTIM) -> list[int]:
    """Return a standing process of a site by the name that its supervisor gives it."""
    [path] = node.run_dir(ring.members[site].settings).glob("processes*.json")
    pid = json.loads(path.read_text(encoding="utf-8"))["processes"][name]["pid"]
    return [] if pid is None else [pid]


def worker_children(ring: Ring, site: str = VICTIM) -> list[int]:
    return [child for pid in standing(ring, "research_worker", site) for child in descendants_of(pid)]


def own(program: Program) -> list[int]:
    return [program.pid] if program.pid else []


PROCESSES: Final[dict[str, Callable[[Ring], list[int]]]] = {
    "coordinator": lambda ring: own(ring.coordinator),
    "coordinator-engine": lambda ring: ring.coordinator.find("enginehost", "server"),
    "coordinator-job": lambda ring: ring.coordinator.find("jobhost server"),
    "node": lambda ring: own(ring.members[VICTIM].program),
    "site-engine": lambda ring: standing(ring, "federation_site"),
    "site-job": lambda ring: ring.members[VICTIM].program.find("jobhost site"),
    "agent": lambda ring: standing(ring, "research_agent"),
    "worker": lambda ring: standing(ring, "research_worker"),
    "worker-child": worker_children,
}


@dataclass(frozen=True)
class Moment:
    """What the records say: how many rounds are finished, and what the sites have done of the next one."""

    number: int
    asked: frozenset[str]
    training: frozenset[str]
    released: frozenset[str]


def moment(ring: Ring, plan: Plan) -> Moment:
    """Look at the book, then at the sites."""
    number = ring.view(plan).finished_rounds + 1
    rows = {
        name: [row for row in one.rounds(plan.run_id) if row.number == number]
        for name, one in ring.members.items()
    }
    train = {name: [row for row in found if row.kind == "train"] for name, found in rows.items()}
    return Moment(
        number,
        frozenset(name for name, found in train.items() if found),
        frozenset(name for name, found in train.items() if any(row.state == "running" for row in found)),
        frozenset(name for name, found in train.items() if any(row.receipt_id for row in found)),
    )


# The victim is at work; its update has left and the round still waits for the site that is held; the victim
# was asked and has the model, but no worker of it has begun.
PHASES: Final[dict[str, Callable[[Moment], bool]]] = {
    "training": lambda now: VICTIM in now.training,
    "released": lambda now: VICTIM in now.released and HOLDER not in now.released,
    "sent": lambda now: VICTIM in now.asked and not {VICTIM} & (now.training | now.released),
}
CELLS: Final = list(product(PROCESSES, ("training", "released", "sent", "between", "admit")))
FIRST: Final = {
    "coordinator": "released",
    "coordinator-engine": "training",
    "coordinator-job": "between",
    "node": "training",
    "site-engine": "training",
    "site-job": "sent",
    "agent": "training",
    "worker": "admit",
    "worker-child": "training",
}


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop processes where they are; what of them is left goes on afterwards."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def held(ring: Ring, phase: str) -> Iterator[None]:
    """Hold the round that is under way, or the next one, where a phase takes aiming."""
    if phase == "released":
        until(lambda: bool(worker_children(ring, HOLDER)), WITHIN_S, "the site to hold has a worker")
        with stopped(worker_children(ring, HOLDER)):
            yield
    elif phase == "sent":
        until(lambda: bool(worker_children(ring)), WITHIN_S, "the victim has a worker")
        with stopped([*standing(ring, "research_worker"), *worker_children(ring)]):
            yield
    else:
        yield


def aimed(ring: Ring, plan: Plan, phase: str) -> int:
    """Wait for a phase; return the round that is in it."""
    seen: list[int] = []

    def reached() -> bool:
        now = moment(ring, plan)
        seen.append(now.number)
        return PHASES[phase](now)

    until(reached, WITHIN_S, f"{VICTIM} is {phase}")
    return seen[-1]


def killed(ring: Ring, process: str) -> None:
    """Kill a process; a program that nobody supervises is started again when all below it ended."""
    if process.startswith("coordinator"):
        JOBS_ENDED.append(process)
    programs = {"coordinator": ring.coordinator, "node": ring.members[VICTIM].program}
    if process in programs:
        program = programs[process]
        below = program.tree()
        program.kill_alone()
        until(lambda: not any(map(_lives, below)), 60.0, f"everything below the {process} has ended")
        program.start()
        return
    pids = PROCESSES[process](ring)
    assert pids, process
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def goes_on(ring: Ring, plan: Plan, number: int) -> None:
    until(lambda: ring.view(plan).finished_rounds > number, WITHIN_S, f"round {number + 1} after the fault")
    assert ring.view(plan).state in {"queued", "running"}


@pytest.mark.parametrize("cell", cases(CELLS, list(FIRST.items()), {cell: "-".join(cell) for cell in CELLS}))
def test_the_run_goes_on_whatever_dies_whenever(ring: Ring, plan: Plan, cell: tuple[str, str]) -> None:
    """In mid round, between two, and while a job shows the plan to sites of which one does not answer."""
    process, phase = cell
    if phase == "between":
        with between_rounds(ring, plan) as number:
            killed(ring, process)
    elif phase == "admit":
        with being_admitted(ring, plan) as number:
            killed(ring, process)
    else:
        with held(ring, phase):
            number = aimed(ring, plan, phase)
            killed(ring, process)
    goes_on(ring, plan, number)


@contextlib.contextmanager
def between_rounds(ring: Ring, plan: Plan) -> Iterator[int]:
    """Stop the coordinator's job when a round is finished and no site was asked for the next one."""
    until(lambda: bool(PROCESSES["coordinator-job"](ring)), WITHIN_S, "a job runs")
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        ring.until_round(plan, ring.view(plan).finished_rounds + 1, WITHIN_S)
        with stopped(PROCESSES["coordinator-job"](ring)):
            now = moment(ring, plan)
            if not now.asked:
                yield now.number - 1
                return
    pytest.fail("no moment between two rounds was met")


@contextlib.contextmanager
def being_admitted(ring: Ring, plan: Plan) -> Iterator[int]:
    """Let a new job begin while the victim's research zone answers nobody, so that it waits for it."""
    until(lambda: bool(PROCESSES["coordinator-job"](ring)), WITHIN_S, "a job runs")
    ended = PROCESSES["coordinator-job"](ring)
    number = ring.view(plan).finished_rounds + 1
    with stopped(standing(ring, "research_agent")):
        killed(ring, "coordinator-job")
        until(lambda: bool(set(PROCESSES["coordinator-job"](ring)) - set(ended)), WITHIN_S, "the next job")
        until(lambda: bool(PROCESSES["site-job"](ring)), WITHIN_S, "the victim takes part in it")
        yield number


WIRE_FAULTS: Final[dict[str, Callable[[Wire], None]]] = {
    "reset": lambda wire: wire.reset(),
    "cut": lambda wire: wire.cut(),
    "silent": lambda wire: setattr(wire, "silent", True),
    "delayed": lambda wire: setattr(wire, "delay_s", 0.2),
    "slow": lambda wire: setattr(wire, "bytes_per_s", 50_000.0),
}


@pytest.mark.parametrize("fault", cases(WIRE_FAULTS, ["reset", "cut", "silent", "slow"]))
def test_the_run_goes_on_when_a_wire_fails_in_mid_round(ring: Ring, plan: Plan, fault: str) -> None:
    """What stands still is mended after five seconds; the run goes on beside what is merely slow."""
    wire = ring.wires[VICTIM]
    number = aimed(ring, plan, "training")
    WIRE_FAULTS[fault](wire)
    if fault in {"cut", "silent"}:
        time.sleep(5.0)  # how long the fault lasts
        wire.mend()
    until(lambda: ring.view(plan).finished_rounds > number, WITHIN_S, f"round {number + 1} beside the fault")
    wire.mend()
    assert ring.view(plan).state in {"queued", "running"}


def test_after_all_that_every_round_was_counted_once(ring: Ring, plan: Plan) -> None:
    cloister("coordinator", "stop", ring.federation.root, plan.run_id)
    until(lambda: not ring.coordinator.find("jobhost server"), WITHIN_S, "the run's job has ended")
    view = ring.view(plan)
    assert [one.number for one in view.rounds] == list(range(1, view.finished_rounds + 1))
    assert view.engine_jobs > len(JOBS_ENDED)
    for one in view.rounds:
        assert sorted(site.site for site in one.sites if site.accepted) == sorted(SITES)
    check_arithmetic(ring, plan)
    for member in ring.members.values():
        done = [row.number for row in member.rounds(plan.run_id) if row.kind == "train" and row.receipt_id]
        assert sorted(set(done)) == sorted(done)
        left = {row.body["number"]: row.body["update_sha256"] for row in member.receipts(plan.run_id)}
        for one in view.rounds:
            [counted] = [site.update_sha256 for site in one.sites if site.site == member.name]
            assert counted == left[one.number]
        assert member.client.verify_ledger().ok
    until(lambda: not _dead_entries(ring), 60.0, "no dead process is left that nobody collected")
    assert _strays(ring) == []


@pytest.mark.parametrize("process", cases(PROCESSES, ["coordinator-job"]))
def test_everybody_gets_the_final_model_once_whatever_dies_at_the_end(ring: Ring, process: str) -> None:
    book = coordinator.open_book(ring.federation)
    for open_run in book.open_runs():  # one at a time is worked on
        cloister("coordinator", "stop", ring.federation.root, open_run)
    book.engine.dispose()
    plan = ring.submit(total_rounds=1, min_sites=3, round_timeout_s=240.0)
    ring.approve(plan, 120.0)
    until(lambda: bool(left(ring, plan, HOLDER)), WITHIN_S, "the site to hold has sent its update")
    with stopped([*standing(ring, "research_worker", HOLDER), *worker_children(ring, HOLDER)]):
        until(lambda: "finalize" in seen(ring, plan, VICTIM), WITHIN_S, f"{VICTIM} has the final model")
        assert ring.view(plan).state == "running"
        killed(ring, process)
    view = ring.until_over(plan, WITHIN_S)
    assert view.state == "done", view.reason
    for member in ring.members.values():
        assert seen(ring, plan, member.name).count("finalize") == 1
        assert [one.run_id for one in member.client.candidates()].count(plan.run_id) == 1


def seen(ring: Ring, plan: Plan, site: str) -> list[str]:
    """Return the kinds of rounds that a site was asked for."""
    return [row.kind for row in ring.members[site].rounds(plan.run_id)]


def left(ring: Ring, plan: Plan, site: str) -> list[str]:
    return [row.id for row in ring.members[site].rounds(plan.run_id) if row.receipt_id]


@FURTHER
def test_a_silent_site_is_passed_over_and_takes_part_again_when_it_is_back(ring: Ring) -> None:
    plan = ring.submit(total_rounds=2000, min_sites=2, straggler_wait_s=2.0, round_timeout_s=300.0)
    ring.approve(plan, 120.0)
    ring.until_round(plan, 1, WITHIN_S)
    aimed(ring, plan, "training")
    ring.wires[VICTIM].silent = True
    until(lambda: VICTIM not in _counted(ring, plan), WITHIN_S, "a round is finished without the silent site")
    ring.wires[VICTIM].mend()
    until(lambda: VICTIM in _counted(ring, plan), WITHIN_S, "the site takes part again")
    cloister("coordinator", "stop", ring.federation.root, plan.run_id)
    check_arithmetic(ring, plan)


def _counted(ring: Ring, plan: Plan) -> set[str]:
    """Return the sites of the last finished round."""
    return {one.site for one in ring.view(plan).rounds[-1].sites if one.accepted}


def _programs(ring: Ring) -> list[Program]:
    return [ring.coordinator, *(member.program for member in ring.members.values())]


def _dead_entries(ring: Ring) -> list[int]:
    return [pid for program in _programs(ring) for pid in program.tree() if not _lives(pid)]


def _strays(ring: Ring) -> list[str]:
    """Return processes of this federation that stand below none of its programs."""
    known = {pid for program in _programs(ring) for pid in program.tree()}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(ring.folder) in line and process.pid not in known and process.pid != os.getpid():
                found.append(line)
    return found
