from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from appliance import owners, reconciling, work
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, Round
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from sqlalchemy import Engine

LEASE_S = 60.0


def make_job(engine: Engine, key: str = "k", **options: Any) -> str:
    with writing(engine) as session:
        job_id = work.enqueue(session, ClinicalJob, "infer", "a" * 32, key, **options)
    assert job_id is not None
    return job_id


def job(engine: Engine, job_id: str) -> ClinicalJob:
    with reading(engine) as session:
        found = session.get(ClinicalJob, job_id)
    assert found is not None
    return found


def change(engine: Engine, job_id: str, **values: Any) -> None:
    with writing(engine) as session:
        session.execute(update(ClinicalJob).where(ClinicalJob.id == job_id).values(**values))


def claim(engine: Engine, job_id: str, lease_s: float = LEASE_S) -> work.claimed:
    return work.claimed(engine, ClinicalJob, job_id, "test", lease_s)


def reconcile(engine: Engine, **options: Any) -> tuple[work.Counts, list[tuple[str, str]]]:
    woken: list[tuple[str, str]] = []
    at = options.pop("at", now())

    def wake(kind: str, row_id: str) -> bool:
        woken.append((kind, row_id))
        return True

    return work.reconcile(engine, ClinicalJob, wake, at, **options), woken


def test_a_key_makes_one_job(clinical_engine: Engine) -> None:
    make_job(clinical_engine)
    with writing(clinical_engine) as session:
        assert work.enqueue(session, ClinicalJob, "infer", "b" * 32, "k") is None


