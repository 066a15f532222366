"""Every route of the running web process: who may ask it, from where, and what it answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from appliance.auth import Right
from appliance.web import dicomweb, signing_in
from appliance.web.api import routes as api_routes
from appliance.web.api.routes import api_path
from appliance.web.app import build_routes
from appliance.web.panel.pages import PAGES
from tests.appliance.web.seed import PASSWORD

if TYPE_CHECKING:
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

PROBLEM = "application/problem+json"
PUBLIC = {"/sign-in", "/healthz", "/livez", "/readyz", "/metrics", "/favicon.ico", "/static/{name}"}
HOSTILE = [b"[" * 4000, b'{"a":' * 800, b'{"id": "a\\u0000b"}', b'{"id": "\\ud800"}']
ACTIONS = [
    pytest.param(page, name, id=f"{page.path} {name}")
    for page in PAGES
    for name, action in page.actions.items()
    if action.right != Right.VIEW
]


def _concrete(path: str, panel: PanelServer) -> str:
    given = {
        "study_id": panel.seed.studies[4],
        "item_id": panel.seed.quarantine,
        "decision_id": "0" * 32,
        "picture": "before-0",
        "result_id": panel.seed.pictures[0],
        "model_id": panel.seed.models["evaluated"],
        "peer_id": panel.seed.destination,
        "fetch_id": panel.seed.fetch,
        "instance_id": panel.seed.instance,
        "run_id": panel.seed.run_id,
        "receipt_id": panel.seed.receipt,
        "action": "verify",
        "name": "panel.js",
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.3",
        "SOPInstanceUID": "1.2.3.4",
        "frames": "1",
        "place": "7FE00010",
    }
    return re.sub(r"\{(\w+)(?::path)?\}", lambda found: given[found[1]], path)


def _routes(desk: Desk) -> list[tuple[str, str]]:
    own = [route for route in build_routes(desk).routes if isinstance(route, Route)]
    included = [*signing_in.router(desk).routes, *api_routes.router(desk).routes]
    found = []
    for route in (*own, *included):
        assert isinstance(route, Route)
        found += [(method, route.path) for method in route.methods or set()]
    for service, _ in dicomweb.routers(desk):
        for one in service.routes:
            assert isinstance(one, APIRoute)
            found += [(method, f"/dicom-web{one.path}") for method in one.methods or set()]
    return found + [("GET", page.path) for page in PAGES]


def test_every_route_needs_a_session(desk: Desk, panel: PanelServer) -> None:
    client = panel.client()
    routes = _routes(desk)
    assert len(routes) > 40
    for method, path in routes:
        if path in PUBLIC or path == "/api/v1/session":
            continue
        answer = client.request(method, _concrete(path, panel))
        assert answer.status_code in {303, 401, 403}, (method, path)
        if answer.status_code == 303:
            assert answer.headers["location"].startswith("/sign-in"), path
        else:
            assert answer.headers["content-type"] == PROBLEM, path


def test_every_route_needs_a_right(desk: Desk, panel: PanelServer) -> None:
    client = panel.client("nobody")
    for method, path in _routes(desk):
        own = {"/session", "/sign-out", "/api/v1/session"}
        if path in PUBLIC | own:
            continue
        answer = client.request(method, _concrete(path, panel), headers={"origin": panel.url})
        assert answer.status_code in {403, 404}, (method, path)
        assert answer.headers["content-type"] == PROBLEM, path


@pytest.mark.parametrize(("page", "name"), ACTIONS)
def test_an_action_needs_its_own_right(page: Any, name: str, panel: PanelServer) -> None:
    path = f"{_concrete(api_path(page), panel)}/actions/{name}"
    assert panel.client("viewer").post(path, json={"id": panel.seed.dead_job}).status_code == 403


def test_every_page_opens_for_a_person_with_all_rights(panel: PanelServer) -> None:
    client = panel.client("ada")
    for page in PAGES:
        answer = client.get(_concrete(page.path, panel))
        assert answer.status_code == 200, page.path
        assert answer.headers["content-type"].startswith("text/html")
        assert client.get(_concrete(api_path(page), panel)).headers["content-type"] == "application/json"


def test_an_unknown_path_says_so_to_people_and_programs(panel: PanelServer) -> None:
    client = panel.client("ada")
    assert client.get("/nowhere").status_code == 404
    assert client.get("/api/v1/nowhere").status_code == 404
    assert client.get("/studies/" + "0" * 32).status_code == 404
    assert client.get("/static/..%2f..%2fapp.py").status_code == 404


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", None])
def test_a_form_from_elsewhere_is_refused(panel: PanelServer, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    for path in ("/sign-in", "/sign-out"):
        answer = panel.client("ada").post(path, data={"name": "ada", "password": PASSWORD}, headers=headers)
        assert answer.status_code == 403
        assert answer.headers["content-type"] == PROBLEM
        assert "set-cookie" not in answer.headers


def test_a_foreign_page_cannot_use_the_api(panel: PanelServer) -> None:
    client = panel.client("ada")
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = client.post("/api/v1/ledger/actions/verify", json={}, headers=headers)
        assert answer.status_code == 403
    assert client.post("/api/v1/ledger/actions/verify", json={}).status_code == 200


def test_a_name_that_only_resolves_here_is_refused(panel: PanelServer) -> None:
    answer = panel.client("ada").get("/", headers={"host": "rebound.example"})
    assert answer.status_code == 421


def test_the_session_cookie_is_kept_from_scripts_and_other_sites(panel: PanelServer) -> None:
    form = {"name": "ada", "password": PASSWORD, "next": "/jobs?state=dead"}
    answer = panel.client().post("/sign-in", data=form, headers={"origin": panel.url})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/jobs?state=dead"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie


def test_a_wrong_password_says_no_more_than_that(panel: PanelServer) -> None:
    client = panel.client()
    texts = []
    for name in ("ada", "no-such-user"):
        form = {"name": name, "password": "wrong wrong wrong"}
        answer = client.post("/sign-in", data=form, headers={"origin": panel.url})
        assert answer.status_code == 401
        texts.append(re.sub(r' nonce="[^"]+"', "", answer.text))
        assert answer.text.startswith("<!doctype html><html")
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "form",
    [b"&".join(b"a%d=1" % number for number in range(12)), b"name=a%00b&password=x", b"name=" + b"a" * 5000],
)
def test_a_sign_in_form_that_cannot_be_read_is_answered_with_the_form(
    panel: PanelServer, form: bytes
) -> None:
    headers = {"origin": panel.url, "content-type": "application/x-www-form-urlencoded"}
    answer = panel.client().post("/sign-in", content=form, headers=headers)
    assert answer.status_code == 400
    assert 'action="/sign-in"' in answer.text


@pytest.mark.parametrize(
    "body", [*HOSTILE[:2], b'{"name": "a\\u0000b"}', b'{"name": "ada", "password": "\\ud800"}', b"no JSON"]
)
def test_a_sign_in_body_that_cannot_be_read_is_answered_400(panel: PanelServer, body: bytes) -> None:
    answer = panel.client().post("/api/v1/session", content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM


def test_after_five_wrong_passwords_even_the_right_one_must_wait(panel: PanelServer) -> None:
    client = panel.client()
    for _ in range(5):
        wrong = client.post("/api/v1/session", json={"name": "reidentify", "password": "x" * 12})
        assert wrong.status_code == 401
    answer = client.post("/api/v1/session", json={"name": "reidentify", "password": PASSWORD})
    assert answer.status_code == 429
    assert "cloister" not in client.cookies


def test_after_sign_out_the_cookie_opens_nothing(panel: PanelServer) -> None:
    client = panel.client("viewer", fresh=True)
    token = panel.token(client)
    assert client.post("/sign-out", headers={"origin": panel.url}).headers["location"] == "/sign-in"
    late = httpx.get(f"{panel.url}/session", cookies={"cloister": token})
    assert late.status_code == 401


def test_pages_may_load_nothing_from_elsewhere_and_are_not_kept(panel: PanelServer) -> None:
    client = panel.client("ada")
    for path in ("/", "/sign-in", "/api/v1/home"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http:" not in policy.replace("ws://", "")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_every_script_of_a_page_carries_the_nonce_of_its_answer(panel: PanelServer) -> None:
    answer = panel.client("ada").get("/")
    found = re.search(r"'nonce-([^']+)'", answer.headers["content-security-policy"])
    assert found is not None
    scripts = re.findall(r"<script\b[^>]*>", answer.text)
    assert len(scripts) > 3
    assert [tag for tag in scripts if f'nonce="{found[1]}"' not in tag] == []


def test_a_forwarded_prefix_is_ignored(panel: PanelServer) -> None:
    answer = panel.client("ada").get("/", headers={"x-forwarded-prefix": "//evil.example"})
    assert "evil.example" not in answer.text


def test_a_picture_is_shown_to_those_who_may_see_identities(panel: PanelServer) -> None:
    path = f"/results/{panel.seed.pictures[0]}/picture.png"
    assert panel.client("viewer").get(path).status_code == 403
    answer = panel.client("view_identity").get(path)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")
    small = panel.client("view_identity").get(path, params={"small": ""})
    assert len(small.content) < len(answer.content) / 4


def test_a_report_has_no_picture(panel: PanelServer) -> None:
    report = next(one for one in panel.seed.results if one not in panel.seed.pictures)
    assert panel.client("ada").get(f"/results/{report}/picture.png").status_code == 404


def test_health_says_little_to_strangers_and_everything_to_staff(panel: PanelServer) -> None:
    stranger = panel.client().get("/healthz")
    assert stranger.status_code == 503  # only the web process of this node runs
    assert stranger.json() == {"well": False}
    names = {check["name"] for check in panel.client("viewer").get("/healthz").json()["checks"]}
    assert {"process web", "clinical database", "disk"} <= names


def test_the_process_is_alive_while_the_node_is_not_ready(panel: PanelServer) -> None:
    alive, ready = panel.client().get("/livez"), panel.client().get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"alive": True})
    assert (ready.status_code, ready.json()) == (503, {"ready": False})  # only the web process runs


def test_metrics_count_and_name_nobody(panel: PanelServer) -> None:
    text = panel.client().get("/metrics").text
    assert 'cloister_jobs{kind="infer",state="done"} 10.0' in text
    assert 'cloister_check_ok{check="process web"} 1.0' in text
    assert not re.search(r"[0-9a-f]{32}", text)


def test_metrics_are_not_for_strangers_behind_a_proxy(panel: PanelServer) -> None:
    headers = {"x-forwarded-for": "203.0.113.9"}
    assert panel.client().get("/metrics", headers=headers).status_code == 403
    assert panel.client("viewer").get("/metrics", headers=headers).status_code == 200


def test_the_log_holds_no_identity_and_no_secret(panel: PanelServer) -> None:
    client = panel.client("ada")
    client.get(f"/studies/{panel.seed.studies[4]}")
    client.get("/api/v1/studies", params={"q": "Ekman"})
    for secret in ("Ekman", "P70459", PASSWORD, panel.token(client)):
        assert secret not in panel.log


@pytest.mark.parametrize(
    "body", [b"[]", b"not json", b"{" * 20_000, b'{"id": 3}', b'{"id": ["x"]}', *HOSTILE]
)
def test_a_hostile_body_is_answered_not_obeyed(panel: PanelServer, body: bytes) -> None:
    answer = panel.client("ada").post("/api/v1/quarantine/actions/review", content=body)
    assert answer.status_code in {400, 409}
    assert answer.headers["content-type"] == PROBLEM
