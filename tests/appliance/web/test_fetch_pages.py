"""Fetches through the API of the running web process."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from appliance.auth import Principal, Right
from appliance.db.base import now
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, Peer
from appliance.web.panel import fetches, study
from appliance.web.panel.page import Query

if TYPE_CHECKING:
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer


def _do(panel: PanelServer, user: str, path: str, **fields: str) -> tuple[int, str]:
    answer = panel.client(user).post(f"/api/v1/{path}", json=fields)
    content: dict[str, Any] = answer.json()
    return answer.status_code, str(content.get("message", content.get("detail")))


def _state(desk: Desk, fetch_id: str) -> str:
    with reading(desk.zone.engine) as session:
        return session.get_one(Fetch, fetch_id).state


def _archive(desk: Desk) -> str:
    with writing(desk.zone.engine) as session:
        session.add(Peer(name="Small PACS", ae_title="SMALL", host="127.0.0.1", port=1, is_archive=True))
    return "Small PACS"


def test_a_fetch_is_ordered_steered_and_recorded_without_values(panel: PanelServer, desk: Desk) -> None:
    fields = {"peer": _archive(desk), "PatientID": "4711", "hours": "20:00-06:00", "per_hour": "30"}
    assert _do(panel, "viewer", "fetch/actions/order", **fields)[0] == 403
    status, said = _do(panel, "fetch_studies", "fetch/actions/order", **fields)
    assert (status, said) == (200, "Ordered: the archive is being asked.")
    with reading(desk.zone.engine) as session:
        (fetch,) = [row for row in session.query(Fetch) if row.query == {"PatientID": "4711"}]
        bodies = [str(row.body) for row in session.query(ClinicalLedgerEntry).filter_by(subject_id=fetch.id)]
    assert (fetch.state, fetch.options["per_hour"], fetch.options["method"]) == ("looking", 30, "get")
    assert len(bodies) == 1
    assert "4711" not in bodies[0]
    assert _do(panel, "fetch_studies", "fetch/actions/cancel", id=fetch.id)[0] == 200
    assert _state(desk, fetch.id) == "cancelled"
    status, said = _do(panel, "fetch_studies", f"fetch/{fetch.id}/actions/start")
    assert (status, said) == (409, "Not done: it is cancelled; expected listed.")


def test_an_order_that_cannot_be_carried_out_says_why(panel: PanelServer) -> None:
    for fields, words in (
        ({"peer": "Big PACS"}, "at least one key"),
        ({"peer": "nobody", "PatientID": "1"}, "no peer of this name"),
        ({"peer": "Big PACS", "PatientID": "1", "hours": "at night"}, "hours"),
        ({"peer": "Big PACS", "PatientID": "1", "per_hour": "1e3"}, "per_hour"),
    ):
        status, said = _do(panel, "fetch_studies", "fetch/actions/order", **fields)
        assert status == 409
        assert words in said
    status, said = _do(panel, "fetch_studies", "fetch/actions/priors", peer="Big PACS", study_id="gone")
    assert (status, said) == (409, "Not done: study: there is none of this id.")


def test_values_of_patients_are_for_those_who_may_see_them(panel: PanelServer) -> None:
    path = f"/api/v1/fetch/{panel.seed.fetch}"
    hidden = panel.client("fetch_studies").get(path).json()
    shown = panel.client("view_identity").get(path).json()
    assert hidden["row"]["match"] == {}
    assert hidden["row"]["keys"] == ["PatientID", "StudyDate"]
    assert set(shown["row"]["match"]) == {"PatientID", "StudyDate"}
    assert "PatientName" not in hidden["preview"][0]
    assert shown["preview"][0]["PatientName"]
    assert (shown["row"]["studies"], shown["pages"], len(shown["studies"])) == (6, 1, 6)


def test_a_listed_fetch_is_started_paused_and_resumed(panel: PanelServer, desk: Desk) -> None:
    fetch_id = panel.seed.fetch
    for act, state in (("start", "running"), ("pause", "paused"), ("resume", "running")):
        assert _do(panel, "fetch_studies", f"fetch/{fetch_id}/actions/{act}")[0] == 200
        assert _state(desk, fetch_id) == state
    with writing(desk.zone.engine) as session:
        session.get_one(Fetch, fetch_id).state = "listed"


def test_a_studys_page_leads_to_its_priors(desk: Desk, panel: PanelServer) -> None:
    study_id = panel.seed.studies[4]
    everything = Principal("0" * 32, "somebody", frozenset(Right), now() + timedelta(hours=1))
    drawn = study.draw(study.load(desk, everything, Query({"study_id": study_id})), everything)
    assert f'href="/fetch?study={study_id}"' in drawn["head"]
    view = fetches.load(desk, everything, Query({"study": study_id}))
    assert f'value="{study_id}"' in fetches.draw(view, everything)["priors"]
    viewer = Principal("0" * 32, "somebody", frozenset({Right.VIEW}), now() + timedelta(hours=1))
    assert "/fetch" not in study.draw(study.load(desk, viewer, Query({"study_id": study_id})), viewer)["head"]
