"""A change asks again and shows what is new; nobody approves what was not shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from appliance import cli, research_api, research_client
from appliance.cli import WRONG_USE
from appliance.db.engine import writing
from appliance.db.research import ProtocolState
from appliance.federation import comparing, protocols, queries
from appliance.federation.protocols import ProtocolDecisionError
from appliance.research_client import ResearchRefusedError
from tests.appliance.federation.research import add_subjects
from tests.trainer.federation.plans import make_plan
from tests.trainer.samples import small_task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.federation.site import SiteService
    from appliance.federation.views import ProtocolView
    from appliance.node import ResearchZone
    from appliance.research_client import ResearchClient
    from trainer.federation.plan import Plan


def view_of(service: SiteService, plan: Plan) -> ProtocolView:
    service.propose(plan.to_json(), plan.sha256)
    with writing(service.zone.engine) as session:
        return queries.protocol(session, service.zone, plan.sha256)


def approve(service: SiteService, plan: Plan, shown: str | None = None) -> None:
    shown = view_of(service, plan).shown_sha256 if shown is None else shown
    with writing(service.zone.engine) as session:
        comparing.approve(session, service.zone.ledger, plan.sha256, "officer", None, shown)


def test_a_first_plan_has_nothing_to_be_compared_with(service: SiteService, plan: Plan) -> None:
    assert view_of(service, plan).comparison is None


def test_a_changed_plan_of_a_run_shows_what_is_new_against_the_approved_one(
    service: SiteService, plan: Plan
) -> None:
    approve(service, plan)

    found = view_of(service, make_plan(total_rounds=9, max_update_norm=200.0)).comparison

    assert found is not None
    assert (found.rule, found.plan_sha256) == ("same_run", plan.sha256)
    assert [(one.field, one.old, one.new, one.grade) for one in found.differences] == [
        ("max_update_norm", 100.0, 200.0, "asks_more"),
        ("total_rounds", 3, 9, "asks_more"),
    ]


def test_another_run_is_compared_by_its_task_and_not_with_what_nobody_approved(
    service: SiteService, plan: Plan
) -> None:
    approve(service, plan)
    view_of(service, make_plan(run_id="run-2", total_rounds=7))

    same = view_of(service, make_plan(run_id="run-3", total_rounds=8)).comparison
    other = view_of(service, make_plan(run_id="run-4", task=small_task(name="other"))).comparison

    assert same is not None
    assert (same.rule, same.plan_sha256) == ("same_task", plan.sha256)
    assert other is None


def test_a_plan_that_was_withdrawn_later_is_still_the_one_that_people_know(
    service: SiteService, plan: Plan
) -> None:
    approve(service, plan)
    with writing(service.zone.engine) as session:
        protocols.decide(session, service.zone.ledger, plan.sha256, ProtocolState.SUSPENDED, "officer")

    assert view_of(service, make_plan(total_rounds=9)).comparison is not None
    assert view_of(service, plan).comparison is None


@pytest.mark.parametrize("shown", ["", "0" * 64, "\ud800"], ids=["none", "other", "no text"])
def test_an_approval_of_something_else_is_refused(service: SiteService, plan: Plan, shown: str) -> None:
    view_of(service, plan)

    with pytest.raises(ProtocolDecisionError, match="not what was shown"):
        approve(service, plan, shown)


def test_an_approval_counts_no_longer_when_what_is_new_has_changed_meanwhile(
    service: SiteService, plan: Plan
) -> None:
    changed = make_plan(total_rounds=9)
    before = view_of(service, changed).shown_sha256
    approve(service, plan)

    with pytest.raises(ProtocolDecisionError, match="not what was shown"):
        approve(service, changed, before)
    approve(service, changed)


@pytest.fixture
def client(zone: ResearchZone) -> Iterator[ResearchClient]:
    services = research_api.start_api(zone)
    yield research_client.connect(zone.settings)
    services.stop()


def test_the_socket_takes_no_approval_without_what_was_shown(
    service: SiteService, plan: Plan, client: ResearchClient
) -> None:
    service.propose(plan.to_json(), plan.sha256)

    for shown in ("", "0" * 64):
        with pytest.raises(ResearchRefusedError):
            client.decide(plan.sha256, "approve", "officer", shown=shown)

    assert client.protocol(plan.sha256).state == "pending"


def test_the_command_line_shows_a_change_and_approves_it_by_what_it_showed(
    service: SiteService, zone: ResearchZone, client: ResearchClient, tmp_path: Path
) -> None:
    add_subjects(zone, 6)
    toml = tmp_path / "cloister.toml"
    toml.write_text(f'name = "node"\ndata_root = "{zone.settings.data_root}"\n')
    first, second = make_plan(), make_plan(total_rounds=9)
    config = ["--config", str(toml)]
    for plan in (first, second):
        service.propose(plan.to_json(), plan.sha256)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.build(), ["protocol", *words, *config])
        return done.exit_code, done.output

    assert run("approve", first.sha256[:12])[0] == 0
    code, said = run("approve", second.sha256[:12])
    assert code == WRONG_USE
    assert "asks_more  rounds: 3 -> 9" in said
    assert client.protocol(second.sha256).state == "pending"
    assert run("approve", second.sha256[:12], "--shown", "0" * 12)[0] == WRONG_USE
    shown = json.loads(run("show", second.sha256[:12])[1])["shown_sha256"]
    assert run("approve", second.sha256[:12], "--shown", shown[:12])[0] == 0
    for word, state in (("pause", "paused"), ("resume", "approved"), ("leave", "left")):
        code, said = run(word, second.sha256[:12], "--reason", "a test")
        assert (code, client.protocol(second.sha256).state) == (0, state)
        assert "a test" in said
    assert run("resume", second.sha256[:12])[0] != 0
