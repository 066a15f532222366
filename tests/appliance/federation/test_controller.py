from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance.cli.coordinator import _line
from appliance.db.base import now
from appliance.db.coordinator import RunState
from appliance.federation import policy, progress
from appliance.federation.book import Book, Checkpoint
from appliance.federation.errors import CoordinatorError
from tests.appliance.federation.scripted import Script, ScriptedWorkflow, everyone_admits, said
from tests.trainer.federation.plans import make_plan
from trainer import strategies
from trainer.federation.plan import Strategy

if TYPE_CHECKING:
    from appliance.federation.answers import Answer

SITES = ("north", "south", "west")
MODEL = {"weight": np.zeros((2, 2), np.float32)}


def add_run(book: Book, *, finished: int = 0, **changes: Any) -> str:
    """Write a run down whose first rounds are finished."""
    run_id = book.add_run(make_plan(**changes), MODEL)
    book.set_job(run_id, "before")
    for number in range(1, finished + 1):
        book.finish_round(run_id, "before", Checkpoint(number, MODEL, {}, ""), [], now())
    return run_id


def taken_by(*sites: str) -> Script:
    """Return a script in which these sites alone answer to the final model."""

    def finalize(site: str, *_: Any) -> Answer | None:
        return said(site) if site in sites else None

    return {**everyone_admits(), policy.TASK_FINALIZE: finalize}


def trains() -> Script:
    """Return a script in which every site sends an update."""
    delta = {"weight": np.ones((2, 2), np.float32)}
    return {**everyone_admits(), policy.TASK_TRAIN: lambda site, *_: said(site, arrays=delta)}


def refused_by(name: str, code: str) -> Script:
    """Return a script in which one site is not admitted, with this code."""

    def admit(site: str, *_: Any) -> Answer:
        return said(site, code if site == name else "")

    return {**trains(), policy.TASK_ADMIT: admit}


class TestFinalModel:
    def test_a_run_whose_final_model_too_few_sites_took_is_not_done(self, book: Book) -> None:
        run_id = add_run(book, finished=3)
        workflow = ScriptedWorkflow(book, run_id, "job-a", taken_by("north"), SITES)

        workflow.work()

        assert book.state(run_id) == RunState.RUNNING
        assert "1 sites have the final model" in workflow.panics[0]
        assert book.delivered(run_id) == {"north"}

    def test_the_next_job_offers_it_to_those_who_miss_it_alone(self, book: Book) -> None:
        run_id = add_run(book, finished=3)
        ScriptedWorkflow(book, run_id, "job-a", taken_by("north"), SITES).work()
        later = ScriptedWorkflow(book, run_id, "job-b", taken_by("south"), SITES)

        later.work()

        assert book.state(run_id) == RunState.DONE
        assert ("finalize", "north") not in later.asked
        assert book.delivered(run_id) == {"north", "south"}

    def test_a_site_that_was_absent_gets_it_when_it_is_offered_again(self, book: Book) -> None:
        run_id = add_run(book, finished=3)
        ScriptedWorkflow(book, run_id, "job-a", taken_by("north", "south"), SITES).work()
        assert book.state(run_id) == RunState.DONE

        missing = book.offer(run_id, frozenset(SITES))
        later = ScriptedWorkflow(book, run_id, "job-b", everyone_admits(), SITES)
        later.work()

        assert missing == {"west"}
        assert later.asked == [("admit", "west"), ("finalize", "west")]
        view = progress.run(book.engine, run_id)
        assert view is not None
        assert view.state == "done"
        assert [(one.site, one.accepted) for one in view.final] == [(site, True) for site in SITES]

    def test_an_offer_that_nobody_takes_leaves_the_run_done(self, book: Book) -> None:
        run_id = add_run(book, finished=3)
        ScriptedWorkflow(book, run_id, "job-a", taken_by("north", "south"), SITES).work()
        book.offer(run_id, frozenset(SITES))

        book.end_run(run_id, RunState.DEAD, "nobody came")

        assert book.state(run_id) == RunState.DONE

    def test_only_a_done_run_with_sites_that_miss_its_model_is_offered_again(self, book: Book) -> None:
        run_id = add_run(book, finished=3)

        with pytest.raises(CoordinatorError, match="expected done"):
            book.offer(run_id, frozenset(SITES))
        ScriptedWorkflow(book, run_id, "job-a", everyone_admits(), SITES).work()
        with pytest.raises(CoordinatorError, match="every site"):
            book.offer(run_id, frozenset(SITES))


