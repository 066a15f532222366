"""Leases are renewed against real databases that fail: locked, full, read-only, gone."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from sqlalchemy import Engine, create_engine, event, select, text

from appliance import heartbeat
from appliance.db import engine as engines
from appliance.db.base import WorkState, new_id, now
from appliance.db.engine import make_engine, reading, writing
from appliance.db.research import Protocol, ProtocolState, ResearchJob, Round
from appliance.heartbeat import LEASE_RENEWED, LEASE_UNRENEWED, Beat, Heartbeat, UnrenewedError
from appliance.work import CLAIM_LOST, OUTCOME_UNSAID, LeaseLostError, claimed, enqueue
from tests.appliance.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.work import Claim
    from tests.appliance.servers import PostgreSQL

WAIT_MS = 200


@pytest.fixture
def engine(research_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Engine of each kind that waits shortly for locks."""
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", WAIT_MS)
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.05)
    made = make_engine(research_url)
    yield made
    made.dispose()


def make_round(engine: Engine) -> str:
    with writing(engine) as session:
        protocol = Protocol(
            id=new_id(),
            plan_sha256="b" * 64,
            run_id="run-1",
            name="blobs",
            plan={},
            state=ProtocolState.APPROVED,
            expires_at=now() + timedelta(days=1),
        )
        session.add(protocol)
        session.flush()
        row = Round(
            id=new_id(),
            run_id="run-1",
            number=1,
            kind="train",
            site="site-1",
            plan_sha256="b" * 64,
            global_model_sha256="a" * 64,
            protocol_id=protocol.id,
            input_path="model",
            max_attempts=4,
        )
        session.add(row)
        return row.id


def row_of(engine: Engine, round_id: str) -> Round:
    with reading(engine) as session:
        return session.get_one(Round, round_id)


def claim(engine: Engine, round_id: str, lease_s: float) -> claimed:
    return claimed(engine, Round, round_id, "test", lease_s)


@contextlib.contextmanager
def locked(engine: Engine) -> Iterator[None]:
    """Hold what a renewal needs from another connection: SQLite's write lock, PostgreSQL's rows."""
    other = create_engine(engine.url)
    with other.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(select(Round.id).with_for_update())
        connection.execute(select(ResearchJob.id).with_for_update())
        yield
        connection.rollback()
    other.dispose()


def names(logged: list[Any]) -> list[str]:
    return [entry["event"] for entry in logged]


def test_a_lock_that_passes_within_the_lease_stops_nothing(engine: Engine) -> None:
    round_id = make_round(engine)
    with claim(engine, round_id, 20.0) as held, structlog.testing.capture_logs() as logged:
        assert held is not None
        beat = Heartbeat(held)
        began, until = time.monotonic(), held.lease_until
        with locked(engine):
            while time.monotonic() - began < 2 * WAIT_MS / 1000:
                beat("train", 1, 9)
            assert held.lease_until == until
        beat("train", 9, 9)
        assert row_of(engine, round_id).progress == {"stage": "train", "done": 9, "total": 9}
        assert row_of(engine, round_id).compute_seconds > 2 * WAIT_MS / 1000  # none of it went unbooked
        held.finish()
    assert names(logged) == [LEASE_UNRENEWED, LEASE_RENEWED]
    code = "SQLITE_BUSY" if engine.dialect.name == "sqlite" else "55P03"
    assert logged[0]["reason"] == f"OperationalError {code}"
    assert logged[0]["row_id"] == round_id


def test_a_lock_that_outlasts_the_lease_stops_the_work_with_its_reason(engine: Engine) -> None:
    round_id = make_round(engine)

    def work(held: Claim) -> None:
        beat = Heartbeat(held)
        with locked(engine):
            for step in range(1000):
                beat("train", step, 1000)
                time.sleep(0.01)

    with claim(engine, round_id, 0.5) as held:
        assert held is not None
        work(held)
    row = row_of(engine, round_id)
    assert (row.state, row.attempts) == (WorkState.FAILED, 1)
    assert row.reason is not None
    assert "lease of 0.5 s ran out unrenewed: OperationalError" in row.reason


def test_a_long_call_outlasts_a_lock_and_its_result_is_used(engine: Engine) -> None:
    round_id = make_round(engine)
    used = []
    with claim(engine, round_id, 4.0) as held:
        assert held is not None
        beat = Heartbeat(held)
        with beat.during("export"), locked(engine):
            wait_until(lambda: beat.failing, 10, "a renewal fails")
        used.append(not beat.failing)
        assert held.lease_until > now() + timedelta(seconds=3)
        held.finish()
    assert used == [True]


