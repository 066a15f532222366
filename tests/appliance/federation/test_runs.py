from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import select

from appliance.db.base import now
from appliance.db.coordinator import Contribution, Run, RunState
from appliance.db.engine import reading, writing
from appliance.federation import progress
from appliance.federation.book import WAITING, Book, Checkpoint, Counted, StaleJobError
from appliance.federation.enginelink import EngineAwayError
from appliance.federation.errors import CoordinatorError
from appliance.federation.runs import MAX_FAILURES, PATIENCE_S, RunController
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

PLAN = make_plan()
MODEL = {"weight": np.zeros((2, 2), np.float32)}


@pytest.fixture
def run_id(book: Book) -> str:
    return book.add_run(PLAN, MODEL)


def counted(site: str, reason: str | None = None) -> Counted:
    return Counted(site, 10, "a" * 64, 16, {"auc": 0.5}, reason)


def finish(book: Book, run_id: str, job_id: str, number: int) -> Checkpoint:
    reached = Checkpoint(number, {"weight": np.full((2, 2), number, np.float32)}, {}, "")
    return book.finish_round(run_id, job_id, reached, [counted("north"), counted("south", "nan")], now())


class TestBook:
    def test_a_new_run_starts_from_its_initial_model(self, book: Book, run_id: str) -> None:
        standing = book.checkpoint(run_id)

        assert standing.number == 0
        np.testing.assert_array_equal(standing.weights["weight"], MODEL["weight"])
        assert book.plan(run_id).sha256 == PLAN.sha256

    @pytest.mark.usefixtures("run_id")
    def test_a_run_id_is_used_once(self, book: Book) -> None:
        with pytest.raises(CoordinatorError, match="exists"):
            book.add_run(PLAN, MODEL)

    def test_a_finished_round_is_where_the_run_stands(self, book: Book, run_id: str) -> None:
        book.set_job(run_id, "job-a")

        finish(book, run_id, "job-a", 1)

        assert book.checkpoint(run_id).number == 1
        assert book.checkpoint(run_id).weights["weight"][0, 0] == 1
        with reading(book.engine) as session:
            rows = {row.site: row.accepted for row in session.scalars(select(Contribution))}
        assert rows == {"north": True, "south": False}

    def test_the_strategys_state_travels_with_the_checkpoint(self, book: Book, run_id: str) -> None:
        book.set_job(run_id, "job-a")
        state = {"momentum": np.ones(3, np.float32)}

        book.finish_round(run_id, "job-a", Checkpoint(1, MODEL, state, ""), [counted("north")], now())

        np.testing.assert_array_equal(book.checkpoint(run_id).state["momentum"], state["momentum"])

    @pytest.mark.parametrize(
        "spoil", [Path.unlink, lambda path: path.write_bytes(b"other")], ids=["lost", "changed"]
    )
    def test_a_run_does_not_go_on_without_the_state_that_its_round_left(
        self, book: Book, run_id: str, spoil: Callable[[Path], object]
    ) -> None:
        book.set_job(run_id, "job-a")
        state = {"momentum": np.ones(3, np.float32)}
        book.finish_round(run_id, "job-a", Checkpoint(1, MODEL, state, ""), [counted("north")], now())
        [path] = (book.root / "runs" / run_id).glob("*.state.safetensors")

        spoil(path)

        with pytest.raises(CoordinatorError, match="state"):
            book.checkpoint(run_id)

    def test_a_stale_job_finishes_nothing(self, book: Book, run_id: str) -> None:
        book.set_job(run_id, "job-a")
        finish(book, run_id, "job-a", 1)
        book.set_job(run_id, "job-b")

        with pytest.raises(StaleJobError):
            finish(book, run_id, "job-a", 2)
        with pytest.raises(StaleJobError):
            book.finish_run(run_id, "job-a", [])
        book.give_up(run_id, "job-a", "no")

        assert book.checkpoint(run_id).number == 1
        assert book.state(run_id) == RunState.RUNNING

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_round_is_counted_once_and_none_is_left_out(self, book: Book, run_id: str, number: int) -> None:
        book.set_job(run_id, "job-a")
        finish(book, run_id, "job-a", 1)

        with pytest.raises(StaleJobError):
            finish(book, run_id, "job-a", number)

        assert book.last_round(run_id) == 1

    def test_a_changed_checkpoint_is_not_continued_from(self, book: Book, run_id: str) -> None:
        path = book.root / "runs" / run_id / "round-00000.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")

        with pytest.raises(CoordinatorError, match="differs"):
            book.checkpoint(run_id)

    def test_a_dead_run_can_be_taken_up_again(self, book: Book, run_id: str) -> None:
        book.end_run(run_id, RunState.DEAD, "nobody came")

        book.reopen(run_id)

        assert book.open_runs() == [run_id]
        with pytest.raises(CoordinatorError, match="expected dead, stopped or paused"):
            book.reopen(run_id)

    def test_progress_shows_rounds_sites_and_final_metrics(self, book: Book, run_id: str) -> None:
        book.set_job(run_id, "job-a")
        for number in (1, 2, 3):
            finish(book, run_id, "job-a", number)
        book.finish_run(run_id, "job-a", [counted("north"), counted("south")])

        view = progress.run(book.engine, run_id)

        assert view is not None
        assert (view.state, view.finished_rounds, view.engine_jobs) == ("done", 3, 1)
        assert [one.number for one in view.rounds] == [1, 2, 3]
        assert [(one.site, one.accepted) for one in view.rounds[0].sites] == [
            ("north", True),
            ("south", False),
        ]
        assert [one.site for one in view.final] == ["north", "south"]
        assert progress.run(book.engine, "unknown") is None


