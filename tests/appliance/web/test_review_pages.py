"""The page of one quarantined item, through the API and in a browser: looked at, drawn on, decided."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from appliance.db.clinical import ClinicalJob, Decision, QuarantineItem
from appliance.db.engine import reading
from tests.appliance.web import test_browser
from tests.appliance.web.review_material import BURNT, NAME, SIZE, do_jobs, plant

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer
    from tests.appliance.web.test_browser import Watched

BOX = "8 8 400 40"
browser, window = test_browser.browser, test_browser.window


def act(panel: PanelServer, user: str, item_id: str, action: str, **fields: str) -> tuple[int, str]:
    answer = panel.client(user).post(f"/api/v1/quarantine/{item_id}/actions/{action}", json=fields)
    return answer.status_code, answer.json().get("message") or answer.json().get("detail", "")


def view(panel: PanelServer, user: str, item_id: str) -> dict[str, Any]:
    answer = panel.client(user).get(f"/api/v1/quarantine/{item_id}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def tried(panel: PanelServer, desk: Desk, uid: str) -> tuple[str, str]:
    """Plant an item and try a box out; return its id and its decision's."""
    item_id = plant(desk.zone, uid)
    assert act(panel, "ada", item_id, "try", boxes=BOX)[0] == 200
    assert do_jobs(desk.zone) == 1
    return item_id, view(panel, "ada", item_id)["trial"]["decision_id"]


def test_what_would_leave_is_seen_and_released(panel: PanelServer, desk: Desk) -> None:
    item_id, decision_id = tried(panel, desk, "1.2.826.77.1")
    found = view(panel, "ada", item_id)
    assert (found["trial"]["outcome"], found["trial"]["accepted"]) == ("released", ["burned_in_annotation"])
    assert {"PatientName", "PatientID"} <= {line["keyword"] for line in found["lines"] if line["before"]}
    client = panel.client("ada")
    pictures = []
    for side in ("before", "after"):
        answer = client.get(f"/quarantine/{item_id}/{decision_id}/{side}-0.png")
        assert answer.headers["content-type"] == "image/png"
        assert "no-store" in answer.headers["cache-control"]
        pictures.append(np.asarray(Image.open(io.BytesIO(answer.content))))
    before, after = pictures
    assert before.shape == after.shape == (SIZE, SIZE)
    assert len(np.unique(after[8:40, 8:400])) == 1 < len(np.unique(before[8:40, 8:400]))
    status, said = act(
        panel, "ada", item_id, "release", decision_id=decision_id, scope="instance", number="1"
    )
    assert (status, said) == (200, "Released: it leaves in a moment.")
    with reading(desk.zone.engine) as session:
        assert session.get_one(QuarantineItem, item_id).resolution == "releasing"
        jobs = session.query(ClinicalJob).filter(ClinicalJob.dedupe_key.endswith(decision_id)).all()
        assert [job.kind for job in jobs] == ["deidentify"]
    assert act(panel, "ada", item_id, "try", boxes="")[0] == 409


def test_who_may_not_see_identities_sees_no_value_no_picture_and_releases_nothing(
    panel: PanelServer, desk: Desk
) -> None:
    item_id, decision_id = tried(panel, desk, "1.2.826.77.2")
    answer = panel.client("review_quarantine").get(f"/api/v1/quarantine/{item_id}")
    assert not {NAME, "MRN-77-01", BURNT} & set(answer.text.split('"'))
    assert all(line["before"] == line["after"] == "" for line in answer.json()["lines"])
    for prefix in ("", "/api/v1"):
        path = f"{prefix}/quarantine/{item_id}/{decision_id}/before-0.png"
        assert panel.client("review_quarantine").get(path).status_code == 403
        assert panel.client("ada").get(path.replace("before-0", "before-9")).status_code == 404
        assert panel.client("ada").get(path.replace(item_id, "0" * 32)).status_code == 404
    release = {"decision_id": decision_id, "scope": "instance", "number": "1"}
    assert act(panel, "review_quarantine", item_id, "release", **release)[0] == 409
    assert act(panel, "viewer", item_id, "release", **release)[0] == 403
    assert act(panel, "review_quarantine", item_id, "keep", scope="instance")[0] == 200


@pytest.mark.parametrize(
    ("number", "fields", "words"),
    [
        (1, {"boxes": "1 2 3"}, "line 1"),
        (2, {"boxes": "1 2 3 4\n9 9 5 5"}, "boxes"),
        (3, {"at-nonsense": "remove"}, "removed"),
        (4, {"boxes": "0 0 70000 5"}, "boxes"),
    ],
    ids=["three numbers", "inside out", "no place", "too large"],
)
def test_what_is_no_draft_is_refused_by_name(
    panel: PanelServer, desk: Desk, number: int, fields: dict[str, str], words: str
) -> None:
    item_id = plant(desk.zone, f"1.2.826.78.{number}")
    status, said = act(panel, "ada", item_id, "try", **fields)
    assert status == 409
    assert words in said
    assert view(panel, "ada", item_id)["trial"] is None


@pytest.mark.browser
@pytest.mark.slow
def test_a_person_draws_a_box_looks_and_releases_for_the_machine(
    window: Callable[..., Watched], panel: PanelServer, desk: Desk
) -> None:
    item_id = plant(desk.zone, "1.2.826.77.3")
    watched = window()
    watched.sign_in("ada")
    watched.open(f"/quarantine/{item_id}")
    page = watched.page
    page.get_by_role("button", name="Show what would leave").click()
    page.get_by_text("It is being made.").wait_for()
    assert do_jobs(desk.zone) == 1
    sheet = page.locator(".sheet[data-draws]")
    sheet.wait_for()
    area = sheet.bounding_box()
    assert area is not None
    scale = area["width"] / SIZE
    page.mouse.move(area["x"] + 8 * scale, area["y"] + 300 * scale)
    page.mouse.down()
    page.mouse.move(area["x"] + 200 * scale, area["y"] + 340 * scale)
    page.mouse.up()
    drawn = [int(number) for number in page.locator("#boxes").input_value().split()]
    assert np.allclose(drawn, [8, 300, 200, 340], atol=3)
    page.get_by_role("button", name="Show what would leave").click()
    page.get_by_text("It is being made.").wait_for()
    assert do_jobs(desk.zone) == 1
    page.locator(".sheet .box.person").wait_for()
    page.get_by_text("It would leave as shown.").wait_for()
    page.get_by_role("button", name="Release …").click()
    dialog = page.get_by_role("dialog", name="Release")
    dialog.get_by_label("For").select_option("machine")
    dialog.get_by_role("button", name="Release").click()
    page.get_by_text("Released: it leaves in a moment.").wait_for()
    with reading(desk.zone.engine) as session:
        row = session.query(Decision).filter_by(quarantine_item_id=item_id).one()
    assert (row.scope, row.state, row.verdict["boxes"]) == ("machine", "standing", [drawn])
    watched.open("/quarantine")
    page.get_by_role("button", name="Withdraw: burned_in_annotation").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    page.get_by_text("Withdrawn:").wait_for()