class TestAdmission:
    @pytest.mark.parametrize("code", ["engine_error", "site_error", "unreadable"])
    def test_a_passing_failure_of_a_site_does_not_end_the_run(self, book: Book, code: str) -> None:
        run_id = add_run(book, min_sites=3)
        ScriptedWorkflow(book, run_id, "job-a", refused_by("west", code), SITES).work()
        assert book.state(run_id) == RunState.RUNNING

        ScriptedWorkflow(book, run_id, "job-b", trains(), SITES).work()

        assert book.state(run_id) == RunState.DONE

    @pytest.mark.parametrize("code", ["not_approved", "refused", "suspended", "expired", "cohort_too_small"])
    def test_a_gates_refusal_that_leaves_too_few_sites_ends_the_run(self, book: Book, code: str) -> None:
        run_id = add_run(book, min_sites=3)

        ScriptedWorkflow(book, run_id, "job-a", refused_by("west", code), SITES).work()

        assert book.state(run_id) == RunState.DEAD

    def test_a_site_that_has_paused_is_asked_in_every_round_and_holds_nobody_up(self, book: Book) -> None:
        run_id = add_run(book, min_sites=2)
        workflow = ScriptedWorkflow(book, run_id, "job-a", refused_by("west", "paused"), SITES)

        workflow.work()

        assert book.state(run_id) == RunState.DONE
        assert workflow.asked.count(("train", "west")) == 3

    def test_a_run_waits_for_sites_that_have_paused_without_an_end(self, book: Book) -> None:
        run_id = add_run(book, min_sites=3)
        for number in range(8):
            ScriptedWorkflow(book, run_id, f"job-{number}", refused_by("west", "paused"), SITES).work()
            assert book.state(run_id) == RunState.RUNNING
            assert book.waits(run_id)

        ScriptedWorkflow(book, run_id, "job-8", trains(), SITES).work()

        assert book.state(run_id) == RunState.DONE

    def test_a_site_that_left_is_not_asked_again_in_that_job(self, book: Book) -> None:
        run_id = add_run(book, min_sites=2)
        workflow = ScriptedWorkflow(book, run_id, "job-a", refused_by("west", "left"), SITES)

        workflow.work()

        assert book.state(run_id) == RunState.DONE
        assert [task for task, site in workflow.asked if site == "west"] == ["admit"]

    def test_sites_that_are_away_do_not_end_the_run(self, book: Book) -> None:
        run_id = add_run(book, min_sites=2)
        ScriptedWorkflow(book, run_id, "job-a", trains(), ("north",)).work()
        assert book.state(run_id) == RunState.RUNNING
        ScriptedWorkflow(book, run_id, "job-b", trains(), ()).work()
        assert book.state(run_id) == RunState.RUNNING

        ScriptedWorkflow(book, run_id, "job-c", trains(), SITES).work()

        assert book.state(run_id) == RunState.DONE

    def test_an_offer_to_a_site_that_is_away_stays_open(self, book: Book) -> None:
        run_id = add_run(book, finished=3)
        ScriptedWorkflow(book, run_id, "job-a", taken_by("north", "south"), SITES).work()
        book.offer(run_id, frozenset(SITES))

        ScriptedWorkflow(book, run_id, "job-b", everyone_admits(), ("north", "south")).work()
        assert book.state(run_id) == RunState.RUNNING
        ScriptedWorkflow(book, run_id, "job-c", everyone_admits(), SITES).work()

        assert book.state(run_id) == RunState.DONE
        assert book.delivered(run_id) == set(SITES)

    def test_a_site_that_failed_at_admission_is_asked_in_the_rounds_and_one_that_refused_is_not(
        self, book: Book
    ) -> None:
        for code, asked in (("engine_error", True), ("refused", False)):
            run_id = add_run(book, run_id=f"run-{code}")
            workflow = ScriptedWorkflow(book, run_id, "job-a", refused_by("west", code), SITES)

            workflow.work()

            assert (("train", "west") in workflow.asked) is asked


