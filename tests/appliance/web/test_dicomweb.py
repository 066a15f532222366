"""DICOMweb on the running web process: who may ask, from where, and what a search answers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from appliance.auth import Right, tokens, users
from appliance.db.base import new_id, now
from appliance.db.engine import writing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

STUDIES = "/dicom-web/studies"


def token(desk: Desk, user: str, *rights: Right) -> str:
    with writing(desk.zone.engine) as session:
        found = users.find_user(session, user)
        return tokens.create(session, desk.zone.ledger, found, name=new_id(), granted=rights, at=now())


@contextmanager
def program(panel: PanelServer, bearer: str | None, **headers: str) -> Iterator[httpx.Client]:
    given = dict(headers) if bearer is None else {"authorization": f"Bearer {bearer}", **headers}
    with httpx.Client(base_url=panel.url, headers=given, timeout=30) as client:
        yield client


def ask(panel: PanelServer, bearer: str | None, path: str = STUDIES, **headers: str) -> httpx.Response:
    with program(panel, bearer, **headers) as client:
        return client.get(path)


def test_a_session_and_a_token_may_search(panel: PanelServer, desk: Desk) -> None:
    by_person = panel.client("ada").get(STUDIES)
    assert by_person.status_code == 200
    assert by_person.headers["content-type"] == "application/dicom+json"
    assert by_person.headers["cache-control"] == "no-store"
    bearer = token(desk, "view_identity", Right.VIEW_IDENTITY)
    assert ask(panel, bearer).json() == by_person.json() != []


@pytest.mark.parametrize("bearer", [None, "=", "cloister_wrong", "x" * 4000])
def test_without_a_valid_token_nothing_is_answered(panel: PanelServer, bearer: str | None) -> None:
    answer = ask(panel, bearer)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_token_is_refused_whoever_is_signed_in(panel: PanelServer) -> None:
    answer = panel.client("ada").get(STUDIES, headers={"authorization": "Bearer cloister_wrong"})
    assert answer.status_code == 401


def test_the_right_to_see_identities_is_needed(panel: PanelServer, desk: Desk) -> None:
    assert ask(panel, token(desk, "ada", Right.VIEW)).status_code == 403
    assert panel.client("viewer").get(STUDIES).status_code == 403


def test_a_token_never_opens_the_panel(panel: PanelServer, desk: Desk) -> None:
    bearer = token(desk, "ada", *Right)
    for path in ("/", "/studies", "/users", "/session"):
        assert ask(panel, bearer, path).status_code in {303, 401}


def test_a_token_reaches_the_api_as_far_as_its_rights_go(panel: PanelServer, desk: Desk) -> None:
    bearer = token(desk, "ada", Right.VIEW)
    assert ask(panel, bearer, "/api/v1/studies").status_code == 200
    assert ask(panel, bearer, "/api/v1/users").status_code == 403
    far = {"x-forwarded-for": "10.1.2.3"}
    assert ask(panel, bearer, "/metrics", **far).status_code == 200
    assert ask(panel, None, "/metrics", **far).status_code == 403
    assert ask(panel, "cloister_wrong", "/metrics").status_code == 401
    with program(panel, bearer, origin="http://viewer.example") as client:
        assert client.post("/api/v1/ledger/actions/verify", json={}).status_code == 200
        assert client.post("/api/v1/jobs/actions/retry", json={}).status_code == 403
        assert client.post("/api/v1/session", json={}).status_code == 403


def test_a_name_that_only_resolves_here_is_refused_with_a_token_too(panel: PanelServer, desk: Desk) -> None:
    bearer = token(desk, "ada", Right.VIEW_IDENTITY)
    assert ask(panel, bearer, host="rebound.example").status_code == 421


def test_a_search_filters_pages_and_says_that_there_is_more(panel: PanelServer) -> None:
    client = panel.client("ada")
    everything: list[dict[str, Any]] = client.get(STUDIES).json()
    assert len(everything) > 2
    first = client.get(STUDIES, params={"limit": 1})
    assert first.json() == everything[:1]
    assert "additional results" in first.headers["warning"]
    assert client.get(STUDIES, params={"limit": 1, "offset": 1}).json() == everything[1:2]
    uid = everything[1]["0020000D"]["Value"][0]
    assert client.get(STUDIES, params={"StudyInstanceUID": uid}).json() == everything[1:2]
    assert everything[1]["00081190"]["Value"] == [f"{panel.url}/dicom-web/studies/{uid}"]


def test_the_users_page_shows_a_token_and_revokes_it(panel: PanelServer, desk: Desk) -> None:
    bearer = token(desk, "view_identity", Right.VIEW_IDENTITY)
    assert ask(panel, bearer).status_code == 200
    manager = panel.client("manage_users")
    rows = manager.get("/api/v1/users").json()["tokens"]
    row = max((row for row in rows if row["user"] == "view_identity"), key=lambda row: row["last_used_at"])
    assert row["rights"] == ["view_identity"]
    assert bearer not in manager.get("/users").text
    assert manager.post("/api/v1/users/actions/revoke", json={"id": row["id"]}).status_code == 200
    assert ask(panel, bearer).status_code == 401
    assert manager.post("/api/v1/users/actions/revoke", json={"id": row["id"]}).status_code == 409
