"""A real federation: three nodes, TLS, Celery workers that train, a coordinator; what may happen to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance import ledger
from appliance.federation import coordinator, siteapi
from appliance.federation.exchange import Exchange
from appliance.federation.roundfiles import KEPT_UPDATES
from appliance.federation.unixclient import UnixClient
from tests.appliance.federation import hostile_orders
from tests.appliance.federation.ring import (
    CASES,
    SITES,
    Member,
    Ring,
    cloister,
    is_known,
    rounds_done,
    running_ring,
    until,
)
from tests.further import FURTHER
from tests.trainer.samples import small_task
from trainer import strategies
from trainer.compression import Compression, draw_of
from trainer.federation.plan import Plan, Strategy
from trainer.networks import initial_weights
from trainer.privacy.promise import Promise
from trainer.task import LocalSpec
from trainer.weights_io import load, save, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.progress import RoundProgress, RunProgress

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring"), by_commands=True) as running:
        yield running


@pytest.fixture(autouse=True)
def everybody_runs(ring: Ring) -> None:
    """Start what a test left dead that failed: the next one has a fault of its own to find."""
    for program in (ring.coordinator, *(member.program for member in ring.members.values())):
        if program.process is None:
            program.start()


def counted_sites(view: RunProgress, number: int) -> set[str]:
    return {one.site for one in view.rounds[number - 1].sites if one.accepted}


def _contributions(
    ring: Ring, plan: Plan, one: RoundProgress, reference: dict[str, Any]
) -> list[strategies.Contribution] | None:
    """Return the updates of a round, unpacked; None where a site does not keep its own any longer."""
    found = []
    for site in one.sites:
        if site.accepted:
            member = ring.members[site.site]
            [row] = [
                row for row in member.rounds(plan.run_id) if (row.number, row.kind) == (one.number, "train")
            ]
            if row.output_path is None:
                return None
            delta = load(member.settings.zone_root("research") / row.output_path)
            if plan.compression is not None:
                seed = draw_of(plan.seed, site.site, one.number)
                delta = plan.compression.unpack(delta, reference, seed)
            found.append(strategies.Contribution(site.site, delta, site.samples))
    return found


def checkpoint_of(folder: Path, one: RoundProgress) -> Path:
    """Return a round's checkpoint; a stale job may have left another."""
    found = [
        path
        for path in folder.glob(f"round-{one.number:05d}-*.safetensors")
        if not path.name.endswith(".state.safetensors") and sha256(path) == one.model_sha256
    ]
    return found[0]


def check_arithmetic(ring: Ring, plan: Plan) -> None:
    """Recompute every round from the updates that the sites still hold; nothing else may be in the models."""
    book = coordinator.open_book(ring.federation)
    folder = ring.federation.runs / plan.run_id
    view = ring.view(plan)
    weights = load(folder / "round-00000.safetensors")
    state: dict[str, Any] = {}
    recomputed = 0
    for one in view.rounds:
        path = checkpoint_of(folder, one)
        stored = load(path)
        contributions = _contributions(ring, plan, one, weights)
        if contributions is None:
            kept = path.with_suffix(".state.safetensors")
            weights, state = stored, load(kept) if kept.is_file() else {}
            continue
        rule = strategies.get(plan.strategy.name)
        weights, state = rule.aggregate(weights, contributions, state, plan.strategy.parameters)
        for name, array in weights.items():
            np.testing.assert_array_equal(array, stored[name])
        recomputed += 1
    assert recomputed >= min(len(view.rounds), KEPT_UPDATES - _is_ahead(ring, plan, view))
    assert book.checkpoint(plan.run_id).number == view.finished_rounds
    assert book.ledger is not None
    key = book.ledger.signing.public_key()
    assert ledger.verify(book.engine, key, ring.federation.root / "ledger.head").ok
    book.engine.dispose()


def _is_ahead(ring: Ring, plan: Plan, view: RunProgress) -> bool:
    """Whether a site keeps the update of a round that was stopped before it was finished."""
    rows = [row for member in ring.members.values() for row in member.rounds(plan.run_id)]
    return any(row.kind == "train" and row.receipt_id and row.number > view.finished_rounds for row in rows)


