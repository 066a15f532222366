from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer

from appliance.federation.controller import RunWorkflow
from appliance.federation.liveness import SILENT_AFTER_S, Signs


def test_a_site_that_gave_no_sign_for_too_long_is_silent() -> None:
    signs = Signs()
    signs.heard("north", 100.0)
    signs.heard("south", 130.0)
    at = 100.0 + SILENT_AFTER_S
    assert signs.silent({"north", "south"}, at, since=90.0) == {"north"}


def test_a_site_that_was_never_heard_has_its_time_from_the_question_on() -> None:
    signs = Signs()
    assert signs.silent({"west"}, 50.0 + SILENT_AFTER_S - 1, since=50.0) == frozenset()
    assert signs.silent({"west"}, 50.0 + SILENT_AFTER_S, since=50.0) == {"west"}


def test_silence_before_the_question_does_not_count() -> None:
    signs = Signs()
    signs.heard("north", 0.0)
    assert signs.silent({"north"}, 1000.0, since=990.0) == frozenset()


def test_the_workflow_hears_what_the_engine_hears() -> None:
    """The engine reports each job process's heartbeats, questions and answers to its communicator."""
    communicator, workflow = WFCommServer(), RunWorkflow("run-1")
    workflow.set_communicator(communicator)
    communicator.client_is_active("north", "jobHeartbeat", FLContext())
    assert workflow._signs.silent({"north"}, 1e12, since=0.0) == {"north"}
    assert set(workflow._signs._heard) == {"north"}
