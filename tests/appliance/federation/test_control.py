"""What the site's people say about a run, at any moment: pause, resume, leave, and what expiry does."""

from __future__ import annotations

import json
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import heartbeat, research_api, research_client, training
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, ProtocolState, ResearchLedgerEntry, Round
from appliance.federation import protocols, siteapi
from appliance.federation.errors import ReleaseError
from appliance.federation.exchange import Exchange, Finished, Refused
from appliance.federation.protocols import ProtocolDecisionError
from appliance.federation.unixclient import UnixClient
from appliance.work import claimed
from tests.appliance.consortium.scene import show_run
from tests.appliance.federation.research import add_subjects, finish_round
from tests.appliance.federation.ring import until
from tests.appliance.federation.test_site import CONTENT, asked, begun
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.federation.site import SiteService
    from appliance.node import ResearchZone
    from trainer.federation.plan import Plan

STOPS = (
    (ProtocolState.PAUSED, "paused"),
    (ProtocolState.LEFT, "left"),
    (ProtocolState.SUSPENDED, "suspended"),
    (ProtocolState.REFUSED, "refused"),
)


def say(zone: ResearchZone, plan: Plan, state: ProtocolState) -> None:
    with writing(zone.engine) as session:
        protocols.decide(session, zone.ledger, plan.sha256, state, "officer", "a reason")


def kinds(zone: ResearchZone) -> list[str]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(ResearchLedgerEntry.kind)))


def row_of(zone: ResearchZone, round_id: str) -> Round:
    with reading(zone.engine) as session:
        return session.get_one(Round, round_id)


@pytest.mark.parametrize(("state", "code"), STOPS, ids=[code for _, code in STOPS])
def test_nothing_runs_and_nothing_leaves_once_a_person_said_stop(
    service: SiteService, plan: Plan, state: ProtocolState, code: str
) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)
    say(service.zone, plan, state)

    with pytest.raises(ReleaseError, match="not approved"):
        service.release(view.round_id)
    decision, _ = service.begin(asked(plan))
    watched = service.watch(view.round_id)

    assert decision.code == code
    assert watched is not None
    assert watched.halted == code
    assert "round.released" not in kinds(service.zone)


def test_an_update_that_has_left_already_is_not_given_out_again_after_a_pause(
    service: SiteService, plan: Plan
) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)
    service.release(view.round_id)
    say(service.zone, plan, ProtocolState.PAUSED)

    with pytest.raises(ReleaseError):
        service.release(view.round_id)


def test_a_resumed_protocol_gives_the_finished_update(service: SiteService, plan: Plan) -> None:
    view = begun(service, plan)
    finish_round(service.zone, view.round_id)
    say(service.zone, plan, ProtocolState.PAUSED)
    with writing(service.zone.engine) as session:
        protocols.resume(session, service.zone.ledger, plan.sha256, "officer")

    leaving, _ = service.release(view.round_id)

    assert leaving.path is not None
    assert leaving.path.read_bytes() == CONTENT


def test_only_what_is_paused_resumes_and_only_what_is_approved_pauses(
    service: SiteService, plan: Plan
) -> None:
    service.propose(plan.to_json(), plan.sha256)
    with writing(service.zone.engine) as session:
        with pytest.raises(ProtocolDecisionError, match="is pending; expected paused"):
            protocols.resume(session, service.zone.ledger, plan.sha256, "officer")
        with pytest.raises(ProtocolDecisionError, match="is pending and cannot be paused"):
            protocols.decide(session, service.zone.ledger, plan.sha256, ProtocolState.PAUSED, "officer")


def test_leaving_is_final_for_all_plans_of_the_run_and_for_no_other(service: SiteService, plan: Plan) -> None:
    begun(service, plan)
    waiting = make_plan(total_rounds=2)
    service.propose(waiting.to_json(), waiting.sha256)
    say(service.zone, plan, ProtocolState.LEFT)
    later, other = make_plan(total_rounds=9), make_plan(run_id="run-2")

    answers = [service.propose(one.to_json(), one.sha256) for one in (plan, waiting, later, other)]

    assert [(one.standing, one.code) for one in answers] == [("refused", "left")] * 3 + [("pending", "")]
    for one in (plan, waiting, later):
        for state in ProtocolState:
            with pytest.raises(ProtocolDecisionError):
                say(service.zone, one, state)


def test_expiry_suspends_and_is_recorded_once(service: SiteService, zone: ResearchZone) -> None:
    add_subjects(zone, 6)
    plans = [make_plan(run_id=f"run-{number}", expires_at=now() + timedelta(hours=1)) for number in range(3)]
    view = begun(service, plans[0])
    finish_round(zone, view.round_id)
    service.propose(plans[1].to_json(), plans[1].sha256)
    service.propose(plans[2].to_json(), plans[2].sha256)
    say(zone, plans[2], ProtocolState.REFUSED)
    later = now() + timedelta(hours=2)

    with writing(zone.engine) as session:
        assert protocols.any_expired(session, later)
        counts = [protocols.suspend_expired(session, zone.ledger, later) for _ in range(2)]

    assert counts == [2, 0]
    with reading(zone.engine) as session:
        found = {row.run_id: (row.state, row.reason) for row in session.scalars(select(Protocol))}
    assert found["run-0"] == found["run-1"] == ("suspended", protocols.EXPIRED)
    assert found["run-2"][0] == "refused"
    assert kinds(zone).count("protocol.expired") == 2


