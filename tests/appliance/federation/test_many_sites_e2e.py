"""A federation of real processes grows from three sites to eight, and computes what the simulator does."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select

from appliance import node
from appliance.datasets import select_cases
from appliance.db.coordinator import CoordinatorLedgerEntry
from appliance.db.engine import reading
from appliance.federation import coordinator
from appliance.federation.late import REASON, UPDATE_LATE
from appliance.masked import select_masked
from tests.appliance.federation.ring import (
    SITES,
    Ring,
    is_known,
    join_member,
    rounds_done,
    running_ring,
    until,
)
from tests.appliance.federation.wire import Wire
from tests.further import FURTHER, cases
from tests.trainer.healthy import healthy_task
from tests.trainer.samples import small_task
from trainer import datasets, strategies
from trainer.compression import Compression
from trainer.federation.plan import Plan, Strategy
from trainer.local_round import use_threads
from trainer.masked_cases import build_masked
from trainer.networks import initial_weights
from trainer.simulation import simulate
from trainer.site_rules import site_rule
from trainer.task import LocalSpec, NetworkSpec
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.federation.progress import RunProgress, SiteProgress
    from trainer.datasets import Dataset
    from trainer.task import TaskSpec

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

FIVE = (*SITES, "east", "centre")
EIGHT = (*FIVE, "upland", "coast", "island")
BATCH_NORM = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "norm": "batch"})
BY_SITE_RULE = {type(site_rule(name)): name for name in sorted(strategies.STRATEGIES, reverse=True)}
TURNS = [name for name in sorted(strategies.STRATEGIES) if strategies.get(name).one_at_a_time]
CHOSEN = sorted({*BY_SITE_RULE.values(), *TURNS, "fedavg"})
SMALL = small_task()
# Every picture of the ring's sites counts as healthy, since none has a mask.
HEALTHY = healthy_task(preprocessing=SMALL.preprocessing, modalities=SMALL.modalities)
SHAPE = {name for name in initial_weights(HEALTHY) if not name.startswith("appearance.")}
TASKS = {"fedbn": small_task(network=BATCH_NORM), "feddis": HEALTHY}
STARTS_ANEW = [name for name in CHOSEN if not strategies.get(name).needs_initial]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring"), wired=True) as running:
        yield running


def grow(ring: Ring, names: tuple[str, ...]) -> None:
    """Let sites join while everything runs, each over a wire of the test's own."""
    for name in names:
        if name not in ring.members:
            ring.wires[name] = Wire((ring.federation.host, ring.federation.port))
            seed = len(ring.members)
            member = join_member(ring.folder / name, name, ring.federation, seed, ring.wires[name])
            ring.members[name] = member
            member.program.start()


def approve(ring: Ring, plan: Plan) -> None:
    """Approve a plan at every site, as the panel does."""

    def at(name: str) -> None:
        member = ring.members[name]
        until(partial(is_known, member, plan), 120.0, f"{name} knows the plan")
        view = member.client.protocol(plan.sha256)
        member.client.decide(view.id, "approve", "user-1", None, view.shown_sha256)

    with ThreadPoolExecutor(len(ring.members)) as pool:
        list(pool.map(at, ring.members))


def dataset_of(ring: Ring, name: str, task: TaskSpec, cache: Path) -> Dataset:
    """Prepare what a site holds, once more."""
    zone = node.open_research(ring.members[name].settings)
    if task.finding is None:
        found = build_masked(select_masked(zone, task)[0], task, cache)
    else:
        found = datasets.build(select_cases(zone, task).cases, task, cache)
    zone.engine.dispose()
    return found


def final_weights(ring: Ring, plan: Plan) -> dict[str, Any]:
    book = coordinator.open_book(ring.federation)
    weights = book.checkpoint(plan.run_id).weights
    book.engine.dispose()
    return dict(weights)


def counted(view: RunProgress, number: int) -> set[str]:
    return {one.site for one in view.rounds[number - 1].sites if one.accepted}


