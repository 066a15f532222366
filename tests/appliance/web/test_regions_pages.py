"""Text regions in the panel: listed for all, drawn by those who may see pictures and decide."""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from sqlalchemy import select

from appliance import text_regions
from appliance.auth import ROLES, Right
from appliance.db.clinical import ClinicalLedgerEntry, QuarantineItem, TextRegion
from appliance.db.engine import reading, writing
from tests.appliance.web.seed_pictures import COLUMNS, FRAMES, LABEL, MANUFACTURER, MODEL, ROWS, pixels
from tests.appliance.web.test_browser import Watched, browser, window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer

__all__ = ["browser", "window"]

BOXES = [[0, 0, 320, 32], [300, 200, 320, 240]]
DRAWERS = [name for name, rights in ROLES.items() if {Right.VIEW_IDENTITY, Right.REVIEW_QUARANTINE} <= rights]


@pytest.fixture(autouse=True)
def only_own(desk: Desk) -> Iterator[None]:
    """Leave no region behind."""
    yield
    with writing(desk.zone.engine) as session:
        for row in text_regions.listed(session):
            session.delete(row)


def _add(panel: PanelServer, user: str, boxes: object = BOXES, **fields: str) -> tuple[int, str]:
    path = f"/api/v1/regions/{panel.seed.instance}/actions/add"
    answer = panel.client(user).post(path, json={"boxes": json.dumps(boxes), **fields})
    content = answer.json()
    return answer.status_code, str(content.get("message", content.get("detail")))


def _own(desk: Desk) -> list[TextRegion]:
    with reading(desk.zone.engine) as session:
        return text_regions.listed(session)


def _kinds(desk: Desk, subject_id: str) -> list[str]:
    chosen = select(ClinicalLedgerEntry.kind).where(ClinicalLedgerEntry.subject_id == subject_id)
    with reading(desk.zone.engine) as session:
        return list(session.scalars(chosen))


def test_a_region_is_kept_for_the_machine_of_the_instance_and_removed(panel: PanelServer, desk: Desk) -> None:
    status, said = _add(panel, "role.privacy", note="title bar")
    assert (status, said) == (200, "2 boxes kept; blacked out from the next release on.")
    [row] = _own(desk)
    assert (row.modality, row.manufacturer, row.model) == ("US", MANUFACTURER, MODEL)
    assert (row.rows, row.columns, row.boxes, row.note) == (ROWS, COLUMNS, BOXES, "title bar")
    listed = panel.client("viewer").get("/api/v1/regions").json()["rows"]
    assert [one["model"] for one in listed if one["id"]] == [MODEL]
    assert listed[0]["created_by"] == "role.privacy"
    assert len(listed) == 1 + len(text_regions.bundled())
    view = panel.client("role.privacy").get(f"/api/v1/regions/{panel.seed.instance}").json()
    assert [one["bottom"] for one in view["known"]] == [32, 240]
    path = "/api/v1/regions/actions/remove"
    assert panel.client("role.operator").post(path, json={"id": row.id}).status_code == 200
    assert panel.client("role.operator").post(path, json={"id": row.id}).status_code == 409
    assert _own(desk) == []
    assert _kinds(desk, row.id) == [text_regions.ADDED, text_regions.REMOVED]


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_role_draws_and_removes_by_its_rights(role: str, panel: PanelServer, desk: Desk) -> None:
    client, rights = panel.client(f"role.{role}"), ROLES[role]
    assert (client.get("/regions").status_code == 200) == (Right.VIEW in rights)
    drawing = client.get(f"/regions/{panel.seed.instance}").status_code
    assert (drawing == 200) == (Right.VIEW_IDENTITY in rights)
    picture = client.get(f"/instances/{panel.seed.instance}/picture.png").status_code
    assert (picture == 200) == ({Right.VIEW, Right.VIEW_IDENTITY} <= rights)
    assert (_add(panel, f"role.{role}")[0] == 200) == (role in DRAWERS)
    assert len(_own(desk)) == (role in DRAWERS)
    _add(panel, "role.privacy")
    removed = client.post("/api/v1/regions/actions/remove", json={"id": _own(desk)[0].id}).status_code
    assert (removed == 200) == (Right.REVIEW_QUARANTINE in rights)