def check_engine_processes(member: Member) -> None:
    """The engine's processes at a site load neither torch nor a database driver nor SQLAlchemy."""
    engine = [*member.program.find("enginehost", "site"), *member.program.find("jobhost site")]
    assert len(engine) == 2
    for pid in engine:
        loaded = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        assert not [name for name in ("libtorch", "_sqlite3", "cyextension") if name in loaded]


def test_three_sites_train_and_every_update_has_its_receipt(ring: Ring) -> None:
    plan = ring.submit(total_rounds=3, min_sites=3, by_command=True)
    ring.approve(plan, by_command=True)
    for member in ring.members.values():  # their engine jobs run, since they showed the plan
        check_engine_processes(member)

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    assert view.engine_jobs == 1
    for number in (1, 2, 3):
        assert counted_sites(view, number) == set(SITES)
    check_arithmetic(ring, plan)
    sent = {(one.number, site.site): site.update_sha256 for one in view.rounds for site in one.sites}
    for member in ring.members.values():
        bodies = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
        assert [body["number"] for body in bodies] == [1, 2, 3]
        assert all(sent[body["number"], member.name] == body["update_sha256"] for body in bodies)
        assert all(view.genuine for view in member.client.receipts())
        assert member.client.verify_ledger().ok
    assert {one.site for one in view.final if one.accepted} == set(SITES)
    assert all("auc" in one.metrics for one in view.final)


def test_every_site_makes_its_own_package_of_the_final_model(ring: Ring) -> None:
    for member in ring.members.values():
        [candidate] = member.client.candidates()
        assert candidate.package_sha256
        assert (member.settings.crossing_in / "packages" / f"{candidate.run_id}.zip").is_file()


@FURTHER
def test_a_site_that_dies_in_a_round_neither_stops_nor_falsifies_the_run(ring: Ring) -> None:
    plan = ring.submit(
        total_rounds=8, min_sites=2, straggler_wait_s=3.0, strategy=Strategy("fedprox", {"mu": 0.01})
    )
    ring.approve(plan)
    west = ring.members["west"]
    until(lambda: bool(west.rounds(plan.run_id)), 60, "west is asked for a round")
    west.program.kill()
    died_in = max(row.number for row in west.rounds(plan.run_id))  # on a busy machine not always the first

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    assert died_in < 8
    for number in range(1, 9):
        others = counted_sites(view, number) - {"west"}
        assert others == {"north", "south"}
        assert number <= died_in or counted_sites(view, number) == others
    check_arithmetic(ring, plan)
    assert {one.site for one in view.final if one.accepted} == {"north", "south"}
    west.program.start()

    cloister("coordinator", "offer", ring.federation.root, plan.run_id)
    until(lambda: any(row.kind == "finalize" for row in west.rounds(plan.run_id)), 90, "west gets the model")
    again = ring.until_over(plan)

    assert again.state == "done", again.reason
    assert {one.site for one in again.final if one.accepted} == set(SITES)
    assert [(one.number, one.model_sha256) for one in again.rounds] == [
        (one.number, one.model_sha256) for one in view.rounds
    ]


@FURTHER
def test_a_killed_job_process_and_a_killed_coordinator_cost_no_finished_round(ring: Ring) -> None:
    plan = ring.submit(total_rounds=4, min_sites=2, straggler_wait_s=30.0, strategy=Strategy("scaffold", {}))
    ring.approve(plan)
    ring.until_round(plan, 1)
    ring.coordinator.kill()
    before = ring.view(plan)
    kept = [(one.number, one.model_sha256, one.finished_at) for one in before.rounds]
    ring.coordinator.start()
    ring.until_round(plan, len(kept) + 1)
    north = ring.members["north"]
    for pid in north.program.find("jobhost site"):
        os.kill(pid, signal.SIGKILL)

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    assert view.engine_jobs >= 2
    assert [(one.number, one.model_sha256, one.finished_at) for one in view.rounds][: len(kept)] == kept
    assert [one.number for one in view.rounds] == [1, 2, 3, 4]
    check_arithmetic(ring, plan)
    for member in ring.members.values():
        done = rounds_done(member, plan)
        assert len(done) == len(set(done))