def check_equal(ring: Ring, plan: Plan, folder: Path) -> None:
    """Compare a run with a simulation on the same data and seeds, number by number."""
    view = ring.until_over(plan, 240.0)
    assert view.state == "done", view.reason
    use_threads(ring.members["north"].settings.training.threads)
    simulated = simulate(
        plan.task,
        {name: dataset_of(ring, name, plan.task, folder) for name in SITES},
        rounds=plan.total_rounds,
        strategy=plan.strategy.name,
        seed=plan.seed,
        compression=plan.compression,
    )
    found = final_weights(ring, plan)
    assert set(found) == set(simulated.weights)
    for name, array in found.items():
        np.testing.assert_array_equal(array, simulated.weights[name], err_msg=name)
    for number, record in enumerate(simulated.rounds, start=1):
        assert counted(view, number) == set(record.sites)


@pytest.mark.parametrize("strategy", cases(STARTS_ANEW, ["scaffold", "cyclic", "feddis"]))
def test_a_real_federation_comes_to_the_simulators_model(ring: Ring, strategy: str, tmp_path: Path) -> None:
    """One strategy for each way in which sites train, and each in which they take turns."""
    task = TASKS.get(strategy, small_task())
    plan = ring.submit(task=task, total_rounds=2, min_sites=3, strategy=Strategy(strategy, {}))
    approve(ring, plan)

    check_equal(ring, plan, tmp_path)

    shared = set(final_weights(ring, plan))
    for member in ring.members.values():
        for body in (row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"):
            assert {tensor["name"] for tensor in body["tensors"]} == shared
    assert (strategy == "feddis") == (shared == SHAPE)


@pytest.mark.parametrize("name", cases(["top-k", "sketch", "turns"], ["sketch"]))
def test_with_packed_updates_too_and_far_fewer_bytes_leave(ring: Ring, name: str, tmp_path: Path) -> None:
    """Three rounds: what the first update leaves out must be in the next ones."""
    plan = ring.submit(total_rounds=3, min_sites=3, compression=Compression(name))
    approve(ring, plan)

    check_equal(ring, plan, tmp_path)

    whole = len(to_bytes(final_weights(ring, plan)))
    for member in ring.members.values():
        for row in member.receipts(plan.run_id)[:3]:
            assert row.body["size_bytes"] < 0.7 * whole  # a small model's file is half names
            assert sum(one["size_bytes"] for one in row.body["tensors"]) < 0.3 * whole


def test_packed_both_ways_the_global_model_comes_as_steps_after_the_first_round(
    ring: Ring, tmp_path: Path
) -> None:
    network = NetworkSpec("resnet", {"features": [16, 32, 64, 128], "groups": 4, "norm": "batch"})
    packing = Compression("int8", both_ways=True)
    plan = ring.submit(task=small_task(network=network), total_rounds=4, min_sites=3, compression=packing)
    before = {name: (ring.wires[name].bytes_down, ring.wires[name].bytes_up) for name in SITES}
    approve(ring, plan)

    check_equal(ring, plan, tmp_path)

    whole = len(to_bytes(final_weights(ring, plan)))
    for name in SITES:
        wire, (down, up) = ring.wires[name], before[name]
        assert whole < wire.bytes_down - down < 3 * whole  # four rounds and the final model: one is whole
        said = sum(row.body["size_bytes"] for row in ring.members[name].receipts(plan.run_id))
        # What left is in the receipts; beside it go the engine's questions for work, some 10 kB a second.
        assert whole < said < wire.bytes_up - up < 3 * said


@FURTHER
def test_a_round_lasts_as_long_as_its_sites_come_on(ring: Ring) -> None:
    """Training takes longer than a site may stand still."""
    task = small_task(local=LocalSpec(batch_size=8, local_steps=2000, learning_rate=3e-3))
    plan = ring.submit(task=task, total_rounds=1, min_sites=3, round_timeout_s=12.0)
    approve(ring, plan)

    view = ring.until_over(plan, 240.0)

    assert view.rounds[0].seconds > plan.round_timeout_s
    assert counted(view, 1) == set(SITES)


def test_five_sites_of_which_two_joined_while_the_others_worked(ring: Ring) -> None:
    started = [ring.members[name].program.pid for name in SITES]
    grow(ring, FIVE)
    plan = ring.submit(total_rounds=2, min_sites=5)
    approve(ring, plan)

    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    assert [counted(view, number) for number in (1, 2)] == [set(FIVE)] * 2
    assert [ring.members[name].program.pid for name in SITES] == started


def late_in(ring: Ring, plan: Plan) -> list[tuple[int, SiteProgress]]:
    """Return the late updates of a run, by round."""
    rounds = ring.view(plan).rounds
    return [(one.number, site) for one in rounds for site in one.sites if site.reason == REASON]


@FURTHER
def test_an_update_that_comes_late_is_recorded_and_not_counted(ring: Ring) -> None:
    """One site's link becomes slow while it trains, and the round is over before its update arrives."""
    grow(ring, FIVE)
    plan = ring.submit(total_rounds=10, min_sites=3, straggler_wait_s=1.0)
    approve(ring, plan)
    centre = ring.members["centre"]
    until(lambda: bool(centre.rounds(plan.run_id)), 120.0, "a site trains")
    ring.wires["centre"].bytes_per_s = len(to_bytes(initial_weights(plan.task))) / 1.5

    view = ring.until_over(plan, 240.0)

    ring.wires["centre"].mend()
    assert view.state == "done", view.reason
    until(lambda: bool(late_in(ring, plan)), 60.0, "the late update is recorded, be it after the run's end")
    late = late_in(ring, plan)
    assert "centre" in {site.site for _, site in late}
    for number, site in late:
        assert not site.accepted
        bodies = [row.body for row in ring.members[site.site].receipts(plan.run_id)]
        assert (number, "train", site.update_sha256) in [
            (body["number"], body["kind"], body["update_sha256"]) for body in bodies
        ]
    book = coordinator.open_book(ring.federation)
    with reading(book.engine) as session:
        kinds = list(session.scalars(select(CoordinatorLedgerEntry.kind)))
    book.engine.dispose()
    assert kinds.count(UPDATE_LATE) == len(late)


def test_a_site_whose_job_process_fails_ends_nothing_for_the_others(ring: Ring) -> None:
    grow(ring, FIVE)
    plan = ring.submit(total_rounds=6, min_sites=3, straggler_wait_s=2.0)
    approve(ring, plan)
    ring.until_round(plan, 1, 120.0)
    for pid in ring.members["east"].program.find("jobhost site"):
        os.kill(pid, signal.SIGINT)

    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    assert view.engine_jobs == 1
    assert counted(view, 6) >= set(FIVE) - {"east"}
    assert "site_job_failed" in ring.coordinator.log.read_text()


def test_eight_sites_of_which_one_is_slow_and_one_dies_and_returns(ring: Ring) -> None:
    grow(ring, FIVE)
    worked = {name: ring.members[name].program.pid for name in FIVE}
    grow(ring, EIGHT)
    plan = ring.submit(total_rounds=6, min_sites=6, straggler_wait_s=20.0, round_timeout_s=120.0)
    approve(ring, plan)
    ring.wires["coast"].delay_s = 0.2
    island = ring.members["island"]
    ring.until_round(plan, 1, 180.0)
    island.program.kill()
    island.program.start()

    view = ring.until_over(plan, 400.0)

    assert view.state == "done", view.reason
    assert [one.number for one in view.rounds] == list(range(1, 7))
    steady = set(EIGHT) - {"island", "coast"}
    assert all(counted(view, number) >= steady for number in range(1, 7))
    assert "coast" in counted(view, 6)
    final = {one.site for one in view.final if one.accepted}
    assert final >= steady
    for member in ring.members.values():
        done = rounds_done(member, plan)
        assert len(done) == len(set(done))
    assert {name: ring.members[name].program.pid for name in FIVE} == worked
    assert all(member.client.verify_ledger().ok for member in ring.members.values())
