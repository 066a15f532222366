"""Rules, retention, quarantine and a study's actions, through the API of the running web process."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from appliance.db.base import new_id
from appliance.db.clinical import ClinicalLedgerEntry, QuarantineItem, RetentionRule, Rule, Study
from appliance.db.engine import reading, writing
from tests.dicom_node.support import ct

if TYPE_CHECKING:
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer


def _do(panel: PanelServer, user: str, path: str, **fields: str) -> tuple[int, str]:
    answer = panel.client(user).post(f"/api/v1/{path}", json=fields)
    content: dict[str, Any] = answer.json()
    return answer.status_code, str(content.get("message", content.get("detail")))


def _rule(desk: Desk, name: str) -> Rule | None:
    with reading(desk.zone.engine) as session:
        return session.scalar(select(Rule).where(Rule.name == name))


def _study(desk: Desk, state: str) -> str:
    with writing(desk.zone.engine) as session:
        study = Study(study_instance_uid=f"2.25.{new_id()[:8]}", state=state, study_description="Miller^Anna")
        session.add(study)
        session.flush()
        return study.id


def test_a_rule_is_added_disabled_tried_changed_and_removed(panel: PanelServer, desk: Desk) -> None:
    fields = {
        "name": "night ct",
        "modality": "CT, MR",
        "description": "miller",
        "time": "mon-fri 18:00-07:00",
        "inference": "yes",
        "priority": "2",
    }
    assert _do(panel, "manage_peers", "rules/actions/add", **fields)[0] == 200
    rule = _rule(desk, "night ct")
    assert rule is not None
    assert (rule.enabled, rule.action["priority"], rule.action["inference"]) == (False, 2, True)
    assert [sorted(part) for part in rule.condition["all"]] == [
        ["attribute", "in"],
        ["attribute", "matches"],
        ["time"],
    ]
    study = _study(desk, "receiving")
    view = panel.client("viewer").get("/api/v1/rules", params={"rule": "night ct", "study": study}).json()
    (said,) = view["said"]
    assert (said["rule"], said["matched"]) == ("night ct", False)
    assert "Miller" not in str(view)
    changed = {
        "name": "night ct",
        "condition": '{"attribute": "StudyDescription", "matches": "miller"}',
        "discard": "test studies",
    }
    status, message = _do(panel, "manage_peers", "rules/actions/try", study=study[:8], **changed)
    assert status == 200
    assert message == (
        "this rule: matched because StudyDescription matches 'miller'."
        " The study would get: discard (test studies)."
    )
    assert _do(panel, "manage_peers", "rules/actions/change", **changed)[0] == 200
    rule = _rule(desk, "night ct")
    assert rule is not None
    assert (rule.action["inference"], rule.action["discard"]) == (False, "test studies")
    for action in ("up", "enable", "disable", "remove"):
        assert _do(panel, "manage_peers", f"rules/actions/{action}", name="night ct")[0] == 200
    assert _rule(desk, "night ct") is None


@pytest.mark.parametrize(
    ("action", "fields", "message"),
    [
        ("add", {"name": "x", "time": "sometimes"}, "time: expected"),
        ("add", {"name": "x", "description": "(a+)+"}, "no repeated group"),
        ("add", {"name": "x", "priority": "12"}, "action.priority"),
        ("add", {"name": "x", "destinations": "nowhere"}, "no such destination"),
        ("change", {"name": "everything", "condition": "{"}, "expected JSON; look at line 1"),
        ("change", {"name": "everything", "condition": '{"any": [7]}'}, "condition.any[0]"),
        ("change", {"name": "everything", "condition": " " + "[" * 3000}, "JSON"),
        ("try", {"condition": "{}", "study": "zzz"}, "study: expected"),
        ("enable", {"name": "nobody"}, "no rule of this name"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(
    panel: PanelServer, action: str, fields: dict[str, str], message: str
) -> None:
    status, said = _do(panel, "manage_peers", f"rules/actions/{action}", **fields)
    assert status == 409
    assert message in said


def test_rules_are_tried_on_an_uploaded_file(panel: PanelServer, desk: Desk) -> None:
    ds = ct(SeriesDescription="Miller^Anna")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = io.BytesIO()
    ds.save_as(content, enforce_file_format=True)
    before = sorted(path.name for path in desk.zone.root.iterdir())
    client = panel.client("manage_peers")
    answer = client.post("/api/v1/rules/try", params={"from": "CT1"}, content=content.getvalue())
    assert answer.status_code == 200
    assert "everything: matched" in answer.json()["message"]
    assert "Miller" not in answer.text
    assert sorted(path.name for path in desk.zone.root.iterdir()) == before
    assert client.post("/api/v1/rules/try", content=b"no DICOM").status_code == 409
    assert client.post("/api/v1/rules/try", content=b"").status_code == 409
    assert panel.client("viewer").post("/api/v1/rules/try", content=b"x").status_code == 403


def test_a_retention_rule_is_added_disabled_and_looked_at_first(panel: PanelServer, desk: Desk) -> None:
    add = {"name": "old ct", "keep_days": "30", "condition": '{"attribute": "Modality", "in": ["CT"]}'}
    assert _do(panel, "manage_peers", "retention/actions/add", **add)[0] == 403
    assert _do(panel, "manage_retention", "retention/actions/add", **add)[0] == 200
    with reading(desk.zone.engine) as session:
        assert not session.scalars(select(RetentionRule)).one().enabled
    view = panel.client("viewer").get("/api/v1/retention", params={"preview": "yes"}).json()
    assert view["preview"]["studies"] == 0
    assert panel.client("viewer").get("/api/v1/retention").json()["preview"] is None
    for action in ("enable", "remove"):
        assert _do(panel, "manage_retention", f"retention/actions/{action}", name="old ct")[0] == 200
    status, said = _do(panel, "manage_retention", "retention/actions/add", name="x", keep_days="1e3")
    assert (status, "keep_days" in said) == (409, True)


def test_a_study_is_held_assembled_and_routed_again(panel: PanelServer, desk: Desk) -> None:
    study = _study(desk, "receiving")
    for action in ("hold", "release", "hold"):
        assert _do(panel, "manage_retention", f"studies/{study}/actions/{action}")[0] == 200
    assert _do(panel, "manage_peers", f"studies/{study}/actions/route")[0] == 409
    assert _do(panel, "retry_jobs", f"studies/{study}/actions/assemble")[0] == 200
    with reading(desk.zone.engine) as session:
        row = session.get_one(Study, study)
        kinds = session.scalars(
            select(ClinicalLedgerEntry.kind).where(ClinicalLedgerEntry.subject_id == study)
        ).all()
    assert (row.on_hold, row.complete) == (True, True)
    assert kinds == ["study.held", "study.hold_released", "study.held", "study.complete"]


def test_a_quarantined_item_is_discarded_with_a_reason(panel: PanelServer, desk: Desk) -> None:
    with writing(desk.zone.engine) as session:
        item = QuarantineItem(
            stage="index", reason_code="patient_mismatch", reason="-", dedupe_key=f"index:{new_id()}"
        )
        session.add(item)
        session.flush()
    for action, fields, status in (
        ("review", {}, 409),
        ("discard", {"why": "because"}, 409),
        ("again", {}, 409),
        ("discard", {"why": "wrong_patient"}, 200),
        ("discard", {"why": "wrong_patient"}, 409),
    ):
        path = f"quarantine/actions/{action}"
        assert _do(panel, "review_quarantine", path, id=item.id, **fields)[0] == status, action