def test_work_that_finishes_is_done(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        assert held.subject_id == "a" * 32
        assert job(clinical_engine, job_id).state == WorkState.RUNNING
        held.finish()
    row = job(clinical_engine, job_id)
    assert (row.state, row.attempts, row.lease_owner, row.reason) == (WorkState.DONE, 1, None, None)


def test_a_second_delivery_finds_nothing_to_do(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as first:
        with claim(clinical_engine, job_id) as second:
            assert second is None
        assert first is not None
        first.finish()
    with claim(clinical_engine, job_id) as third:
        assert third is None
    assert job(clinical_engine, job_id).attempts == 1


def test_of_many_claims_at_once_one_wins(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    won: list[bool] = []
    barrier = threading.Barrier(6)

    def attempt() -> None:
        barrier.wait()
        with claim(clinical_engine, job_id) as held:
            won.append(held is not None)
            if held is not None:
                held.finish()

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]


def test_an_exception_becomes_a_failure_without_its_message(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id):
        raise ValueError("DOE^JANE")
    row = job(clinical_engine, job_id)
    assert (row.state, row.reason) == (WorkState.FAILED, "ValueError")


def test_our_own_errors_keep_their_message(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id):
        raise ApplianceError("the disk is full")
    assert job(clinical_engine, job_id).reason == "ApplianceError: the disk is full"


def test_a_block_without_an_outcome_is_no_success(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id):
        pass
    assert job(clinical_engine, job_id).state == WorkState.FAILED


def test_an_interrupted_worker_leaves_the_row_to_be_tried_at_once(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with pytest.raises(SystemExit), claim(clinical_engine, job_id):
        raise SystemExit(0)
    assert job(clinical_engine, job_id).state == WorkState.FAILED
    counts, woken = reconcile(clinical_engine)
    assert (counts.woken, woken) == (1, [("infer", job_id)])


def test_failures_wait_longer_each_time_and_end_dead_with_the_reason(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine, max_attempts=4)
    waits = []
    for _ in range(4):
        with claim(clinical_engine, job_id) as held:
            assert held is not None
            before = now()
            held.fail("the peer is away")
        row = job(clinical_engine, job_id)
        if row.next_try_at is not None and row.state == WorkState.FAILED:
            waits.append(round((row.next_try_at - before).total_seconds()))
            with claim(clinical_engine, job_id) as early:
                assert early is None
            change(clinical_engine, job_id, next_try_at=now())
    row = job(clinical_engine, job_id)
    assert waits == [5, 10, 20]
    assert (row.state, row.reason, row.attempts) == (WorkState.DEAD, "the peer is away", 4)


def test_waiting_never_exceeds_a_quarter_of_an_hour() -> None:
    assert work.backoff_s(40) == 900


def test_a_dead_job_is_tried_again_when_a_person_says_so(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        held.die("no such model")
    with writing(clinical_engine) as session:
        assert work.retry(session, ClinicalJob, job_id)
        assert not work.retry(session, ClinicalJob, job_id)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        held.finish()
    assert job(clinical_engine, job_id).state == WorkState.DONE


def test_results_and_outcome_are_stored_together(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None

        def store(held: work.Claim = held) -> None:
            with writing(clinical_engine) as session:
                held.finish(session)
                raise KeyError

        with pytest.raises(KeyError):
            store()
    assert job(clinical_engine, job_id).state == WorkState.FAILED
    change(clinical_engine, job_id, next_try_at=now())
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        with writing(clinical_engine) as session:
            held.finish(session)
    assert job(clinical_engine, job_id).state == WorkState.DONE


def test_who_lost_the_lease_cannot_finish(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        change(clinical_engine, job_id, lease_until=now() - timedelta(seconds=1))
        with claim(clinical_engine, job_id) as other:
            assert other is not None
            with pytest.raises(work.LeaseLostError):
                held.heartbeat()
            with pytest.raises(work.LeaseLostError):
                held.finish()
            other.finish()
    assert job(clinical_engine, job_id).state == WorkState.DONE


def test_a_heartbeat_renews_the_lease_and_keeps_progress(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        change(clinical_engine, job_id, lease_until=now() + timedelta(seconds=1))
        held.heartbeat({"step": 3})
        row = job(clinical_engine, job_id)
        assert row.lease_until is not None
        assert row.lease_until > now() + timedelta(seconds=LEASE_S / 2)
        assert row.progress == {"step": 3}
        held.finish()


def dead_owner() -> str:
    """Return the lease owner of a process that has ended."""
    program = "from appliance import owners; print(owners.token('gone'))"
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_row_of_a_killed_worker_is_taken_over_before_its_lease_ends(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    later = now() + timedelta(hours=1)
    owner = dead_owner()
    change(clinical_engine, job_id, state=WorkState.RUNNING, attempts=1, lease_owner=owner, lease_until=later)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        held.finish()
    assert job(clinical_engine, job_id).attempts == 2


def test_the_reconciler_queues_the_rows_of_dead_workers(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    later = now() + timedelta(hours=1)
    owner = dead_owner()
    change(clinical_engine, job_id, state=WorkState.RUNNING, attempts=1, lease_owner=owner, lease_until=later)
    counts, woken = reconcile(clinical_engine)
    assert (counts.requeued, woken) == (1, [("infer", job_id)])


def test_the_reconciler_leaves_living_workers_alone(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    with claim(clinical_engine, job_id) as held:
        assert held is not None
        assert reconcile(clinical_engine) == (work.Counts(0, 0, 0), [])
        held.finish()


def test_a_row_whose_worker_dies_every_time_ends_dead(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine, max_attempts=2)
    past, deaths = now() - timedelta(seconds=1), 0
    for _ in range(2):
        with claim(clinical_engine, job_id) as held:
            assert held is not None
            change(clinical_engine, job_id, lease_until=past, lease_owner="elsewhere")
        deaths = reconcile(clinical_engine)[0].dead
    row = job(clinical_engine, job_id)
    assert (row.state, deaths) == (WorkState.DEAD, 1)
    assert row.reason is not None


def test_late_work_is_buried_and_not_begun(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine, deadline_s=0)
    with claim(clinical_engine, job_id) as held:
        assert held is None
    row = job(clinical_engine, job_id)
    assert (row.state, row.reason) == (WorkState.DEAD, "its deadline passed")


def test_what_the_broker_lost_is_announced_again_but_not_all_the_time(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    assert reconcile(clinical_engine)[1] == [("infer", job_id)]
    assert reconcile(clinical_engine)[1] == []
    later = now() + timedelta(seconds=reconciling.REWAKE_S + 1)
    assert reconcile(clinical_engine, at=later, backlog=lambda _: 3)[1] == []
    assert reconcile(clinical_engine, at=later, backlog=lambda _: None)[1] == []
    assert reconcile(clinical_engine, at=later, backlog=lambda _: 0)[1] == [("infer", job_id)]


def test_a_queue_that_never_drains_holds_up_no_other(clinical_engine: Engine) -> None:
    make_job(clinical_engine, "stuck")
    with writing(clinical_engine) as session:
        other = work.enqueue(session, ClinicalJob, "deidentify", "b" * 32, "other")
    reconcile(clinical_engine)
    later = now() + timedelta(seconds=reconciling.REWAKE_S + 1)

    def backlog(kind: str) -> int:
        return 1 if kind == "infer" else 0

    assert reconcile(clinical_engine, at=later, backlog=backlog)[1] == [("deidentify", other)]


def test_a_row_is_announced_again_in_the_end_whatever_waits_in_its_queue(clinical_engine: Engine) -> None:
    job_id = make_job(clinical_engine)
    reconcile(clinical_engine)
    later = now() + timedelta(seconds=reconciling.REWAKE_ANYWAY_S + 1)
    assert reconcile(clinical_engine, at=later, backlog=lambda _: reconciling.QUEUE_FULL)[1] == []
    assert reconcile(clinical_engine, at=later, backlog=lambda _: 3)[1] == [("infer", job_id)]
    assert reconcile(clinical_engine, at=later, backlog=lambda _: 3)[1] == []


def test_what_could_not_be_announced_is_announced_next_time(clinical_engine: Engine) -> None:
    ids = [make_job(clinical_engine, key) for key in "abc"]
    asked: list[str] = []

    def broken(kind: str, row_id: str) -> bool:
        assert kind == "infer"
        asked.append(row_id)
        return False

    counts = work.reconcile(clinical_engine, ClinicalJob, broken, now())
    assert (counts.woken, asked) == (0, ids[:1]), "a broker that is away is not asked for every row"
    assert {row_id for _, row_id in reconcile(clinical_engine, backlog=lambda _: 7)[1]} == set(ids)


def test_a_message_leads_to_the_most_urgent_row_of_its_queue_first(clinical_engine: Engine) -> None:
    named, equal = make_job(clinical_engine, "a"), make_job(clinical_engine, "b")

    def candidates(row_id: str = named) -> list[str]:
        return work.candidates(clinical_engine, ClinicalJob, ["infer"], row_id)

    assert candidates() == [named, equal]
    urgent = make_job(clinical_engine, "c", priority=0)
    with writing(clinical_engine) as session:
        work.enqueue(session, ClinicalJob, "deliver", "b" * 32, "other queue", priority=0)
    assert candidates() == [urgent, named]
    assert candidates(urgent) == [urgent, named]
    change(clinical_engine, urgent, state=WorkState.DONE)
    assert candidates(urgent) == [urgent, named], "a second delivery of the message finds other work"
    assert candidates("0" * 32) == [named, "0" * 32]
    change(clinical_engine, equal, state=WorkState.FAILED, next_try_at=now())
    assert candidates() == [named]


def test_the_most_urgent_is_announced_first(clinical_engine: Engine) -> None:
    late, urgent = make_job(clinical_engine, "a", priority=7), make_job(clinical_engine, "b", priority=0)
    assert [row_id for _, row_id in reconcile(clinical_engine)[1]] == [urgent, late]


def test_rounds_are_work_like_jobs(research_engine: Engine) -> None:
    with writing(research_engine) as session:
        protocol = Protocol(plan_sha256="c" * 64, run_id="r", name="n", plan={})
        session.add(protocol)
        session.flush()
        row = Round(
            run_id="r",
            number=1,
            kind="train",
            site="a",
            plan_sha256="c" * 64,
            global_model_sha256="d" * 64,
            protocol_id=protocol.id,
            input_path="x",
        )
        session.add(row)
        session.flush()
        round_id = row.id
    woken: list[str] = []

    def wake(row_id: str) -> bool:
        woken.append(row_id)
        return True

    work.reconcile(research_engine, Round, wake, now())
    assert woken == [round_id]
    with work.claimed(research_engine, Round, round_id, "test", LEASE_S) as held:
        assert held is not None
        held.finish()


def test_an_owner_fits_its_column_and_tells_the_living_from_the_dead() -> None:
    token = owners.token("a-role-with-a-name-far-too-long-for-the-column")
    assert len(token) <= 64
    assert not owners.is_dead(token)
    assert owners.is_dead(dead_owner())


@pytest.mark.parametrize(
    "owner",
    [
        None,
        "",
        "elsewhere",
        "a@b",
        pytest.param(f"x@00000000:{os.getpid()}:1:aa", id="another-boot"),
        "x@y:z:1:aa",
    ],
)
def test_nobody_is_declared_dead_on_hearsay(owner: str | None) -> None:
    assert not owners.is_dead(owner)