def test_what_a_long_call_made_waits_for_a_database_that_is_locked_at_its_end(engine: Engine) -> None:
    """Nothing crosses on the word of a lease that the database does not have."""
    round_id, free = make_round(engine), threading.Event()
    seen: list[bool] = []

    def hold() -> None:
        with locked(engine):
            taken.set()
            free.wait(10)
            seen.append(crossed.is_set())

    taken, crossed = threading.Event(), threading.Event()
    with claim(engine, round_id, 20.0) as held:
        assert held is not None
        beat = Heartbeat(held)
        other = threading.Thread(target=hold)
        freeing = threading.Timer(4 * WAIT_MS / 1000, free.set)
        with beat.during("export"):
            other.start()
            assert taken.wait(10)
            freeing.start()
        crossed.set()
        other.join()
        freeing.join()
        held.finish()
    assert seen == [False]


@pytest.mark.parametrize("lock", [locked, contextlib.nullcontext])
def test_a_long_call_whose_lease_ran_out_leaves_nothing(
    engine: Engine, lock: Callable[[Engine], contextlib.AbstractContextManager[None]]
) -> None:
    """Because the database stays locked, or because another took the row meanwhile."""
    round_id = make_round(engine)
    crossed = []

    def work(held: Claim) -> None:
        beat = Heartbeat(held)
        with beat.during("export"):
            if lock is not locked:
                with writing(engine) as session:
                    session.get_one(Round, round_id).lease_owner = "other@elsewhere:1:1:0"
            with lock(engine):
                time.sleep(1.2)
        crossed.append(round_id)

    with claim(engine, round_id, 0.6) as held, structlog.testing.capture_logs() as logged:
        assert held is not None
        error = UnrenewedError if lock is locked else LeaseLostError
        with pytest.raises(error):
            work(held)
        held.ended = True
    assert crossed == []
    assert all(entry["event"] == LEASE_UNRENEWED for entry in logged)


def test_a_lost_lease_says_in_the_log_what_was_lost(engine: Engine) -> None:
    round_id = make_round(engine)
    with structlog.testing.capture_logs() as logged, claim(engine, round_id, 20.0) as held:
        assert held is not None
        with writing(engine) as session:
            session.get_one(Round, round_id).lease_owner = "other@elsewhere:1:1:0"
        Heartbeat(held)("train", 1, 1)
    assert [(entry["event"], entry["reason"]) for entry in logged] == [
        (CLAIM_LOST, f"round {round_id}: the lease was lost")
    ]


def test_a_full_database_is_waited_for(engine: Engine) -> None:
    """SQLite's file may grow no more; PostgreSQL stands read-only, as after a fail-over."""
    round_id = make_round(engine)
    with claim(engine, round_id, 20.0) as held, structlog.testing.capture_logs() as logged:
        assert held is not None
        beat = Beat(held)
        with narrowed(engine):
            beat("x" * 20_000, 1, 1)
            assert beat.failing
        beat("x" * 20_000, 1, 1)
        assert row_of(engine, round_id).progress["stage"] == "x" * 20_000
        held.finish()
    code = "OperationalError SQLITE_FULL" if engine.dialect.name == "sqlite" else "InternalError 25006"
    assert [entry.get("reason") for entry in logged] == [code, None]


@contextlib.contextmanager
def narrowed(engine: Engine) -> Iterator[None]:
    """Leave no room: ``max_page_count`` below what there is stands for what there is."""
    small, large = (
        ("PRAGMA max_page_count=1", "PRAGMA max_page_count=1073741823")
        if engine.dialect.name == "sqlite"
        else ("SET default_transaction_read_only = on", "SET default_transaction_read_only = off")
    )
    statement = [small]

    def limit(connection: Any, *_: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement[0])
        connection.commit()

    event.listen(engine, "checkout", limit)
    yield
    statement[0] = large


@pytest.mark.postgres
def test_a_server_that_is_gone_for_a_while_stops_nothing(
    postgresql: PostgreSQL, postgresql_templates: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.05)
    url = postgresql_templates.new_database(template="template_research")
    engine, admin = make_engine(url), create_engine(postgresql.url(), isolation_level="AUTOCOMMIT")
    name = engine.url.database
    round_id = make_round(engine)

    def door(said: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {said}"))
            ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(ends), {"name": name})

    with claim(engine, round_id, 20.0) as held:
        assert held is not None
        beat = Heartbeat(held)
        with beat.during("export"):
            door("false")
            beat.beaten = 0.0
            beat("export", 0, 1)
            assert beat.failing
            door("true")
        held.finish()
    assert row_of(engine, round_id).state == WorkState.DONE
    engine.dispose()
    admin.dispose()


def test_an_outcome_that_cannot_be_stored_is_logged_and_the_row_left_to_the_reconciler(
    engine: Engine,
) -> None:
    with writing(engine) as session:
        job_id = enqueue(session, ResearchJob, "preflight", "a" * 32, "k")
    assert job_id is not None
    with (
        structlog.testing.capture_logs() as logged,
        contextlib.ExitStack() as locks,
        claimed(engine, ResearchJob, job_id, "test", 0.5) as held,
    ):
        assert held is not None
        locks.enter_context(locked(engine))
        raise KeyError(job_id)
    assert names(logged)[-1] == OUTCOME_UNSAID
    with reading(engine) as session:
        assert session.get_one(ResearchJob, job_id).state == WorkState.RUNNING