@dataclass
class ScriptedEngine:
    """The engine as the run controller sees it, told by the test what to say."""

    here: set[str] = field(default_factory=lambda: {"north", "south", "west"})
    statuses: dict[str, str] = field(default_factory=dict)
    away: bool = False
    submitted: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    def sites(self) -> frozenset[str]:
        self._answer()
        return frozenset(self.here)

    def submit(self, job: Path) -> str:
        self._answer()
        assert (job / "app" / "config" / "config_fed_server.json").is_file()
        assert not (job / "app" / "custom").exists()
        self.submitted.append(f"job-{len(self.submitted) + 1}")
        self.statuses[self.submitted[-1]] = "RUNNING"
        return self.submitted[-1]

    def status(self, job_id: str) -> str:
        self._answer()
        return self.statuses[job_id]

    def abort(self, job_id: str) -> None:
        self.aborted.append(job_id)

    def _answer(self) -> None:
        if self.away:
            raise EngineAwayError("away")


@dataclass
class Clock:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


class TestRunController:
    @pytest.fixture
    def engine(self) -> ScriptedEngine:
        return ScriptedEngine()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def controller(self, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock) -> RunController:
        assert book.open_runs() == [run_id]
        expected = frozenset({"north", "south", "west"})
        return RunController(book, engine, lambda: expected, gather_s=10.0, clock=clock)

    def test_a_queued_run_becomes_one_job(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        for _ in range(3):
            controller.step()

        assert engine.submitted == ["job-1"]
        assert book.is_current(run_id, "job-1")

    def test_it_waits_for_enough_sites_and_a_while_for_all(
        self, controller: RunController, engine: ScriptedEngine, clock: Clock
    ) -> None:
        engine.here = {"north"}
        controller.step()
        engine.here = {"north", "south"}
        controller.step()
        assert engine.submitted == []

        clock.at = 10.0
        controller.step()

        assert engine.submitted == ["job-1"]

    def test_a_job_that_ended_early_is_followed_by_one_from_the_last_finished_round(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        controller.step()
        finish(book, run_id, "job-1", 1)
        engine.statuses["job-1"] = "FINISHED:EXECUTION_EXCEPTION"

        controller.step()
        controller.step()

        assert engine.submitted == ["job-1", "job-2"]
        assert book.is_current(run_id, "job-2")
        assert book.last_round(run_id) == 1

    def test_a_restarted_engine_means_a_new_job(
        self, controller: RunController, engine: ScriptedEngine, clock: Clock
    ) -> None:
        controller.step()
        controller.engine_restarted()
        clock.at = 100.0

        controller.step()

        assert engine.submitted == ["job-1", "job-2"]

    def test_a_new_controller_continues_what_an_earlier_one_left(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        controller.step()
        finish(book, run_id, "job-1", 1)
        later = RunController(book, engine, lambda: frozenset(engine.here))

        later.step()

        assert book.is_current(run_id, "job-2")

    def test_jobs_without_a_round_end_the_run_at_last(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        for _ in range(40):
            controller.step()
            engine.statuses = dict.fromkeys(engine.statuses, "FINISHED:ABORTED")
            clock.at += 100.0

        assert len(engine.submitted) == MAX_FAILURES
        assert book.state(run_id) == RunState.DEAD

    def test_rounds_in_between_keep_a_run_alive(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        for attempt in range(1, MAX_FAILURES):
            controller.step()
            engine.statuses[engine.submitted[-1]] = "FINISHED:ABNORMAL"
            if attempt == 3:
                finish(book, run_id, engine.submitted[-1], 1)
            controller.step()
            clock.at += 100.0
        controller.step()

        assert book.state(run_id) == RunState.RUNNING

    def test_an_engine_that_does_not_answer_is_asked_again(
        self, controller: RunController, engine: ScriptedEngine
    ) -> None:
        engine.away = True
        for _ in range(20):
            controller.step()
        engine.away = False

        controller.step()

        assert engine.submitted == ["job-1"]

    def test_a_stopped_runs_job_is_aborted_and_the_next_run_begins(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        other = book.add_run(make_plan(run_id="run-2"), MODEL)
        controller.step()
        book.end_run(run_id, RunState.STOPPED, "enough")

        controller.step()

        assert engine.aborted == ["job-1"]
        assert book.is_current(other, "job-2")

    def test_a_paused_runs_job_is_ended_and_it_goes_on_where_it_stood(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        controller.step()
        finish(book, run_id, "job-1", 1)
        book.pause(run_id, "at night only")
        controller.step()
        assert (engine.aborted, book.state(run_id), book.open_runs()) == (["job-1"], RunState.PAUSED, [])
        with pytest.raises(CoordinatorError, match="expected queued or running"):
            book.pause(run_id, "again")

        book.reopen(run_id)
        controller.step()

        assert book.is_current(run_id, "job-2")
        assert book.last_round(run_id) == 1

    def test_jobs_that_end_because_sites_paused_do_not_end_the_run(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        for number in range(1, MAX_FAILURES + 3):
            controller.step()
            assert engine.submitted[-1] == f"job-{number}"
            book.note(run_id, f"job-{number}", f"{WAITING}: west")
            engine.statuses[f"job-{number}"] = "FINISHED:EXECUTION_EXCEPTION"
            controller.step()
            clock.at += 30.0

        assert book.state(run_id) == RunState.RUNNING

    def test_a_run_that_people_stopped_keeps_their_reason(self, book: Book, run_id: str) -> None:
        book.set_job(run_id, "job-1")
        book.end_run(run_id, RunState.STOPPED, "stopped at the command line")

        book.note(run_id, "job-1", "the job was aborted")

        with reading(book.engine) as session:
            assert session.get_one(Run, run_id).reason == "stopped at the command line"

    def test_a_final_model_that_is_offered_again_waits_for_a_site_that_misses_it(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        controller.step()
        for number in (1, 2, 3):
            finish(book, run_id, "job-1", number)
        book.finish_run(run_id, "job-1", [counted("north"), counted("south")])
        controller.step()
        engine.here = {"north", "south"}
        book.offer(run_id, frozenset({"north", "south", "west"}))
        for _ in range(3):
            controller.step()
            clock.at += 100.0
        assert engine.submitted == ["job-1"]

        engine.here = {"south", "west"}
        for _ in range(3):
            controller.step()
            clock.at += 100.0

        assert engine.submitted == ["job-1", "job-2"]

    def test_a_run_without_enough_sites_steps_aside_for_one_that_has_them(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        other = book.add_run(make_plan(run_id="run-2", min_sites=1), MODEL)
        engine.here = {"north"}
        controller.step()
        clock.at = PATIENCE_S / 2
        controller.step()
        assert engine.submitted == []

        for _ in range(4):
            clock.at += PATIENCE_S
            controller.step()

        assert book.is_current(other, "job-1")
        assert book.state(run_id) == RunState.QUEUED

    def test_runs_never_have_two_jobs_at_once_and_the_first_goes_on_when_its_sites_are_back(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        other = book.add_run(make_plan(run_id="run-2", min_sites=1), MODEL)
        engine.here = {"north"}
        for _ in range(5):
            controller.step()
            clock.at += PATIENCE_S
        assert engine.submitted == ["job-1"]
        engine.here = {"north", "south", "west"}
        for _ in range(5):
            controller.step()
            clock.at += PATIENCE_S
        assert engine.submitted == ["job-1"]

        for number in (1, 2, 3):
            finish(book, other, "job-1", number)
        book.finish_run(other, "job-1", [counted("north")])
        controller.step()

        assert engine.submitted == ["job-1", "job-2"]
        assert book.is_current(run_id, "job-2")

    def test_a_run_that_lost_its_sites_between_jobs_keeps_its_count_of_failures(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine, clock: Clock
    ) -> None:
        other = book.add_run(make_plan(run_id="run-2", min_sites=1), MODEL)
        for _ in range(2 * MAX_FAILURES):
            engine.here = {"north", "south", "west"}
            controller.step()
            engine.statuses = dict.fromkeys(engine.statuses, "FINISHED:ABORTED")
            engine.here = {"north"}
            for _ in range(3):
                controller.step()
                clock.at += PATIENCE_S

        assert RunState.DEAD in {book.state(run_id), book.state(other)}

    def test_a_run_whose_plan_expired_ends_with_the_reason(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        late = book.add_run(make_plan(run_id="late", expires_at=now() - timedelta(seconds=1)), MODEL)

        controller.step()

        view = progress.run(book.engine, late)
        assert view is not None
        assert (view.state, view.reason) == ("dead", "the plan has expired")
        assert book.state(run_id) == RunState.RUNNING
        assert engine.submitted == ["job-1"]

    def test_a_run_whose_plan_is_not_the_one_that_was_written_down_ends_with_the_reason(
        self, controller: RunController, book: Book, run_id: str, engine: ScriptedEngine
    ) -> None:
        with writing(book.engine) as session:
            run = session.get(Run, run_id)
            assert run is not None
            run.plan = make_plan(seed=99).to_json()

        controller.step()

        assert book.state(run_id) == RunState.DEAD
        assert engine.submitted == []
