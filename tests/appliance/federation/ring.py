"""A real federation on this machine: the research zones of three nodes and a coordinator, as processes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from appliance import node, research_client
from appliance.children import descendants_of
from appliance.db.engine import make_engine, reading
from appliance.db.research import Receipt, Round
from appliance.federation import coordinator, invitations, joining, newrun, progress, provision, workspaces
from appliance.settings import Settings, load_settings
from tests.appliance.federation.wire import Wire
from tests.appliance.training_node import add_cases
from tests.trainer.federation.plans import make_plan
from trainer.weights_io import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from appliance.federation.provision import Federation
    from appliance.research_client import ResearchClient
    from trainer.federation.plan import Plan

SITES = ("north", "south", "west")
CASES = 24
CONFIG = """
name = "{name}"
data_root = "data"
[training]
child_idle_s = 120
round_lease_s = 20
[federation]
minimum_cohort = 2
[web]
enabled = false
"""


def cloister(*arguments: str | Path, check: bool = True) -> str:
    """Run the command line; return what it printed."""
    argv = [sys.executable, "-m", "appliance.cli", *map(str, arguments)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)
    if check and done.returncode != 0:
        pytest.fail(f"cloister {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)


@dataclass
class Program:
    """A long-running command with everything below it."""

    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    tree_root: Path | None = None  # of another copy of the program, to run in this one's place

    def start(self) -> None:
        """Start it in a session of its own."""
        with self.log.open("ab") as stream:
            env = {**os.environ, **({"PYTHONPATH": str(self.tree_root)} if self.tree_root else {})}
            self.process = subprocess.Popen(
                self.argv, stdout=stream, stderr=stream, start_new_session=True, cwd=self.log.parent, env=env
            )

    @property
    def pid(self) -> int:
        """Its process number; 0 while it does not run."""
        return 0 if self.process is None else self.process.pid

    def tree(self) -> list[int]:
        """Return the process and all below it."""
        return [] if self.process is None else [self.process.pid, *descendants_of(self.process.pid)]

    def find(self, *words: str) -> list[int]:
        """Return processes below whose command line holds all the words."""
        return [pid for pid in self.tree() if all(word in _command_line(pid) for word in words)]

    def kill(self) -> None:
        """Kill it with everything below, at once, as a power cut does."""
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._collect()

    def kill_alone(self) -> None:
        """Kill the program itself and leave its children to notice."""
        if self.process is not None:
            self.process.kill()
            self._collect()

    def ask_to_end(self) -> None:
        """Ask it to end, without waiting."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """End it politely; whatever is left after ten seconds is killed."""
        left = self.tree()
        self.ask_to_end()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._collect()

    def _collect(self) -> None:
        if self.process is not None:
            self.process.wait(10)
            self.process = None


@dataclass
class Member:
    """One site."""

    name: str
    settings: Settings
    config: Path
    program: Program

    @property
    def client(self) -> ResearchClient:
        """Client of its research zone."""
        return research_client.connect(self.settings)

    def answers(self) -> bool:
        """Whether its research zone's service can be asked."""
        with contextlib.suppress(research_client.ResearchUnavailableError):
            self.client.candidates()
            return True
        return False

    @functools.cached_property
    def engine(self) -> Engine:
        """Its research zone's database, for reading: tests ask many times a second."""
        return make_engine(node.database_url(self.settings, "research"), read_only=True)

    def rounds(self, run_id: str) -> list[Round]:
        """Return its rounds of a run."""
        with reading(self.engine) as session:
            return list(session.scalars(select(Round).where(Round.run_id == run_id).order_by(Round.number)))

    def receipts(self, run_id: str) -> list[Receipt]:
        """Return its receipts of a run."""
        statement = select(Receipt).join(Round, Round.id == Receipt.round_id).where(Round.run_id == run_id)
        with reading(self.engine) as session:
            return list(session.scalars(statement.order_by(Round.number)))


@dataclass
class Ring:
    """The whole federation."""

    folder: Path
    federation: Federation
    members: dict[str, Member]
    coordinator: Program
    wires: dict[str, Wire] = field(default_factory=dict)
    runs: int = field(default=0)

    def start(self) -> None:
        """Start everything."""
        self.coordinator.start()
        for member in self.members.values():
            member.program.start()

    def stop(self) -> None:
        """End everything."""
        programs = [*(member.program for member in self.members.values()), self.coordinator]
        for program in programs:
            program.ask_to_end()
        for program in programs:
            program.stop()
        for engine in (self.book, *(member.engine for member in self.members.values())):
            engine.dispose()

    @functools.cached_property
    def book(self) -> Engine:
        """The coordinator's database, for reading."""
        return make_engine(self.federation.database_url, read_only=True)

    def plan(self, **changes: Any) -> Plan:
        """Return a new plan."""
        self.runs += 1
        values: dict[str, Any] = {
            "run_id": f"run-{self.runs}",
            "minimum_cohort": 2,
            "seed": self.runs,
            "approval_wait_s": 90.0,  # three commands one after the other on a busy machine
        }
        return make_plan(**{**values, **changes})

    def submit(self, *, by_command: bool = False, **changes: Any) -> Plan:
        """Write a new run down; return its plan. The command does it in two processes."""
        plan = self.plan(**changes)
        path = self.folder / f"plan-{self.runs}.json"
        path.write_text(plan.dumps())
        if by_command:
            answer = json.loads(cloister("coordinator", "run", self.federation.root, path, "--json"))
            assert answer == {"run_id": plan.run_id}
        else:
            assert newrun.add(self.federation.root, path, _first_model_here) == plan.run_id
        return plan

    def approve(self, plan: Plan, timeout_s: float = 60.0, *, by_command: bool = False) -> None:
        """Approve a plan at every site as soon as it was proposed there."""
        for member in self.members.values():
            until(functools.partial(is_known, member, plan), timeout_s, f"{member.name} knows the plan")
            approve_at(member, plan, by_command=by_command)

    def view(self, plan: Plan) -> progress.RunProgress:
        """Return how far a run is."""
        found = progress.run(self.book, plan.run_id)
        assert found is not None
        return found

    def until_round(self, plan: Plan, number: int, timeout_s: float = 90.0) -> None:
        """Wait for a finished round."""
        until(lambda: self.view(plan).finished_rounds >= number, timeout_s, f"round {number}")

    def until_over(self, plan: Plan, timeout_s: float = 120.0) -> progress.RunProgress:
        """Wait for the end of a run."""
        until(lambda: self.view(plan).state not in {"queued", "running"}, timeout_s, "the run's end")
        return self.view(plan)