@FURTHER
def test_the_model_travels_in_turn_and_a_dead_site_is_passed_over(ring: Ring) -> None:
    plan = ring.submit(total_rounds=7, min_sites=2, round_timeout_s=60.0, strategy=Strategy("cyclic", {}))
    ring.approve(plan)
    west = ring.members["west"]
    until(lambda: "west" in _order(ring.view(plan)), 90, "west had its first turn")
    west.program.kill()

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    order = _order(view)
    assert order[:3] == ["north", "south", "west"]
    assert order.count("west") <= 2  # it may have begun its second turn
    assert all(first != second for first, second in pairwise(order))
    check_arithmetic(ring, plan)
    for name in ("north", "south"):
        member = ring.members[name]
        mine = [number for number, site in enumerate(order, 1) if site == name]
        bodies = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
        assert [body["number"] for body in bodies] == mine
    assert {one.site for one in view.final if one.accepted} >= {"north", "south"}
    west.program.start()


def _order(view: RunProgress) -> list[str]:
    """Return who trained, round by round."""
    return [site for one in view.rounds for site in sorted(counted_sites(view, one.number))]


def test_people_look_before_they_approve_and_pause_a_round_that_is_under_way(ring: Ring) -> None:
    """The preflight is the research worker's. The others' round goes on; nothing of the paused one leaves."""
    task = small_task(local=LocalSpec(batch_size=8, local_steps=600, learning_rate=1e-3))
    plan = ring.submit(task=task, total_rounds=3, min_sites=2, straggler_wait_s=10.0, round_timeout_s=300.0)
    north = ring.members["north"]
    until(partial(is_known, north, plan), 60, "north knows the plan")
    cloister("protocol", "preflight", plan.sha256, "--config", north.config)
    until(lambda: bool(_preflight(north, plan)), 60, "the worker has looked")
    looked = _preflight(north, plan)
    assert looked["train"]["cases"] + looked["held_out"]["cases"] == CASES
    assert looked["timing"]["step_seconds"] > 0
    ring.approve(plan)
    until(lambda: _state(north, plan, 1) == "running", 90, "north trains")

    north.client.decide(north.client.protocol(plan.sha256).id, "pause", "user-1", "the machine is needed")

    until(lambda: _state(north, plan, 1) == "dead", 60, "the round stops")
    assert north.receipts(plan.run_id) == []
    ring.until_round(plan, 1, 240.0)
    assert counted_sites(ring.view(plan), 1) == {"south", "west"}
    cloister("protocol", "resume", plan.sha256, "--config", north.config)
    view = ring.until_over(plan, 400.0)
    assert view.state == "done", view.reason
    assert "north" in counted_sites(view, 3)
    check_arithmetic(ring, plan)
    assert north.client.verify_ledger().ok


def _preflight(member: Member, plan: Plan) -> dict[str, Any]:
    found = member.client.protocol(plan.sha256).preflight
    return {} if found is None else dict(found.report or {})


def _state(member: Member, plan: Plan, number: int) -> str:
    rows = [row for row in member.rounds(plan.run_id) if (row.number, row.kind) == (number, "train")]
    return str(rows[0].state) if rows else ""


def test_a_plan_that_nobody_approved_does_not_run(ring: Ring) -> None:
    plan = ring.submit(total_rounds=2, min_sites=2, approval_wait_s=2.0)

    view = ring.until_over(plan)

    assert view.state == "dead"
    assert "not_approved" in str(view.reason)
    assert view.finished_rounds == 0
    assert not any(member.rounds(plan.run_id) for member in ring.members.values())
    listed = json.loads(cloister("protocol", "list", "--json", "--config", ring.members["north"].config))
    assert [one["state"] for one in listed if one["plan_sha256"] == plan.sha256] == ["pending"]


def test_a_coordinator_that_changed_an_approved_plan_waits_for_people_again(ring: Ring) -> None:
    approved = ring.plan(total_rounds=1, min_sites=2, approval_wait_s=2.0)
    for member in ring.members.values():
        exchange = Exchange(UnixClient(siteapi.socket_path(member.settings)), lambda: False)
        exchange.admit(approved.to_json(), approved.sha256, 0.0)
    ring.approve(approved)

    altered = ring.submit(run_id=approved.run_id, total_rounds=50, min_sites=2, approval_wait_s=2.0)
    view = ring.until_over(altered)

    assert altered.sha256 != approved.sha256
    assert (view.state, view.finished_rounds) == ("dead", 0)
    assert "not_approved" in str(view.reason)
    assert not any(member.rounds(altered.run_id) for member in ring.members.values())