@pytest.mark.parametrize("user", ["view_identity", "review_quarantine", "viewer", "nobody"])
def test_one_right_of_the_two_draws_nothing(user: str, panel: PanelServer, desk: Desk) -> None:
    assert _add(panel, user)[0] == 403
    assert _own(desk) == []


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([], "1 to 40"),
        ([[0, 0, 321, 10]], "box 1: expected it inside the picture of 320 x 240 pixels"),
        ([[0, 0, 5, 5], [9, 9, 9, 20]], "box 2"),
        ([[0, 0, "5", 5]], "whole pixels"),
        ([5], "expected a list"),
        ({"a": 1}, "expected a list"),
        ([[0, 0, 4, 4]] * 41, "1 to 40"),
        ([[10**30, 0, 4, 4]], "box 1"),
    ],
    ids=["none", "outside", "empty", "text", "number", "object", "many", "huge"],
)
def test_boxes_that_are_none_are_refused_with_a_reason(
    boxes: object, said: str, panel: PanelServer, desk: Desk
) -> None:
    status, message = _add(panel, "role.privacy", boxes)
    assert (status, said in message) == (409, True), message
    assert _own(desk) == []


@pytest.mark.parametrize("text", ["", "[", "[[0,0,4,4]" + " " * 3000 + "]", "[" * 1900], ids=range(4))
def test_a_field_that_is_no_list_of_boxes_is_refused(text: str, panel: PanelServer, desk: Desk) -> None:
    path = f"/api/v1/regions/{panel.seed.instance}/actions/add"
    assert panel.client("role.privacy").post(path, json={"boxes": text}).status_code == 409
    assert _own(desk) == []


def test_a_foreign_page_adds_nothing(panel: PanelServer, desk: Desk) -> None:
    path = f"/api/v1/regions/{panel.seed.instance}/actions/add"
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        body = {"boxes": json.dumps(BOXES)}
        assert panel.client("role.privacy").post(path, json=body, headers=headers).status_code == 403
    assert _own(desk) == []


def test_frames_are_shown_as_they_came_and_kept_by_nobody(panel: PanelServer) -> None:
    client, path = panel.client("view_identity"), f"/instances/{panel.seed.instance}/picture.png"
    for number in range(1, FRAMES + 1):
        answer = client.get(path, params={"frame": number})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        shown = np.asarray(Image.open(BytesIO(answer.content)).convert("L")).astype(int)
        assert shown.shape == (ROWS, COLUMNS)
        left, top, right, bottom = LABEL
        assert shown[top:bottom, left:right].min() == shown.max()
        assert np.corrcoef(shown.ravel(), pixels()[number - 1].ravel())[0, 1] > 0.99
    assert client.get(path, params={"frame": FRAMES + 1}).status_code == 404


def test_what_has_no_picture_says_so(panel: PanelServer) -> None:
    view = panel.client("role.privacy").get(f"/api/v1/regions?study={panel.seed.studies[3][:8]}").json()
    without = view["pictures"][0]["instance_id"]
    assert panel.client("role.privacy").get(f"/instances/{without}/picture.png").status_code == 404
    assert panel.client("role.privacy").get(f"/instances/{'0' * 32}/picture.png").status_code == 404
    page = panel.client("role.privacy").get(f"/regions/{without}")
    assert page.status_code == 200
    assert "Nothing to draw on" in page.text
    assert panel.client("role.privacy").get(f"/regions/{'0' * 32}").status_code == 404


def test_a_study_is_found_by_the_letters_that_pages_show(panel: PanelServer) -> None:
    study, client = panel.seed.studies[4], panel.client("role.privacy")
    for text in (study, study[:8], f"Study {study[:8]}", f" {study[:8].upper()} "):
        view = client.get("/api/v1/regions", params={"study": text}).json()
        assert view["study_id"] == study
        assert {one["machine"] for one in view["pictures"]} == {f"{MANUFACTURER} {MODEL}"}
    for text in ("", study[:2], "zzzzzzzz", "%", "________"):
        assert client.get("/api/v1/regions", params={"study": text}).json()["pictures"] == []
    assert "/regions?study=" in client.get(f"/studies/{study}").text
    assert "/regions?study=" not in panel.client("view_identity").get(f"/studies/{study}").text