def test_samples_above_the_plans_bound_count_as_the_bound_and_the_claim_is_kept(book: Book) -> None:
    run_id = add_run(book, total_rounds=1, max_samples_per_site=20)
    delta = {"weight": np.ones((2, 2), np.float32)}

    def train(site: str, *_: Any) -> Answer:
        return said(site, samples=10_000_000 if site == "west" else 10, arrays=delta)

    ScriptedWorkflow(book, run_id, "job-a", {**everyone_admits(), policy.TASK_TRAIN: train}, SITES).work()

    view = progress.run(book.engine, run_id)
    assert view is not None
    west = view.rounds[0].sites[2]
    assert (west.samples, west.metrics) == (20, {"samples_claimed": 10_000_000})


def test_an_update_that_would_drown_the_others_is_refused_and_the_round_goes_on(book: Book) -> None:
    run_id = add_run(book, total_rounds=1)

    def train(site: str, *_: Any) -> Answer:
        value = 1e30 if site == "west" else 1.0
        return said(site, arrays={"weight": np.full((2, 2), value, np.float32)})

    ScriptedWorkflow(book, run_id, "job-a", {**everyone_admits(), policy.TASK_TRAIN: train}, SITES).work()

    assert book.state(run_id) == RunState.DONE
    np.testing.assert_allclose(book.checkpoint(run_id).weights["weight"], 1.0)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_later_job_goes_on_with_what_the_strategy_remembers(book: Book, name: str) -> None:
    """Twelve rounds take two jobs; the models are those of the pure functions in one go."""
    delta = {"weight": np.full((2, 2), 0.1, np.float32)}
    script = {**everyone_admits(), policy.TASK_TRAIN: lambda site, *_: said(site, arrays=delta)}
    run_id = add_run(book, total_rounds=12, strategy=Strategy(name, {}))

    ScriptedWorkflow(book, run_id, "job-a", script, SITES).work()
    assert book.checkpoint(run_id).number == 10
    ScriptedWorkflow(book, run_id, "job-b", script, SITES).work()

    weights: dict[str, Any] = MODEL
    state: dict[str, Any] = {}
    for _ in range(12):
        updates = [strategies.Contribution(site, delta, 10) for site in SITES]
        weights, state = strategies.get(name).aggregate(weights, updates, state, {})
    np.testing.assert_array_equal(book.checkpoint(run_id).weights["weight"], weights["weight"])


def test_the_record_names_the_site_whose_updates_are_unlike_the_others(book: Book) -> None:
    sites = (*SITES, "east", "centre")
    run_id = add_run(book, total_rounds=2, min_sites=5, strategy=Strategy("median", {}))
    drawn = np.random.default_rng(0).normal(1.0, 0.2, (5, 2, 2)).astype(np.float32)
    deltas = {site: {"weight": drawn[i] * (-1 if site == "west" else 1)} for i, site in enumerate(sites)}
    script = {**everyone_admits(), policy.TASK_TRAIN: lambda site, *_: said(site, arrays=deltas[site])}

    ScriptedWorkflow(book, run_id, "job-a", script, sites, sites).work()

    view = progress.run(book.engine, run_id)
    assert view is not None
    assert progress.suspects(view) == {"west": (2, 2)}
    assert "west unlike the others in 2 of 2 rounds" in _line(view)
    scores = {one.site: one.metrics[progress.ANOMALY] for one in view.rounds[0].sites}
    assert max(scores, key=lambda site: scores[site]) == "west"
    assert np.all(book.checkpoint(run_id).weights["weight"] > 1.0)