def test_code_in_a_job_is_refused_by_the_sites_whatever_the_coordinator_allows(ring: Ring) -> None:
    """The coordinator turns hostile: it grants itself every right and every class."""
    local = ring.federation.server_workspace / "local"
    rights = json.loads((local / "authorization.json").read_text())
    everything = {role: dict.fromkeys(granted, "any") for role, granted in rights["permissions"].items()}
    (local / "authorization.json").write_text(json.dumps({**rights, "permissions": everything}))
    resources = json.loads((local / "resources.json").read_text())
    (local / "resources.json").write_text(json.dumps({**resources, "class_allow_list": ["*"]}))
    ring.coordinator.kill()
    ring.coordinator.start()
    mark = ring.folder / "code-ran"

    argv = [sys.executable, "-m", "tests.appliance.federation.hostile", str(ring.federation.root), str(mark)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=200)

    statuses = json.loads(done.stdout.splitlines()[-1])
    assert statuses["own-code"] == "FINISHED:FAILED_TO_RUN"
    assert statuses["unlisted"] not in {"FINISHED:COMPLETED", "RUNNING"}
    assert not mark.exists()
    logs = "".join(member.program.log.read_text() for member in ring.members.values())
    assert "is not in allow_list" in logs


REFUSED_ORDERS = {
    "other model": "other_model",
    "more rounds": "not_in_plan",
    "other plan": "other_plan",
    "unbounded": "unreadable_plan",
    "activations": "unreadable_plan",
    "unknown plan": "not_approved",
    "unknown task": "unknown_kind",
    "unknown tensors": "round_failed",
}


