from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from appliance.db.coordinator import RunState
from appliance.federation import policy, progress
from tests.appliance.federation.scripted import Script, ScriptedWorkflow, everyone_admits, said
from tests.appliance.federation.test_controller import SITES, add_run
from trainer.federation import aggregation, swarming
from trainer.federation.plan import Strategy
from trainer.strategies.swarm import leader

if TYPE_CHECKING:
    from appliance.federation.answers import Answer
    from appliance.federation.book import Book


class TestSwarm:
    """A drawn site aggregates; the coordinator averages nothing."""

    @pytest.fixture(autouse=True)
    def nothing_is_averaged_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("the coordinator aggregates")

        monkeypatch.setattr(aggregation, "aggregate", refuse)

    @staticmethod
    def mean(site: str, _: Any, data: Any) -> Answer:
        """Do what the drawn site does, by hand."""
        model, updates = swarming.unbundle(FLModelUtils.from_shareable(data).params)
        total = sum(one.samples for one in updates)
        moved = sum(one.delta["weight"] * one.samples for one in updates) / total
        return said(site, samples=0, arrays={"weight": np.asarray(model["weight"] + moved, np.float32)})

    def script(self) -> Script:
        def train(site: str, *_: Any) -> Answer:
            value = SITES.index(site) + 1.0
            return said(site, samples=10, arrays={"weight": np.full((2, 2), value, np.float32)})

        return {**everyone_admits(), policy.TASK_TRAIN: train, policy.TASK_AGGREGATE: self.mean}

    @staticmethod
    def leaders(book: Book, run_id: str) -> list[list[str]]:
        view = progress.run(book.engine, run_id)
        assert view is not None
        return [[one.site for one in number.sites if one.metrics.get(progress.LED)] for number in view.rounds]

    def test_the_drawn_site_aggregates_and_the_record_names_it(self, book: Book) -> None:
        run_id = add_run(book, total_rounds=4, strategy=Strategy("swarm", {}))
        workflow = ScriptedWorkflow(book, run_id, "job-a", self.script(), SITES)

        workflow.work()

        drawn = [leader(number, SITES, book.plan(run_id).seed) for number in range(1, 5)]
        assert [site for task, site in workflow.asked if task == policy.TASK_AGGREGATE] == drawn
        assert self.leaders(book, run_id) == [[site] for site in drawn]
        np.testing.assert_allclose(book.checkpoint(run_id).weights["weight"], 8.0)
        assert book.state(run_id) == RunState.DONE

    @pytest.mark.parametrize("fault", ["silent", "refuses", "lies", "nan", "other"])
    def test_a_site_that_gives_no_usable_model_is_passed_over(self, book: Book, fault: str) -> None:
        run_id = add_run(book, total_rounds=1, strategy=Strategy("swarm", {}))
        first = leader(1, SITES, book.plan(run_id).seed)
        arrays = {
            "lies": {"weight": np.full((2, 2), 9.0, np.float32)},
            "nan": {"weight": np.full((2, 2), np.nan, np.float32)},
            "other": {"weight": np.zeros((3, 3), np.float32)},
        }

        def answer(site: str, order: Any, data: Any) -> Answer | None:
            if site != first:
                return self.mean(site, order, data)
            if fault == "silent":
                return None
            return said(site, "round_failed" if fault == "refuses" else "", arrays=arrays.get(fault))

        script = {**self.script(), policy.TASK_AGGREGATE: answer}
        ScriptedWorkflow(book, run_id, "job-a", script, SITES).work()

        second = leader(1, set(SITES) - {first}, book.plan(run_id).seed)
        assert self.leaders(book, run_id) == [[second]]
        np.testing.assert_allclose(book.checkpoint(run_id).weights["weight"], 2.0)

    def test_where_no_site_aggregates_the_round_does_not_count(self, book: Book) -> None:
        run_id = add_run(book, total_rounds=1, strategy=Strategy("swarm", {}))
        script = {**self.script(), policy.TASK_AGGREGATE: lambda site, *_: said(site, "engine_error")}
        workflow = ScriptedWorkflow(book, run_id, "job-a", script, SITES)

        workflow.work()

        assert sorted(site for task, site in workflow.asked if task == policy.TASK_AGGREGATE) == list(SITES)
        assert book.last_round(run_id) == 0
        assert "no site gave a model" in workflow.panics[0]