def test_a_finished_update_does_not_leave_after_the_expiry_and_the_coordinator_sees_the_code(
    service: SiteService, zone: ResearchZone
) -> None:
    add_subjects(zone, 6)
    plan = make_plan(expires_at=now() + timedelta(hours=1))
    view = begun(service, plan)
    finish_round(zone, view.round_id)
    with writing(zone.engine) as session:
        protocols.find(session, plan.sha256).expires_at = now()

    with pytest.raises(ReleaseError):
        service.release(view.round_id)
    watched = service.watch(view.round_id)

    assert watched is not None
    assert watched.halted == "expired"


def test_the_hours_of_all_rounds_of_a_run_count_and_end_it_here(
    service: SiteService, zone: ResearchZone
) -> None:
    add_subjects(zone, 6)
    plan = make_plan(max_hours=1.0)
    view = begun(service, plan)
    for seconds, code in ((3599.0, ""), (3600.0, "hours_spent")):
        with writing(zone.engine) as session:
            session.get_one(Round, view.round_id).compute_seconds = seconds
        decision, _ = service.begin(asked(plan))
        assert decision.code == code
    service.begin(asked(plan))

    assert kinds(zone).count("order.refused") == 1


def test_a_round_under_way_stops_at_the_next_step_and_starts_anew_after_the_pause(
    service: SiteService, plan: Plan
) -> None:
    zone = service.zone
    view = begun(service, plan)
    with claimed(zone.engine, Round, view.round_id, "test", 20.0) as claim:
        assert claim is not None
        beat = heartbeat.Heartbeat(claim)
        beat("train", 1, 4)
        say(zone, plan, ProtocolState.PAUSED)
        beat.beaten = 0.0  # a second later
        with pytest.raises(heartbeat.HaltedError) as caught:
            beat("train", 2, 4)
        assert caught.value.code == "paused"
        training.run_round(zone, claim)
    row = row_of(zone, view.round_id)
    assert (row.state, row.halted_by) == (WorkState.DEAD, "paused")
    assert row.compute_seconds > 0
    with writing(zone.engine) as session:
        protocols.resume(session, zone.ledger, plan.sha256, "officer")

    _, again = service.begin(asked(plan))

    assert again is not None
    assert again.state == WorkState.QUEUED
    assert row_of(zone, view.round_id).halted_by is None


def test_an_engine_that_waits_for_a_round_is_told_of_the_pause_at_once(
    service: SiteService, plan: Plan, tmp_path: Path
) -> None:
    zone = service.zone
    show_run(zone, tmp_path / "coordinator", plan.sha256, asked(plan).model_sha256)
    services = research_api.start_api(zone)
    try:
        view = begun(service, plan)
        exchange = Exchange(UnixClient(siteapi.socket_path(zone.settings), 10.0), lambda: False)
        answers: list[Finished | Refused] = []
        waiting = Thread(
            target=lambda: answers.append(exchange.run(vars(asked(plan)), CONTENT, 0.0)), daemon=True
        )
        waiting.start()
        client = research_client.connect(zone.settings)
        until(waiting.is_alive, 20, "the engine waits")
        client.decide(plan.sha256, "pause", "officer", "the network is busy")
        waiting.join(20)

        assert not waiting.is_alive()
        [answer] = answers
        assert isinstance(answer, Refused)
        assert answer.code == "paused"
        assert client.decide(plan.sha256, "resume", "officer").state == "approved"
        finish_round(zone, view.round_id)
        assert isinstance(exchange.run(vars(asked(plan)), CONTENT, 0.0), Finished)
        assert client.decide(plan.sha256, "leave", "officer").state == "left"
    finally:
        services.stop()


def test_each_refused_order_is_recorded_once_however_often_it_is_asked(
    service: SiteService, plan: Plan
) -> None:
    begun(service, plan)
    asks_too_much = make_plan(total_rounds=99)
    for _ in range(3):
        service.propose({"want": "activations"}, "0" * 64)
        service.propose(asks_too_much.to_json(), plan.sha256)
        service.begin(asked(plan, kind="activations"))
        service.begin(asked(asks_too_much))
        for number in (4, 5, 99):
            service.begin(asked(plan, number=number))

    with reading(service.zone.engine) as session:
        found = [
            (entry.subject_id is not None, json.loads(entry.body)["code"])
            for entry in session.scalars(select(ResearchLedgerEntry))
            if entry.kind == "order.refused"
        ]
    assert sorted(found) == [
        (False, "other_plan"),
        (False, "unknown_kind"),
        (False, "unknown_plan"),
        (False, "unreadable_plan"),
        (True, "not_in_plan"),
    ]