def test_a_coordinator_that_asks_too_much_gets_refusals_and_is_recorded(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator runs a workflow of its own; what the sites' people approved is all that it gets."""
    plan = ring.plan(total_rounds=2, min_sites=3)
    for member in ring.members.values():
        Exchange(UnixClient(siteapi.socket_path(member.settings)), lambda: False).admit(
            plan.to_json(), plan.sha256, 0.0
        )
    ring.approve(plan)
    (tmp_path / "plan.json").write_text(plan.dumps())
    save(tmp_path / "model.safetensors", initial_weights(plan.task, plan.seed))
    resources = ring.federation.server_workspace / "local" / "resources.json"
    allowed = {**json.loads(resources.read_text()), "class_allow_list": ["*"]}
    resources.write_text(json.dumps(allowed))
    monkeypatch.setenv(hostile_orders.SCENE, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    ring.coordinator.kill()
    ring.coordinator.start()

    argv = [sys.executable, "-m", "tests.appliance.federation.hostile", str(ring.federation.root), "orders"]
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=230)

    answers = json.loads((tmp_path / "answers.json").read_text())
    for name in SITES:
        said = {order: answer[name] for order, answer in answers.items()}
        assert said["approved"]["tensors"]
        assert said["replayed"] == said["approved"]
        codes = {order: said[order]["answer"].get("code") for order in REFUSED_ORDERS}
        assert codes == REFUSED_ORDERS
        assert not [order for order in REFUSED_ORDERS if said[order]["tensors"]]
        member = ring.members[name]
        assert len([row for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]) == 1
        entries = member.client.ledger(limit=1000)
        recorded = {str(row.body["code"]) for row in entries if row.kind == "order.refused"}
        assert {"not_in_plan", "other_plan", "unreadable_plan", "unknown_plan", "unknown_kind"} <= recorded
        assert "unfit_model" in recorded
        assert "round.other_model" in {row.kind for row in entries}
        assert member.client.verify_ledger().ok


def test_a_private_run_is_paid_and_its_receipts_are_what_the_coordinator_got(ring: Ring) -> None:
    """The coordinator hashes and counts what came through TLS; the receipts were signed before it left."""
    promise = Promise("dp-sgd", 1.0, 1.5, epsilon=50.0, delta=1e-5, sampling_rate=0.5)
    plan = ring.submit(total_rounds=2, min_sites=3, privacy=promise)
    for member in ring.members.values():
        until(partial(is_known, member, plan), 60, f"{member.name} knows the plan")
        _set_budget(member)
    ring.approve(plan)

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    check_arithmetic(ring, plan)
    reference = load(ring.federation.runs / plan.run_id / "round-00000.safetensors")
    got = {(one.number, site.site): site for one in view.rounds for site in one.sites}
    for member in ring.members.values():
        spent = json.loads(cloister("budget", "list", "--json", "--config", member.config))
        trained = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
        bodies = {body["number"]: body for body in trained}
        assert set(bodies) == {1, 2}
        for number, body in bodies.items():
            received = got[number, member.name]
            assert received.update_sha256 == body["update_sha256"]
            assert received.bytes_received == sum(one["size_bytes"] for one in body["tensors"])
            shapes = {one["name"]: (one["shape"], one["dtype"]) for one in body["tensors"]}
            assert shapes == {name: (list(a.shape), str(a.dtype)) for name, a in reference.items()}
            assert set(received.metrics) - {"anomaly_score"} <= set(body["metric_names"])
            assert body["privacy"]["noise_source"] == "secure"
        assert spent["rounds"] == 2
        assert bodies[2]["privacy"]["epsilon_total"] == spent["spent"]
        assert 0 < spent["spent"] < promise.epsilon
        told = cloister("receipt", "verify", "--config", member.config)
        found = re.fullmatch(r"(\d+) receipts, (\d+) genuine\n", told)
        assert found is not None, told
        assert found[1] == found[2] != "0"
        [round_id] = [row.id for row in member.rounds(plan.run_id) if (row.number, row.kind) == (2, "train")]
        told = cloister("receipt", "show", round_id, "--config", member.config)
        assert "dp-sgd, noise secure" in told
        assert bodies[2]["update_sha256"] in told


@FURTHER
def test_noise_packing_a_site_that_drops_out_and_a_killed_coordinator_go_together(ring: Ring) -> None:
    """Nothing is lost, counted twice or charged twice."""
    promise = Promise("dp-sgd", 1.0, 1.5, epsilon=50.0, delta=1e-5, sampling_rate=0.5)
    plan = ring.submit(
        total_rounds=5,
        min_sites=2,
        straggler_wait_s=3.0,
        privacy=promise,
        compression=Compression("int8"),
        strategy=Strategy("fedadam", {}),
    )
    for member in ring.members.values():
        _set_budget(member)
    spent_before = {name: _charged(member) for name, member in ring.members.items()}
    ring.approve(plan)
    west = ring.members["west"]
    ring.until_round(plan, 1)
    west.program.kill()
    ring.until_round(plan, 2)
    ring.coordinator.kill()
    ring.coordinator.start()
    west.program.start()

    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    assert [one.number for one in view.rounds] == [1, 2, 3, 4, 5]
    check_arithmetic(ring, plan)
    for name, member in ring.members.items():
        rows = [row for row in member.rounds(plan.run_id) if row.kind == "train"]
        assert len({row.number for row in rows}) == len(rows)
        charged = _charged(member) - spent_before[name]
        again = {1} if name == "west" else set()  # what died in training starts anew, and is paid anew
        assert charged - len(rows) in {0, *again}
        bodies = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
        for body in bodies:
            assert body["privacy"]["noise_source"] == "secure"
            assert {one["dtype"] for one in body["tensors"]} <= {"int8", "float32"}
        left = {body["number"]: body["update_sha256"] for body in bodies}
        for one in view.rounds:
            for site in one.sites:
                assert site.site != name or not site.accepted or left[one.number] == site.update_sha256
        assert member.client.verify_ledger().ok


def _set_budget(member: Member) -> None:
    """From here on the site refuses every plan that promises no privacy: let such tests come before."""
    cloister("budget", "set", "60", "--config", member.config)


def _charged(member: Member) -> int:
    """Return how many rounds a site's budget was charged for."""
    return int(json.loads(cloister("budget", "list", "--json", "--config", member.config))["rounds"])
