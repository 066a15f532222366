"""The viewer's routes behind the gate: who gets what, and what its scripts may reach."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import select

from appliance import viewer
from appliance.auth import Right
from appliance.db.clinical import Study
from appliance.db.engine import reading
from appliance.web.app import build_routes
from appliance.web.gate import Gate
from appliance.web.headers import viewer_policy
from appliance.web.panel.page import Query
from appliance.web.panel.study import load
from tests.appliance.test_viewer import CONTENT, ENTRY, pack
from tests.appliance.web.seed import PASSWORD
from tests.dicom_node.dicomweb.server import served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.auth import Principal
    from appliance.web.desk import Desk

PROBLEM = "application/problem+json"


@pytest.fixture
def node_with_viewer(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a node whose known release is a small one, installed."""
    monkeypatch.setattr(viewer, "OHIF", pack(tmp_path / "viewer.tgz", CONTENT))
    viewer.install(desk.zone.root, tmp_path / "viewer.tgz", viewer.OHIF)
    with served(Gate(build_routes(desk), desk, lambda _page, _session: False)) as url:
        yield url
    viewer.remove(desk.zone.root)


@contextmanager
def person(url: str, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        answer = client.post("/api/v1/session", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        yield client


def test_a_stranger_is_led_to_the_sign_in(node_with_viewer: str) -> None:
    for path in ("/viewer", "/viewer/", "/viewer/app-config.js", f"/viewer/{ENTRY}"):
        answer = httpx.get(f"{node_with_viewer}{path}")
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in?next="), path


def test_it_needs_the_right_to_see_identities(node_with_viewer: str) -> None:
    with person(node_with_viewer, "viewer") as client:
        for path in ("/viewer", "/viewer/viewer", "/viewer/app-config.js", f"/viewer/{ENTRY}"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (403, PROBLEM), path


def test_a_bearer_token_opens_no_viewer(node_with_viewer: str) -> None:
    answer = httpx.get(f"{node_with_viewer}/viewer/", headers={"authorization": "Bearer cloister_x"})
    assert answer.status_code == 303


def test_its_page_starts_it_and_may_reach_dicomweb_alone(node_with_viewer: str) -> None:
    with person(node_with_viewer, "view_identity") as client:
        policy = client.get("/viewer").headers["content-security-policy"]
        for path in ("/viewer", "/viewer/", "/viewer/viewer?StudyInstanceUIDs=1.2.3"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
            assert f'src="/viewer/{ENTRY}"' in answer.text
            assert answer.headers["content-security-policy"] == policy
        assert f"connect-src {node_with_viewer}/dicom-web/ {node_with_viewer}/viewer/;" in policy
        assert "'nonce" not in policy
        assert "default-src 'none'" in policy
        assert (
            client.get(f"/viewer/{ENTRY}").headers["content-security-policy"] == policy
        )  # workers have it, too


def test_the_policy_names_the_public_address_too_and_no_invented_one() -> None:
    paths = ("/dicom-web/",)
    given = viewer_policy(("http://a.example", "https://b.example:8443", ""), paths)
    assert "connect-src http://a.example/dicom-web/ https://b.example:8443/dicom-web/;" in given
    assert "connect-src 'none';" in viewer_policy(("http://a.example; script-src *", ""), paths)


def test_its_settings_know_this_node_alone(node_with_viewer: str) -> None:
    with person(node_with_viewer, "view_identity") as client:
        answer = client.get("/viewer/app-config.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "http:" not in answer.text
    assert "https:" not in answer.text
    config = answer.text.partition("window.config = ")[2].partition(";\n")[0]
    (source,) = json.loads(config)["dataSources"]
    roots = {value for key, value in source["configuration"].items() if key.endswith("Root")}
    assert roots == {"/dicom-web"}


def test_files_come_compressed_where_that_is_understood_and_are_kept(
    node_with_viewer: str, desk: Desk
) -> None:
    with person(node_with_viewer, "view_identity") as client:
        files = viewer.installed(desk.zone.root, viewer.OHIF)
        assert files is not None
        for accepted, encoding in (("gzip", "gzip"), ("identity", None)):
            answer = client.get(f"/viewer/{ENTRY}", headers={"accept-encoding": accepted})
            assert answer.headers.get("content-encoding") == encoding
            assert answer.headers["content-type"].startswith("text/javascript")
            assert answer.headers["cache-control"].startswith("private, max-age=31536000")
            assert hashlib.sha256(answer.content).hexdigest() == files.files[ENTRY]
        assert client.get("/viewer/assets/images/CT-Bone.png").content == b"picture"
        assert "max-age=3600" in client.get("/viewer/app.bundle.css").headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "installed.json",
        "sw.js",
        f"{ENTRY}.gz",
        "../clinical.db",
        "..%2f..%2fclinical.db",
        "%2e%2e/keys",
        "assets",
        "assets/",
        "a%00b.js",
        "viewer/deeper",
    ],
)
def test_nothing_but_its_own_files_is_served(node_with_viewer: str, path: str) -> None:
    with person(node_with_viewer, "view_identity") as client:
        answer = client.get(f"/viewer/{path}")
    found = (answer.status_code, answer.headers["content-type"].startswith("text/html"))
    assert found in {(404, False), (200, True)}  # or the start page
    assert answer.status_code == 404 or ENTRY in answer.text


def test_without_it_the_answer_says_how_to_get_it(desk: Desk) -> None:
    gate = Gate(build_routes(desk), desk, lambda _page, _session: False)
    with served(gate) as url, person(url, "view_identity") as client:
        answer = client.get("/viewer/")
    assert answer.status_code == 404
    assert "cloister viewer install" in answer.json()["detail"]


def test_the_studys_page_leads_there_those_who_may(
    node_with_viewer: str, desk: Desk, viewer_of: Callable[[str], Principal]
) -> None:
    with reading(desk.zone.engine) as session:
        study = session.scalars(select(Study).where(Study.instance_count > 0)).first()
    assert study is not None
    query = Query({"study_id": study.id})
    address = f"/viewer/viewer?StudyInstanceUIDs={study.study_instance_uid}"
    assert load(desk, viewer_of(Right.VIEW_IDENTITY.value), query).viewer_address == address
    assert load(desk, viewer_of("viewer"), query).viewer_address == ""
    viewer.remove(desk.zone.root)
    assert load(desk, viewer_of(Right.VIEW_IDENTITY.value), query).viewer_address == ""