def test_ultrasound_that_waits_for_a_region_leads_to_the_drawing(panel: PanelServer, desk: Desk) -> None:
    item = QuarantineItem(
        stage="deidentify",
        reason_code="ultrasound_without_regions",
        reason="expected regions",
        dedupe_key="waits for a region",
        study_id=panel.seed.studies[4],
        instance_id=panel.seed.instance,
    )
    with writing(desk.zone.engine) as session:
        session.add(item)
    try:
        link = f"/regions/{panel.seed.instance}"
        assert link in panel.client("role.privacy").get("/regions").text
        shown = panel.client("viewer").get("/regions").text
        assert "Waiting for a region" in shown
        assert link not in shown
    finally:
        with writing(desk.zone.engine) as session:
            session.delete(session.get_one(QuarantineItem, item.id))


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_a_person_draws_with_the_pointer_and_saves(
    width: int, height: int, scheme: str, window: Callable[..., Watched], panel: PanelServer, desk: Desk
) -> None:
    watched = window(width, height, scheme)
    page = watched.page
    watched.sign_in("role.privacy")
    watched.open(f"/regions?study={panel.seed.studies[4][:8]}")
    page.get_by_role("link", name="Draw", exact=True).first.click()
    page.wait_for_url("**/regions/*")
    page.wait_for_function("document.querySelector('.board img')?.naturalWidth > 0")
    board = page.locator("#region-overlay").bounding_box()
    assert board is not None
    left, top, right, bottom = LABEL
    scale = board["width"] / COLUMNS
    page.mouse.move(board["x"] + (right + 0.5) * scale, board["y"] + (bottom + 0.5) * scale)
    page.mouse.down()
    page.mouse.move(board["x"] + (left - 0.5) * scale, board["y"] + (top - 0.5) * scale, steps=4)
    page.mouse.up()
    page.mouse.click(board["x"] + 5, board["y"] + 5)  # a click is no box
    expect(page.locator("#region-boxes fieldset")).to_have_count(1)
    page.get_by_label("Known from").fill("label")
    page.get_by_role("button", name="Save for this machine").click()
    page.get_by_text("1 box kept").wait_for()
    [row] = _own(desk)
    [box] = row.boxes
    assert np.abs(np.subtract(box, (left - 1, top - 1, right + 1, bottom + 1))).max() <= 1
    expect(page.locator("#region-overlay .known rect")).to_have_count(1)
    expect(page.locator("#region-overlay .drawn rect")).to_have_count(0)
    expect(page.locator("#region-boxes fieldset")).to_have_count(0)
    watched.open("/regions")
    page.get_by_role("button", name=f"Remove: {MANUFACTURER} {MODEL}").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.get_by_text("Region removed.").wait_for()
    assert _own(desk) == []


@pytest.mark.browser
@pytest.mark.slow
def test_boxes_are_typed_with_the_keyboard_alone_and_survive_a_refresh(
    window: Callable[..., Watched], panel: PanelServer, desk: Desk
) -> None:
    watched = window()
    page = watched.page
    watched.sign_in("role.privacy")
    watched.open(f"/regions/{panel.seed.instance}")
    page.get_by_role("button", name="Add box").focus()
    page.keyboard.press("Enter")
    for value in ("10", "20", "130", "40"):
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Tab")
    expect(page.locator("#region-overlay .drawn rect")).to_have_attribute("width", "120")
    page.get_by_role("button", name="Add box").click()
    page.get_by_role("button", name="Remove box 2").click()
    expect(page.locator("#region-boxes fieldset")).to_have_count(1)
    _add(panel, "role.privacy", [[0, 0, 9, 9]])  # by somebody else, for the same machine
    page.get_by_label("Known from").fill("typed")
    page.get_by_role("button", name="Add box").click()
    page.get_by_label("Right", exact=True).last.fill("400")
    page.get_by_role("button", name="Save for this machine").click()
    assert page.get_by_label("Right", exact=True).last.evaluate("input => input.validity.rangeOverflow")
    page.get_by_label("Right", exact=True).last.fill("5")
    page.get_by_label("Left", exact=True).last.fill("7")
    page.get_by_role("button", name="Save for this machine").click()
    page.get_by_text("Not saved: box 2: expected it inside the picture").wait_for()
    expect(page.locator("#region-overlay .known rect")).to_have_count(1)  # refreshed around the drawing
    expect(page.locator("#region-boxes fieldset")).to_have_count(2)
    page.get_by_role("button", name="Remove box 2").click()
    page.get_by_role("button", name="Save for this machine").click()
    page.get_by_text("1 box kept").wait_for()
    assert _own(desk)[0].boxes == [[10, 20, 130, 40]]


@pytest.mark.browser
@pytest.mark.slow
def test_every_frame_can_be_looked_at_and_boxes_shown_black(
    window: Callable[..., Watched], panel: PanelServer
) -> None:
    watched = window()
    page = watched.page
    watched.sign_in("role.privacy")
    watched.open(f"/regions/{panel.seed.instance}")
    page.get_by_label("Frame").focus()
    page.keyboard.press("End")
    page.wait_for_function(
        f"document.querySelector('.board img').src.endsWith('frame={FRAMES}')"
        " && document.querySelector('.board img').complete"
    )
    expect(page.locator("#region-frame-number")).to_have_text(str(FRAMES))
    page.get_by_role("button", name="Add box").click()
    page.get_by_label("Show boxes as they will be: black").check()
    expect(page.locator("#region-overlay .drawn rect")).to_have_css("fill", "rgb(0, 0, 0)")
    expect(page.locator("#region-failed")).to_be_hidden()
