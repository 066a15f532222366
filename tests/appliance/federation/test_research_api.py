from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import node, research_api, research_client
from appliance.db.base import WorkState, new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Receipt, ResearchJob, Round
from appliance.federation import siteapi
from appliance.federation.errors import SiteServiceError
from appliance.federation.exchange import AbortedError, Exchange, Finished, Refused
from appliance.federation.site import SiteService
from appliance.federation.unixclient import UnixClient
from appliance.research_client import ResearchRefusedError, ResearchUnavailableError
from tests.appliance.consortium.scene import show_run
from tests.appliance.federation.research import add_subjects, finish_round
from tests.appliance.federation.ring import until
from tests.appliance.federation.test_site import CONTENT, approve, asked, begun, count_rounds, stored_models
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.node import ResearchZone
    from appliance.research_client import ResearchClient
    from appliance.settings import Settings

PLAN = make_plan()


@pytest.fixture
def zone(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[ResearchZone]:
    opened = node.open_research(make_node(federation={"site": "north", "minimum_cohort": 3}))
    add_subjects(opened, 6)
    show_run(opened, tmp_path / "coordinator", PLAN.sha256, asked(PLAN).model_sha256)
    services = research_api.start_api(opened)
    yield opened
    services.stop()
    opened.engine.dispose()


@pytest.fixture
def client(zone: ResearchZone) -> ResearchClient:
    return research_client.connect(zone.settings)


@pytest.fixture
def exchange(zone: ResearchZone) -> Exchange:
    return Exchange(UnixClient(siteapi.socket_path(zone.settings), 10.0), lambda: False)


def test_the_summary_counts(client: ResearchClient) -> None:
    summary = client.summary()

    assert (summary.site, summary.subjects, summary.instances, summary.opted_out) == ("north", 6, 6, 0)
    [label] = summary.labels
    assert (label.name, label.positive, label.negative) == ("blob", 3, 3)
    assert summary.last_import_at is None


def test_a_plan_is_shown_with_what_a_person_needs_and_approved(
    client: ResearchClient, exchange: Exchange
) -> None:
    assert exchange.admit(PLAN.to_json(), PLAN.sha256, 0.0) == Refused(
        "not_approved", "nobody approved the plan in time"
    )
    [view] = client.protocols()
    assert (view.state, view.cohort, view.minimum_cohort, view.label) == ("pending", 6, 5, "blob")
    assert view.expires_at == PLAN.expires_at

    decided = client.decide(PLAN.sha256[:12], "approve", "user-7", "looks good", view.shown_sha256)

    assert (decided.state, decided.decided_by, decided.reason) == ("approved", "user-7", "looks good")
    assert exchange.admit(PLAN.to_json(), PLAN.sha256, 0.0) is None


def test_a_round_goes_from_question_to_signed_update(
    client: ResearchClient, exchange: Exchange, zone: ResearchZone
) -> None:
    view = begun(SiteService(zone), PLAN)
    finish_round(zone, view.round_id)

    answer = exchange.run(vars(asked(PLAN)), CONTENT, 0.0)

    assert isinstance(answer, Finished)
    assert (answer.content, answer.samples, answer.metrics) == (CONTENT, 12, {"auc": 0.75})
    [receipt] = client.receipts()
    assert receipt.genuine
    assert receipt.body_sha256 == answer.receipt_sha256
    [run] = client.runs()
    assert (run.finished_rounds, run.total_rounds, run.rounds[0].metrics) == (1, 3, {"auc": 0.75})
    assert [row.kind for row in client.ledger()][:2] == ["round.released", "round.requested"]
    assert client.verify_ledger().ok
    assert len(client.datasets()) == 1


def test_the_model_is_stored_when_the_site_wants_it_and_not_before(
    exchange: Exchange, zone: ResearchZone
) -> None:
    exchange.admit(PLAN.to_json(), PLAN.sha256, 0.0)

    refused = exchange.run(vars(asked(PLAN)), CONTENT, 0.0)
    assert isinstance(refused, Refused)
    assert refused.code == "not_approved"
    assert stored_models(zone) == []
    approve(zone, PLAN)
    running = Thread(target=exchange.run, args=(vars(asked(PLAN)), CONTENT, 0.0), daemon=True)
    running.start()
    until(lambda: count_rounds(zone) == 1, 20, "the round's row")
    with reading(zone.engine) as session:
        finish_round(zone, session.scalars(select(Round.id)).one())
    running.join(20)

    assert not running.is_alive()
    assert stored_models(zone) == [asked(PLAN).model_sha256]


@pytest.mark.parametrize("query", ["", "?number=1", "?number=x&kind=train&plan_sha256=a", "?number=-1"])
def test_a_model_without_its_round_is_refused(exchange: Exchange, query: str) -> None:
    with pytest.raises(SiteServiceError) as caught:
        exchange.client.send("PUT", f"/v1/models/{'0' * 64}{query}", CONTENT)

    assert not caught.value.retryable


def test_a_dead_round_is_an_answer_with_its_reason(exchange: Exchange, zone: ResearchZone) -> None:
    view = begun(SiteService(zone), PLAN)
    with writing(zone.engine) as session:
        row = session.get(Round, view.round_id)
        assert row is not None
        row.state, row.reason = WorkState.DEAD, "no usable case"

    answer = exchange.run(vars(asked(PLAN)), CONTENT, 0.0)

    assert answer == Refused("round_failed", "no usable case")


def test_waiting_ends_when_the_engine_aborts(zone: ResearchZone) -> None:
    exchange = Exchange(UnixClient(siteapi.socket_path(zone.settings)), lambda: True)

    with pytest.raises(AbortedError):
        exchange.admit(PLAN.to_json(), PLAN.sha256, 60.0)


def test_a_forged_receipt_is_seen(client: ResearchClient, zone: ResearchZone) -> None:
    service = SiteService(zone)
    view = begun(service, PLAN)
    finish_round(zone, view.round_id)
    service.release(view.round_id)
    with writing(zone.engine) as session:
        row = session.query(Receipt).one()
        row.body = {**row.body, "samples": 1}

    assert [one.genuine for one in client.receipts()] == [False]


def test_dead_work_is_listed_and_retried(client: ResearchClient, zone: ResearchZone) -> None:
    view = begun(SiteService(zone), PLAN)
    job_id = new_id()
    with writing(zone.engine) as session:
        row = session.get(Round, view.round_id)
        assert row is not None
        row.state, row.reason = WorkState.DEAD, "out of memory"
        session.add(
            ResearchJob(id=job_id, kind="export", subject_id="x", dedupe_key="x", state=WorkState.DEAD)
        )

    dead = client.jobs(state="dead")
    assert {(one.table, one.id) for one in dead} == {("round", view.round_id), ("job", job_id)}
    assert client.retry("round", view.round_id, "user-7")
    assert not client.retry("round", view.round_id, "user-7")
    assert [one.id for one in client.jobs(state="queued")] == [view.round_id]


@pytest.mark.parametrize(
    ("protocol", "decision"), [("unknown", "approve"), ("0" * 64, "approve"), ("x" * 200, "approve")]
)
def test_decisions_about_nothing_are_refused(client: ResearchClient, protocol: str, decision: str) -> None:
    with pytest.raises(ResearchRefusedError):
        client.decide(protocol, decision, "user-7", shown="0" * 64)


def test_a_decision_without_a_person_or_of_an_unknown_kind_is_refused(
    client: ResearchClient, exchange: Exchange
) -> None:
    exchange.admit(PLAN.to_json(), PLAN.sha256, 0.0)

    with pytest.raises(ResearchRefusedError):
        client.decide(PLAN.sha256, "approve", "")
    with pytest.raises(ResearchRefusedError):
        client.decide(PLAN.sha256, "bless", "user-7")


def test_a_zone_that_does_not_run_is_unavailable(make_node: Callable[..., Settings]) -> None:
    with pytest.raises(ResearchUnavailableError):
        research_client.connect(make_node("other")).summary()


def test_the_ledger_is_paged(client: ResearchClient, zone: ResearchZone) -> None:
    begun(SiteService(zone), PLAN)

    newest = client.ledger(limit=1)
    rest = client.ledger(before=newest[0].sequence)

    assert len(newest) == 1
    assert [row.sequence for row in rest] == list(range(newest[0].sequence - 1, 0, -1))