def _first_model_here(plan: Plan, folder: Path, earlier: Path | None) -> dict[str, Any]:
    """Make a first model in this process, where torch is loaded once for all runs."""
    from trainer.first_model import first_model  # noqa: PLC0415 - other tests use this module without torch

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = None if earlier is None else load(earlier)
    return first_model(plan.task, plan.strategy.name, plan.seed, before)


def approve_at(member: Member, plan: Plan, *, by_command: bool = False) -> None:
    """Approve a plan at one site as it is shown there: it may differ from one that was approved before."""
    view = member.client.protocol(plan.sha256)
    if by_command:
        words = ("approve", plan.sha256, "--shown", view.shown_sha256)
        cloister("protocol", *words, "--config", member.config)
    else:
        member.client.decide(view.id, "approve", "user-1", None, view.shown_sha256)


def decide_at(member: Member, plan: Plan, decision: str) -> None:
    """Pause a plan at one site, or resume it there."""
    cloister("protocol", decision, plan.sha256, "--config", member.config)


def rounds_done(member: Member, plan: Plan) -> list[int]:
    """Return the numbers of the rounds that a site trained."""
    return [row.number for row in member.rounds(plan.run_id) if row.kind == "train" and row.state == "done"]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def is_known(member: Member, plan: Plan) -> bool:
    try:
        return any(view.plan_sha256 == plan.sha256 for view in member.client.protocols())
    except research_client.ResearchUnavailableError:
        return False


@contextlib.contextmanager
def running_ring(
    folder: Path, sites: tuple[str, ...] = SITES, *, wired: bool = False, by_commands: bool = False
) -> Iterator[Ring]:
    """Provision, join and run a federation; everything is gone afterwards.

    ``wired``: each site speaks to the coordinator over a wire of the test's own. ``by_commands``: set up
    as people do it, by the command line.
    """
    root = folder / "coordinator"
    if by_commands:
        cloister("coordinator", "init", root)
    else:
        provision.create(root, "localhost", 0)
    federation = provision.load(root)
    up = Program(
        [sys.executable, "-m", "appliance.cli", "coordinator", "up", str(root)], folder / "coordinator.log"
    )
    ring = Ring(folder, federation, {}, up)
    try:
        up.start()
        until(functools.partial(answers, federation), 60.0, "the coordinator answers")
        for seed, name in enumerate(sites):
            if wired:
                ring.wires[name] = Wire((federation.host, federation.port))
            ring.members[name] = join_member(
                folder / name, name, federation, seed, ring.wires.get(name), by_command=by_commands
            )
            ring.members[name].program.start()
        for name, member in ring.members.items():
            until(member.answers, 60.0, f"the research zone of {name} answers")
        yield ring
    finally:
        ring.stop()
        for wire in ring.wires.values():
            wire.close()


def answers(federation: Federation) -> bool:
    """Whether the coordinator's port is open."""
    with contextlib.suppress(OSError):
        socket.create_connection((federation.host, federation.port), 1.0).close()
        return True
    return False


def join_member(
    folder: Path,
    name: str,
    federation: Federation,
    seed: int,
    wire: Wire | None = None,
    *,
    by_command: bool = False,
) -> Member:
    """Make a node and let it join with a code of the running coordinator."""
    folder.mkdir()
    config = folder / "cloister.toml"
    config.write_text(CONFIG.format(name=name))
    node.create_node(load_settings(config))
    opened = coordinator.open_book(federation)
    assert opened.ledger is not None
    code = invitations.invite(federation, opened.engine, opened.ledger, name, 1.0)
    opened.engine.dispose()
    if wire is not None:
        code = replace(code, port=wire.port)
    if by_command:
        cloister("join", str(code), "--config", config)
    else:
        joined = joining.join(str(code), load_settings(config))
        workspaces.enable(config, joined.site, joined.workspace)
    settings = load_settings(config)
    zone = node.open_research(settings)
    add_cases(zone, CASES, seed)
    zone.engine.dispose()
    argv = [sys.executable, "-m", "appliance.cli", "up", "--zone", "research", "--config", str(config)]
    return Member(name, settings, config, Program(argv, folder / "node.log"))
