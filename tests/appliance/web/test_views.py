"""Queries and drawings of every page, without a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.encoders import jsonable_encoder
from sqlalchemy import select

from appliance.auth import Principal, Right
from appliance.db.base import now
from appliance.db.clinical import Instance, Study
from appliance.db.engine import reading
from appliance.web.panel import (
    federation,
    home,
    jobs,
    ledger,
    peers,
    quarantine,
    receipt,
    results,
    run,
    shares,
    studies,
    study,
)
from appliance.web.panel.markup import join
from appliance.web.panel.page import ActionRefusedError, NotThereError, Page, Query
from appliance.web.panel.pages import PAGES
from tests.appliance.web.seed import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.web.desk import Desk
    from tests.appliance.web.seed import Seed

NOBODY_IN_PARTICULAR = Principal("0" * 32, "somebody", frozenset(Right), now() + timedelta(hours=1))
LISTS = [page for page in PAGES if "{" not in page.path]
DETAILS = [page for page in PAGES if "{" in page.path and "runs" not in page.path]
_VOID = {"input", "br", "img"}


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _query(page: Page[Any], planted: Seed) -> Query:
    return Query(
        {
            "study_id": planted.studies[4],
            "result_id": planted.pictures[0],
            "model_id": planted.models["active"],
            "peer_id": planted.destination,
            "fetch_id": planted.fetch,
            "instance_id": planted.instance,
            "item_id": planted.quarantine,
            "run_id": planted.run_id,
            "receipt_id": planted.receipt,
        }
        if "{" in page.path
        else {}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_page_draws_well_formed_markup(
    page: Page[Any], desk: Desk, planted: Seed, viewer_of: Callable[[str], Principal]
) -> None:
    viewer = viewer_of("ada")
    drawn = join(page.draw(page.load(desk, viewer, _query(page, planted)), viewer).values())
    balance = _Balance()
    balance.feed(str(drawn))
    assert balance.open == []
    assert len(balance.ids) == len(set(balance.ids))
    assert "<h1>" in drawn


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_without_the_right_no_page_shows_an_identity(
    page: Page[Any], desk: Desk, planted: Seed, viewer_of: Callable[[str], Principal]
) -> None:
    viewer = viewer_of("viewer")
    view = page.load(desk, viewer, _query(page, planted))
    shown = json.dumps(jsonable_encoder(view)) + join(page.draw(view, viewer).values())
    with reading(desk.zone.engine) as session:
        found = session.scalars(select(Study)).all()
        uids = session.scalars(select(Instance.sop_instance_uid)).all()
    secrets = {*uids}
    for one in found:
        secrets |= {
            one.patient_id,
            one.study_instance_uid,
            *one.patient_name.split("^"),
            one.study_description,
        }
    assert [secret for secret in secrets if secret and secret in shown] == []


@pytest.mark.parametrize("page", LISTS, ids=lambda page: page.path)
def test_every_list_of_an_empty_node_says_what_to_do_next(page: Page[Any], empty_desk: Desk) -> None:
    view = page.load(empty_desk, NOBODY_IN_PARTICULAR, Query())
    drawn = join(page.draw(view, NOBODY_IN_PARTICULAR).values())
    hopeful = (
        'class="nothing"' in drawn
        or "does not answer" in drawn
        or page.path in {"/users", "/ledger", "/rules", "/regions"}
    )
    assert hopeful


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "{" in page.path and "runs" not in page.path], ids=lambda p: p.path
)
def test_a_row_that_is_gone_is_not_there(page: Page[Any], desk: Desk) -> None:
    gone = Query({"study_id": "0" * 32, "result_id": "0" * 32, "model_id": "0" * 32})
    with pytest.raises(NotThereError):
        page.load(desk, NOBODY_IN_PARTICULAR, gone)


def test_home_names_each_problem_with_its_fix(desk: Desk) -> None:
    view = home.load(desk, NOBODY_IN_PARTICULAR, Query())
    problems = {check.name: check.fix for check in view.problems}
    assert "process indexer" in problems
    assert all(problems.values())


def test_home_counts_what_happened_today(desk: Desk) -> None:
    view = home.load(desk, NOBODY_IN_PARTICULAR, Query())
    with reading(desk.zone.engine) as session:
        received = [row.first_received_at for row in session.scalars(select(Study))]
    assert view.today.studies == sum(at >= view.today.since for at in received)
    assert view.today.delivered == 4
    dead = {row.kind: row.dead for row in view.queues}
    assert dead["infer"] + dead["deidentify"] <= 1


def test_studies_are_found_by_name_by_those_who_may_see_names(
    desk: Desk, viewer_of: Callable[[str], Principal]
) -> None:
    query = Query({"q": "ekman"})
    assert [
        row.identity.patient_name for row in studies.load(desk, viewer_of("ada"), query).rows if row.identity
    ] == ["Ekman, Liv"]
    assert studies.load(desk, viewer_of("viewer"), query).rows == ()


def test_studies_are_found_by_the_number_that_everybody_sees(desk: Desk, planted: Seed) -> None:
    query = Query({"q": f"Study {planted.studies[3][:8]}"})
    assert [row.id for row in studies.load(desk, NOBODY_IN_PARTICULAR, query).rows] == [planted.studies[3]]


@pytest.mark.parametrize("search", ["%", "_", "\\", "'; drop table study; --"])
def test_wildcards_and_quotes_in_a_search_are_plain_text(desk: Desk, search: str) -> None:
    assert studies.load(desk, NOBODY_IN_PARTICULAR, Query({"q": search})).total == 0


def test_a_query_keeps_only_what_can_be_printed() -> None:
    assert Query({"q": " a\0b\n" + "x" * 500}).text("q", length=5) == "abxxx"


def test_studies_are_filtered_by_state_and_modality(desk: Desk) -> None:
    found = studies.load(desk, NOBODY_IN_PARTICULAR, Query({"state": "quarantined", "modality": "CR"}))
    assert [row.reason for row in found.rows] == ["identity.mismatch: two patients in one study"]
    assert studies.load(desk, NOBODY_IN_PARTICULAR, Query({"state": "bogus"})).total >= len(NAMES)


def test_pages_beyond_the_last_show_the_last(desk: Desk) -> None:
    assert studies.load(desk, NOBODY_IN_PARTICULAR, Query({"page": "99999999999"})).page == 1
    assert studies.load(desk, NOBODY_IN_PARTICULAR, Query({"page": "-1"})).page == 1


def test_a_study_tells_where_each_revision_went(desk: Desk, planted: Seed) -> None:
    view = study.load(desk, NOBODY_IN_PARTICULAR, Query({"study_id": planted.studies[4]}))
    assert [row.number for row in view.revisions] == [2, 1]
    assert {step.kind for step in view.revisions[0].steps} == {"deidentify", "infer"}
    assert {row.kind for row in view.results} == {"sc", "sr"}


def test_a_study_tells_why_something_of_it_was_stopped(desk: Desk, planted: Seed) -> None:
    view = study.load(desk, NOBODY_IN_PARTICULAR, Query({"study_id": planted.studies[6]}))
    assert {row.reason_code for row in view.stopped} == {"burned_in_annotation", "unusable_patient_id"}


def test_results_show_one_line_for_each_model_and_study_revision(desk: Desk) -> None:
    view = results.load(desk, NOBODY_IN_PARTICULAR, Query())
    assert [row.positive for row in view.rows] == [True, False, False, True]
    assert [row.shadow for row in view.rows] == [False, False, False, True]
    assert view.rows[3].deliveries == ()


def test_jobs_put_what_needs_a_person_first(desk: Desk) -> None:
    states = [row.state for row in jobs.load(desk, NOBODY_IN_PARTICULAR, Query()).rows]
    order = ["dead", "failed", "running", "queued", "done"]
    assert states == sorted(states, key=order.index)


def test_quarantine_counts_what_is_open_by_reason(desk: Desk) -> None:
    view = quarantine.load(desk, NOBODY_IN_PARTICULAR, Query({"show": "all"}))
    assert "duplicate_differs" in {row.reason_code for row in view.rows}
    assert "duplicate_differs" not in dict(view.reasons)


def test_peers_show_why_a_caller_was_turned_away(desk: Desk) -> None:
    view = peers.load(desk, NOBODY_IN_PARTICULAR, Query())
    assert "a peer has this AE title, at another address" in {row.reason for row in view.callers}


def test_federation_shows_protocols_runs_and_genuine_receipts(desk: Desk, planted: Seed) -> None:
    view = federation.load(desk, NOBODY_IN_PARTICULAR, Query())
    assert {row.run_id for row in view.protocols} == {"run-1", "run-2"}
    assert [one.genuine for one in view.receipts] == [True] * 5
    page = run.load(desk, NOBODY_IN_PARTICULAR, Query({"run_id": planted.run_id}))
    assert page.run is not None
    assert [one.number for one in page.run.rounds if one.state == "done"] == [1, 2, 3, 4, 5]


def test_a_waiting_protocol_shows_its_preflight_and_what_is_new_before_it_is_approved(desk: Desk) -> None:
    view = federation.load(desk, NOBODY_IN_PARTICULAR, Query())
    [row] = [one for one in view.protocols if one.run_id == "run-2"]
    assert row.comparison is not None
    assert [one.field for one in row.comparison.differences] == [
        "total_rounds",
        "name",
        "run_id",
        "max_hours",
    ]
    drawn = str(federation.PAGE.draw(view, NOBODY_IN_PARTICULAR)["now"])
    for words in (
        "asks more",
        "the coordinator reads them",
        "36 used of 40 eligible; left out: 1 pixel values, 3 unlabelled",
        "The same pictures are in training and held out.",
        "0.14 hours for 12 rounds (the plan allows 6; measured on 6 steps)",
    ):
        assert words in drawn


def test_a_receipt_is_shown_whole(desk: Desk, planted: Seed) -> None:
    view = receipt.load(desk, NOBODY_IN_PARTICULAR, Query({"receipt_id": planted.receipt}))

    assert view.receipt is not None
    drawn = str(join(receipt.draw(view, NOBODY_IN_PARTICULAR).values()))
    body = view.receipt.body
    for words in (body["plan_sha256"], body["update_sha256"], "layer13.weight", "64 x 50", "cli:officer"):
        assert words in drawn
    assert "No differential privacy" in drawn
    with pytest.raises(NotThereError):
        receipt.load(desk, NOBODY_IN_PARTICULAR, Query({"receipt_id": "0" * 32}))


def test_a_person_sets_the_privacy_budget(desk: Desk) -> None:
    change = federation.PAGE.actions["budget"].run
    for text in ("", "eight", "-1", "nan", "inf", "1e9"):
        with pytest.raises(ActionRefusedError, match="Not set"):
            change(desk, NOBODY_IN_PARTICULAR, {"reason": text})
    assert desk.research.budget().epsilon is None

    change(desk, NOBODY_IN_PARTICULAR, {"reason": " 7,5 "})

    found = desk.research.budget()
    assert (found.epsilon, found.delta, found.set_by) == (7.5, 1e-5, NOBODY_IN_PARTICULAR.user_id)
    desk.research.set_budget(7.5, 1e-6, "cli:officer")
    change(desk, NOBODY_IN_PARTICULAR, {"reason": "8"})
    assert desk.research.budget().delta == 1e-6


def test_every_share_shows_with_the_one_step_that_is_this_sites(desk: Desk) -> None:
    officer = replace(NOBODY_IN_PARTICULAR, rights=frozenset(Right))
    view = shares.load(desk, officer, Query({}))

    assert view.found is not None
    drawn = str(join(shares.draw(view, officer).values()))
    assert drawn.count(">Withdraw<") == 2
    assert drawn.count(">Erase<") == 2
    assert "EK 2026/7" in drawn
    assert "3 shares to look at" in drawn
    assert "given: not in the ledger yet" in drawn
    watcher = replace(NOBODY_IN_PARTICULAR, rights=frozenset({Right.VIEW}))
    watching = shares.draw(shares.load(desk, watcher, Query({})), watcher)
    assert ">Erase<" not in join(watching.values())
    for step in ("withdraw", "erase", "announce"):
        with pytest.raises(ActionRefusedError, match="not joined"):
            shares.PAGE.actions[step].run(desk, officer, {"id": view.found[0].id})


def test_an_unknown_run_is_not_there(desk: Desk) -> None:
    with pytest.raises(NotThereError):
        run.load(desk, NOBODY_IN_PARTICULAR, Query({"run_id": "run-99"}))


def test_pages_of_the_research_zone_say_when_it_does_not_answer(empty_desk: Desk) -> None:
    asked: tuple[Page[Any], ...] = (federation.PAGE, jobs.PAGE, ledger.PAGE)
    for page in asked:
        view = page.load(empty_desk, NOBODY_IN_PARTICULAR, Query({"zone": "research"}))
        assert "does not answer" in join(page.draw(view, NOBODY_IN_PARTICULAR).values())


def test_ledgers_of_both_zones_are_shown_and_verified(desk: Desk) -> None:
    for zone in ("clinical", "research"):
        view = ledger.load(desk, NOBODY_IN_PARTICULAR, Query({"zone": zone}))
        assert view.rows
        assert view.rows[0].sequence >= view.rows[-1].sequence
        assert "Verified" in ledger.check(desk, NOBODY_IN_PARTICULAR, {"zone": zone})
