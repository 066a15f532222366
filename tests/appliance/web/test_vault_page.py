"""Re-identification in the panel and the API: for those who may, once, recorded, and kept nowhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from appliance import reidentification, vault
from appliance.auth import ROLES, Right
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.db.people import User
from appliance.vault import Identity
from tests.appliance.web.test_browser import Watched, browser, window

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

__all__ = ["browser", "window"]

PATH = "/api/v1/vault/actions/reidentify"
PSEUDONYM = "VAULTPAGE-7F"
SECRETS = ("MRN-VAULT-4711", "ISSUER-VAULT")
REASON = "nodule seen by a reader, ward 12"
ASKED = {"pseudonym": PSEUDONYM, "purpose": "incidental_finding", "reason": REASON}


@pytest.fixture(autouse=True, scope="module")
def sealed(desk: Desk) -> None:
    """Seal an identity under the pseudonym in two projects."""
    with writing(desk.zone.engine) as session:
        for project in ("lung", "trial"):
            vault.store_identity(desk.zone, session, (PSEUDONYM, project), Identity(project, *SECRETS))


def _ledger(desk: Desk) -> list[ClinicalLedgerEntry]:
    kinds = (reidentification.REIDENTIFIED, reidentification.REFUSED)
    with reading(desk.zone.engine) as session:
        chosen = select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind.in_(kinds))
        return list(session.scalars(chosen.order_by(ClinicalLedgerEntry.sequence)))


def _id(desk: Desk, name: str) -> str:
    with reading(desk.zone.engine) as session:
        return session.scalars(select(User.id).where(User.name == name)).one()


def test_who_may_ask_is_told_and_only_that_answer_holds_it(panel: PanelServer, desk: Desk) -> None:
    answer = panel.client("role.privacy").post(PATH, json=ASKED)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    content = answer.json()
    patient_id, issuer = SECRETS
    assert content["found"] == [
        {"project": project, "patient_id": patient_id, "issuer": issuer} for project in ("lung", "trial")
    ]
    assert patient_id not in content["message"]
    entry = _ledger(desk)[-1]
    assert (entry.kind, entry.actor) == (reidentification.REIDENTIFIED, _id(desk, "role.privacy"))
    body = json.loads(entry.body)
    assert (body["purpose"], body["found"]) == ("incidental_finding", 2)
    for user in ("role.privacy", "viewer"):
        view = panel.client(user).get("/api/v1/vault")
        page = panel.client(user).get("/vault")
        ledger = panel.client(user).get("/api/v1/ledger")
        for secret in (*SECRETS, PSEUDONYM, REASON):
            assert secret not in view.text + page.text + ledger.text + entry.body
    for secret in (*SECRETS, PSEUDONYM, REASON):
        assert secret not in panel.log


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_role_is_told_or_refused_by_its_rights(role: str, panel: PanelServer, desk: Desk) -> None:
    before = len(_ledger(desk))
    answer = panel.client(f"role.{role}").post(PATH, json=ASKED)
    entries = _ledger(desk)[before:]
    assert [entry.actor for entry in entries] == [_id(desk, f"role.{role}")]
    if {Right.VIEW, Right.REIDENTIFY} <= ROLES[role]:
        assert answer.status_code == 200
        assert entries[0].kind == reidentification.REIDENTIFIED
    else:
        assert answer.status_code == 403
        assert SECRETS[0] not in answer.text
        assert (entries[0].kind, entries[0].body) == (reidentification.REFUSED, "{}")


@pytest.mark.parametrize("user", ["viewer", "nobody", "view_identity", "review_quarantine", "manage_users"])
def test_one_right_less_is_refused_and_recorded(user: str, panel: PanelServer, desk: Desk) -> None:
    before = len(_ledger(desk))
    answer = panel.client(user).post(PATH, json=ASKED)
    assert answer.status_code == 403
    assert [(one.kind, one.actor) for one in _ledger(desk)[before:]] == [
        (reidentification.REFUSED, _id(desk, user))
    ]


def test_who_is_not_signed_in_is_refused(panel: PanelServer, desk: Desk) -> None:
    before = len(_ledger(desk))
    assert panel.client().post(PATH, json=ASKED).status_code == 401
    assert len(_ledger(desk)) == before


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
    ids=["foreign", "null", "cross-site"],
)
def test_a_foreign_page_cannot_ask(headers: dict[str, str], panel: PanelServer, desk: Desk) -> None:
    before = len(_ledger(desk))
    answer = panel.client("role.privacy").post(PATH, json=ASKED, headers=headers)
    assert answer.status_code == 403
    assert SECRETS[0] not in answer.text
    assert len(_ledger(desk)) == before


def test_nothing_is_told_to_a_request_that_only_reads(panel: PanelServer) -> None:
    client = panel.client("role.privacy")
    assert client.get(PATH, params=ASKED).status_code in {404, 405}
    for path in ("/vault", "/api/v1/vault"):
        assert SECRETS[0] not in client.get(path, params=ASKED).text


@pytest.mark.parametrize(
    ("wrong", "said", "recorded"),
    [
        ({"pseudonym": "NOBODY"}, "no such pseudonym", 1),
        ({"pseudonym": ""}, "pseudonym", 0),
        ({"pseudonym": "P" * 65}, "pseudonym", 0),
        ({"purpose": "curiosity"}, "purpose", 0),
        ({"purpose": ""}, "purpose", 0),
        ({"reason": "why"}, "reason", 0),
        ({"reason": "two\nlines"}, "reason", 0),
    ],
    ids=["unknown", "none", "long", "purpose", "no purpose", "short reason", "lines"],
)
def test_a_question_that_cannot_be_answered_says_why(
    wrong: dict[str, str], said: str, recorded: int, panel: PanelServer, desk: Desk
) -> None:
    before = len(_ledger(desk))
    answer = panel.client("role.privacy").post(PATH, json={**ASKED, **wrong})
    assert answer.status_code == 409
    assert said in answer.json()["detail"]
    assert SECRETS[0] not in answer.text
    assert len(_ledger(desk)) == before + recorded


def test_the_page_lists_who_asked_and_shows_the_form_to_who_may(panel: PanelServer) -> None:
    panel.client("role.privacy").post(PATH, json=ASKED)
    panel.client("role.operator").post(PATH, json=ASKED)
    view = panel.client("viewer").get("/api/v1/vault").json()
    told = [(view["people"][one["user_id"]], one["purpose"]) for one in view["questions"] if one["found"]]
    assert told[0] == ("role.privacy", "incidental_finding")
    assert view["questions"][0]["kind"] == reidentification.REFUSED
    assert view["state"]["entries"] >= 2
    assert [use["role"] for use in view["state"]["keys"]] == ["current"]
    assert "data-tell" in panel.client("role.privacy").get("/vault").text
    assert "data-tell" not in panel.client("viewer").get("/vault").text


@pytest.mark.browser
@pytest.mark.slow
def test_a_person_asks_is_told_once_and_it_is_gone_on_reload(
    window: Callable[..., Watched], panel: PanelServer
) -> None:
    watched = window()
    page = watched.page
    asked: list[httpx.URL | str] = []
    page.on("request", lambda request: asked.append(request.url))
    watched.sign_in("role.privacy")
    watched.open("/vault")
    form = page.locator("form[data-tell]")
    form.get_by_label("Pseudonym").fill(PSEUDONYM)
    form.get_by_label("Purpose").select_option("patient_safety")
    form.get_by_label("Reason").fill(REASON)
    form.get_by_role("button", name="Re-identify").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("#told")).to_be_empty()
    form.get_by_role("button", name="Re-identify").click()
    page.get_by_role("dialog").get_by_role("button", name="Tell me").click()
    expect(page.locator("#told dl")).to_have_count(2)
    expect(page.locator("#told")).to_contain_text(SECRETS[0])
    expect(form.get_by_label("Pseudonym")).to_have_value("")
    page.get_by_role("cell", name="Safety of the patient").first.wait_for()  # the list has refreshed
    expect(page.locator("#told")).to_contain_text(SECRETS[0])
    page.reload()
    page.locator(".panel h1").wait_for()
    assert SECRETS[0] not in page.content()
    watched.open("/studies")
    page.go_back()
    page.locator("form[data-tell]").wait_for()
    assert SECRETS[0] not in page.content()
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    for secret in (SECRETS[0], PSEUDONYM, "ward"):
        assert secret not in stored
        assert not [one for one in asked if secret in str(one)]
        assert secret not in panel.log


@pytest.mark.browser
@pytest.mark.slow
def test_an_answer_can_be_hidden_and_a_refusal_is_said(window: Callable[..., Watched]) -> None:
    watched = window(390, 844, "dark")
    page = watched.page
    watched.sign_in("role.privacy")
    watched.open("/vault")
    form = page.locator("form[data-tell]")
    for pseudonym, said in (("NOBODY", "no such pseudonym"), (PSEUDONYM, SECRETS[0])):
        form.get_by_label("Pseudonym").fill(pseudonym)
        form.get_by_label("Reason").fill(REASON)
        form.get_by_role("button", name="Re-identify").click()
        page.get_by_role("dialog").get_by_role("button", name="Tell me").click()
        page.locator("#told", has_text=said).wait_for()
    page.get_by_role("button", name="Hide").click()
    expect(page.locator("#told")).to_be_empty()
    refused = [one for one in watched.complaints if "409" in one]
    for one in refused:  # the browser itself reports the refusal
        watched.complaints.remove(one)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "said", "kind"),
    [
        ("role.privacy", "Told; recorded in the ledger.", reidentification.REIDENTIFIED),
        ("viewer", "You do not have the right to do this.", reidentification.REFUSED),
    ],
    ids=["may", "may not"],
)
def test_the_socket_of_a_page_carries_no_answer(
    user: str, said: str, kind: str, window: Callable[..., Watched], desk: Desk
) -> None:
    watched = window()
    watched.sign_in(user)
    watched.open("/vault")
    frames: list[str | bytes] = []

    def keep(frame: str | bytes) -> None:
        frames.append(frame)

    watched.page.on("websocket", lambda socket: socket.on("framereceived", keep))
    watched.page.reload()
    watched.page.locator(".panel h1").wait_for()
    watched.page.wait_for_function("window.socket?.connected")
    before = len(_ledger(desk))
    event = {"action": "reidentify", "fields": ASKED, "number": 1}
    watched.page.evaluate("event => emitEvent('panel_action', event)", event)
    watched.page.get_by_text(said).wait_for()
    assert [entry.kind for entry in _ledger(desk)[before:]] == [kind]
    assert any(said in str(frame) for frame in frames)
    assert not any(secret in str(frame) for frame in frames for secret in (*SECRETS, PSEUDONYM))
