"""How tasks are given out and answers gathered, with the engine's own tasks and no engine."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, SendOrder, Task, TaskCompletionStatus
from nvflare.apis.shareable import make_reply
from nvflare.apis.signal import Signal

from appliance.federation import messages, policy
from appliance.federation.collection import Collection
from appliance.federation.controller import RunWorkflow
from appliance.federation.errors import CoordinatorError
from appliance.federation.keykeeper import KeyKeeper
from appliance.federation.wayback import whole
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.federation.answers import Answer

SITES = frozenset({"north", "south"})


class Workflow(RunWorkflow):
    """Every site answers at once; ``tasks`` are held as the engine holds them after their end."""

    def __init__(self) -> None:
        super().__init__("run")
        self._members = lambda: SITES
        self.tasks: list[Task] = []
        self.cancelled: list[Task] = []
        self.sent: list[int] = []
        self._key = KeyKeeper(make_plan(), Path("unused"))

    def send(self, task: Task, fl_ctx: Any, targets: list[str], send_order: SendOrder) -> None:
        """Have the site answer."""
        assert send_order == SendOrder.ANY
        [site] = targets
        self.tasks.append(task)
        self.sent.append(id(task.data))
        self.answer(task, site, fl_ctx)

    def answer(self, task: Task, site: str, fl_ctx: Any) -> None:
        """Let a site's answer arrive."""
        said = ClientTask(client=Client(site, ""), task=task)
        task.client_tasks.append(said)
        reply = make_reply("OK")
        reply[messages.ANSWER_KEY] = json.dumps({**messages.refusal_of(None), "samples": 10})
        said.result = reply
        task.result_received_cb(said, fl_ctx)

    def cancel_task(self, task: Task, completion_status: TaskCompletionStatus, fl_ctx: Any) -> None:
        """Take note."""
        del completion_status, fl_ctx
        self.cancelled.append(task)

    def get_client_disconnect_time(self, client_name: str) -> None:
        """Nobody is gone."""
        del client_name


@pytest.fixture
def no_collection_of_garbage() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def ask(workflow: Workflow, arrays: dict[str, Any], kept: list[str]) -> list[Answer]:
    def keep(answer: Answer) -> Answer:
        kept.append(f"{answer.site} beside {len(arrays)} arrays")  # as a shelf holds the round's model
        return answer

    return ask_and(workflow, arrays, keep)


def ask_and(workflow: Workflow, arrays: dict[str, Any], keep: Callable[[Answer], Answer]) -> list[Answer]:
    collection = Collection(SITES, SITES, 2, 60.0, 0.0, time.monotonic(), limit_s=60.0)
    order = messages.Order("ab" * 32, 1)
    return workflow._ask(policy.TASK_TRAIN, whole(arrays, 1), order, collection, Signal(), None, keep)


@pytest.mark.usefixtures("no_collection_of_garbage")
def test_a_round_that_is_over_holds_no_model_though_the_engine_holds_its_tasks() -> None:
    workflow, kept = Workflow(), []  # type: tuple[Workflow, list[str]]
    arrays = {"weight": np.ones(1000, np.float32)}
    model = weakref.ref(arrays["weight"])

    answers = ask(workflow, arrays, kept)
    del arrays

    assert [one.site for one in answers] == ["north", "south"]
    assert len(workflow.tasks) == 2
    assert workflow.cancelled == workflow.tasks
    assert model() is None


@pytest.mark.usefixtures("no_collection_of_garbage")
def test_a_round_that_is_over_holds_no_update_though_the_engine_holds_its_tasks() -> None:
    workflow, updates = Workflow(), []  # type: tuple[Workflow, list[weakref.ref[Any]]]

    def keep(answer: Answer) -> Answer:
        update = np.ones(1000, np.float32)
        updates.append(weakref.ref(update))
        return replace(answer, arrays={"weight": update})

    answers = ask_and(workflow, {"weight": np.ones(3, np.float32)}, keep)
    assert [one() is not None for one in updates] == [True, True]
    del answers

    assert len(workflow.tasks) == 2
    assert [one() for one in updates] == [None, None]


def test_each_site_has_a_task_of_its_own_with_the_same_arrays() -> None:
    workflow = Workflow()
    ask(workflow, {"weight": np.ones(3, np.float32)}, [])

    assert len({id(task) for task in workflow.tasks}) == 2
    assert len(set(workflow.sent)) == 1


def test_an_answer_after_the_end_is_not_kept() -> None:
    workflow, kept = Workflow(), []  # type: tuple[Workflow, list[str]]
    answers = ask(workflow, {"weight": np.ones(3, np.float32)}, kept)

    workflow.answer(workflow.tasks[0], "north", None)

    assert len(kept) == len(answers) == 2


def test_answers_of_several_sites_are_kept_at_once() -> None:
    both = threading.Barrier(2, timeout=30.0)

    def keep(answer: Answer) -> Answer:
        both.wait()
        return answer

    answers = ask_and(Workflow(), {"weight": np.ones(3, np.float32)}, keep)
    assert [(one.site, one.said.code) for one in answers] == [("north", ""), ("south", "")]


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (OSError(28, "No space left on device"), CoordinatorError, "could not be kept .No space left"),
        (RuntimeError("a fault of ours"), RuntimeError, "a fault of ours"),
    ],
)
def test_an_answer_that_cannot_be_kept_ends_the_asking_with_its_reason(
    raised: Exception, expected: type[Exception], words: str
) -> None:
    def keep(answer: Answer) -> Answer:
        if answer.site == "south":
            raise raised
        return answer

    with pytest.raises(expected, match=words):
        ask_and(Workflow(), {"weight": np.ones(3, np.float32)}, keep)