def test_three_sites_have_no_majority_to_be_unlike(book: Book) -> None:
    run_id = add_run(book, total_rounds=1)

    ScriptedWorkflow(book, run_id, "job-a", trains(), SITES).work()

    view = progress.run(book.engine, run_id)
    assert view is not None
    assert progress.suspects(view) == {}


class TestTransfer:
    """One site trains at a time: the round is that one's."""

    @staticmethod
    def plan(book: Book, **changes: Any) -> str:
        return add_run(book, min_sites=2, strategy=Strategy(changes.pop("name", "cyclic"), {}), **changes)

    @staticmethod
    def order(book: Book, run_id: str) -> list[list[tuple[str, bool]]]:
        view = progress.run(book.engine, run_id)
        assert view is not None
        return [[(one.site, one.accepted) for one in number.sites] for number in view.rounds]

    def test_each_site_has_its_turn_and_the_model_is_handed_on(self, book: Book) -> None:
        run_id = self.plan(book, total_rounds=5)
        workflow = ScriptedWorkflow(book, run_id, "job-a", trains(), SITES)

        workflow.work()

        asked = [site for task, site in workflow.asked if task == policy.TASK_TRAIN]
        assert asked == ["north", "south", "west", "north", "south"]
        assert self.order(book, run_id) == [[(site, True)] for site in asked]
        np.testing.assert_array_equal(book.checkpoint(run_id).weights["weight"], 5.0)
        assert book.state(run_id) == RunState.DONE

    def test_the_turns_outlive_the_job(self, book: Book) -> None:
        run_id = self.plan(book, total_rounds=12)
        ScriptedWorkflow(book, run_id, "job-a", trains(), SITES).work()
        later = ScriptedWorkflow(book, run_id, "job-b", trains(), SITES)

        later.work()

        assert [site for task, site in later.asked if task == policy.TASK_TRAIN] == ["south", "west"]

    @pytest.mark.parametrize("name", ["cyclic", "random-transfer"])
    def test_a_silent_site_is_passed_over_and_the_record_says_so(self, book: Book, name: str) -> None:
        run_id = self.plan(book, total_rounds=9, name=name)
        script = trains()
        script[policy.TASK_TRAIN] = lambda site, *rest: (
            None if site == "south" else trains()["train"](site, *rest)
        )
        workflow = ScriptedWorkflow(book, run_id, "job-a", script, SITES)

        workflow.work()

        assert book.state(run_id) == RunState.DONE
        found = self.order(book, run_id)
        assert all(len([site for site, accepted in one if accepted]) == 1 for one in found)
        assert (
            sum(("south", False) in one for one in found) == 1
        )  # silent once, it is not asked while others are
        np.testing.assert_array_equal(book.checkpoint(run_id).weights["weight"], 9.0)

    @pytest.mark.parametrize("value", [np.nan, 1e30], ids=["nan", "too-large"])
    def test_a_site_with_an_update_that_is_refused_is_passed_over(self, book: Book, value: float) -> None:
        run_id = self.plan(book, total_rounds=3)
        bad = {"weight": np.full((2, 2), value, np.float32)}

        def train(site: str, *rest: Any) -> Answer | None:
            return said(site, arrays=bad) if site == "north" else trains()["train"](site, *rest)

        ScriptedWorkflow(book, run_id, "job-a", {**trains(), "train": train}, SITES).work()

        expected = [[("north", False), (site, True)] for site in ("south", "west", "south")]
        assert self.order(book, run_id) == expected
        np.testing.assert_array_equal(book.checkpoint(run_id).weights["weight"], 3.0)

    def test_where_nobody_gives_an_update_the_round_does_not_count(self, book: Book) -> None:
        run_id = self.plan(book, total_rounds=3)
        script = {**trains(), policy.TASK_TRAIN: lambda site, *_: said(site, "engine_error")}
        workflow = ScriptedWorkflow(book, run_id, "job-a", script, SITES)

        workflow.work()

        assert sorted(site for task, site in workflow.asked if task == "train") == list(SITES)
        assert book.last_round(run_id) == 0
        assert book.state(run_id) == RunState.RUNNING
