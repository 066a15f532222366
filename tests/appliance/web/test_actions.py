"""What a person can do on the pages, through the API of the running web process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from appliance import secrets
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, QuarantineItem
from appliance.db.engine import reading
from appliance.db.peers import Peer, RejectedCaller
from appliance.db.people import User
from tests.appliance.web.seed import PASSWORD

if TYPE_CHECKING:
    from appliance.web.desk import Desk
    from tests.appliance.web.panel_server import PanelServer


def _do(panel: PanelServer, user: str, path: str, **fields: str) -> tuple[int, str]:
    answer = panel.client(user).post(f"/api/v1/{path}", json=fields)
    content: dict[str, Any] = answer.json()
    return answer.status_code, str(content.get("message", content.get("detail")))


def _ledger_kinds(desk: Desk, subject_id: str) -> list[str]:
    statement = select(ClinicalLedgerEntry.kind).where(ClinicalLedgerEntry.subject_id == subject_id)
    with reading(desk.zone.engine) as session:
        return list(session.scalars(statement))


def test_a_dead_job_is_queued_again_once(panel: PanelServer, desk: Desk) -> None:
    assert _do(panel, "retry_jobs", "jobs/actions/retry", table="clinical", id=panel.seed.dead_job)[0] == 200
    with reading(desk.zone.engine) as session:
        job = session.get_one(ClinicalJob, panel.seed.dead_job)
    assert (job.state, job.attempts, job.reason) == ("queued", 0, None)
    assert "job.retried" in _ledger_kinds(desk, panel.seed.dead_job)
    again = _do(panel, "retry_jobs", "jobs/actions/retry", table="clinical", id=panel.seed.dead_job)
    assert again[0] == 409


def test_a_dead_round_is_queued_again(panel: PanelServer) -> None:
    assert _do(panel, "retry_jobs", "jobs/actions/retry", table="round", id=panel.seed.dead_round)[0] == 200
    rows = panel.client("viewer").get("/api/v1/jobs").json()["research_rows"]
    assert {row["state"] for row in rows if row["id"] == panel.seed.dead_round} == {"queued"}


def test_a_quarantined_item_is_reviewed_by_a_person_once(panel: PanelServer, desk: Desk) -> None:
    item = panel.seed.quarantine
    assert _do(panel, "review_quarantine", "quarantine/actions/review", id=item)[0] == 200
    with reading(desk.zone.engine) as session:
        assert session.get_one(QuarantineItem, item).resolved_at is not None
    assert _ledger_kinds(desk, item) == ["quarantine.reviewed"]
    assert _do(panel, "review_quarantine", "quarantine/actions/review", id=item)[0] == 409


def test_a_caller_that_was_turned_away_becomes_a_peer_with_one_click(panel: PanelServer, desk: Desk) -> None:
    assert _do(panel, "manage_peers", "peers/actions/allow", id=panel.seed.caller)[0] == 200
    with reading(desk.zone.engine) as session:
        peer = session.scalar(select(Peer).where(Peer.ae_title == "CT_ROOM3"))
        assert session.get(RejectedCaller, panel.seed.caller) is None
    assert peer is not None
    assert (peer.host, peer.may_send, peer.is_destination, peer.enabled) == ("127.0.0.7", True, False, True)


def test_a_peer_is_added_disabled_and_enabled(panel: PanelServer, desk: Desk) -> None:
    fields = {"name": "PACS 2", "ae_title": "PACS2", "host": "10.9.0.0/24", "port": "", "may_send": "yes"}
    assert _do(panel, "manage_peers", "peers/actions/add", **fields)[0] == 200
    status, said = _do(panel, "manage_peers", "peers/actions/add", **fields)
    assert status == 409
    assert "taken" in said
    with reading(desk.zone.engine) as session:
        peer = session.scalar(select(Peer).where(Peer.name == "PACS 2"))
    assert peer is not None
    for action in ("disable", "enable"):
        assert _do(panel, "manage_peers", f"peers/actions/{action}", id=peer.id)[0] == 200


@pytest.mark.parametrize("port", ["0", "-1", "99999", "1e3", "٣"])
def test_a_destination_needs_a_real_port(panel: PanelServer, port: str) -> None:
    fields = {"name": "WS 9", "ae_title": "WS9", "host": "10.9.0.1", "port": port, "is_destination": "yes"}
    status, said = _do(panel, "manage_peers", "peers/actions/add", **fields)
    assert status == 409
    assert "port" in said


def test_a_test_of_a_peer_that_is_not_there_says_which_step_failed(panel: PanelServer) -> None:
    status, said = _do(panel, "manage_peers", "peers/actions/test", id=panel.seed.destination)
    assert status == 409
    assert "TCP connection" in said
    view = panel.client("viewer").get(f"/api/v1/peers/{panel.seed.destination}").json()
    assert [step["state"] for step in view["steps"]] == ["ok", "failed"]
    assert view["steps"][1]["advice"][0][0] == "on the peer"


def test_a_peer_is_changed_by_its_form(panel: PanelServer, desk: Desk) -> None:
    with reading(desk.zone.engine) as session:
        peer = session.scalar(select(Peer).where(Peer.name == "Old archive"))
    assert peer is not None
    path = f"peers/{peer.id}/actions/change"
    fields = {"name": "Old archive", "ae_title": "ARCHIVE", "host": "10.20.1.9", "protocol": "dimse"}
    fields |= {"port": "104", "is_archive": "yes", "may_send": "yes", "max_associations": "4"}
    fields |= {"quiet_period_s": "90", "days": "mon,tue", "from": "20:00", "to": "06:00"}
    assert _do(panel, "manage_peers", path, **fields)[0] == 200
    with reading(desk.zone.engine) as session:
        changed = session.get_one(Peer, peer.id)
    assert (changed.port, changed.is_archive, changed.is_destination) == (104, True, False)
    assert (changed.quiet_period_s, changed.max_associations) == (90, 4)
    assert changed.schedule == {"days": ["mon", "tue"], "from": "20:00", "to": "06:00"}
    for wrong, said in (({"port": "x"}, "port"), ({"days": ""}, "schedule"), ({"url": "https://a"}, "url")):
        status, message = _do(panel, "manage_peers", path, **{**fields, **wrong})
        assert (status, said in message) == (409, True)
    assert _do(panel, "viewer", path, **fields)[0] == 403


def test_the_secret_of_a_peer_is_stored_and_never_shown(panel: PanelServer, desk: Desk) -> None:
    fields = {"name": "Web archive", "host": "10.20.1.8", "protocol": "dicomweb", "is_archive": "yes"}
    fields |= {"url": "https://pacs.example/dicom-web", "days": "mon"}
    assert _do(panel, "manage_peers", "peers/actions/add", **fields)[0] == 200
    with reading(desk.zone.engine) as session:
        peer = session.scalars(select(Peer).where(Peer.name == "Web archive")).one()
    path = f"peers/{peer.id}/actions"
    assert _do(panel, "manage_peers", f"{path}/secret", secret="reader:planted")[0] == 409, "it has no name"
    assert _do(panel, "manage_peers", f"{path}/change", **fields, credential="web-archive")[0] == 200
    assert _do(panel, "manage_peers", f"{path}/secret", secret="two\nlines")[0] == 409
    assert _do(panel, "viewer", f"{path}/secret", secret="reader:planted")[0] == 403
    assert _do(panel, "manage_peers", f"{path}/secret", secret="reader:planted")[0] == 200
    assert secrets.read(desk.zone, "web-archive") == "reader:planted"
    view = panel.client("viewer").get(f"/api/v1/peers/{peer.id}")
    assert view.json()["secret_stored"] is True
    assert "planted" not in view.text
    with reading(desk.zone.engine) as session:
        written = session.scalars(
            select(ClinicalLedgerEntry.body).where(ClinicalLedgerEntry.subject_id == peer.id)
        ).all()
    assert any("secret" in str(body) for body in written)
    assert not any("planted" in str(body) for body in written)


def test_a_model_goes_to_shadow_active_and_back(panel: PanelServer) -> None:
    candidate = panel.seed.models["evaluated"]
    before = panel.seed.models["active"]
    for action in ("shadow", "activate"):
        assert _do(panel, "approve_model", f"models/actions/{action}", id=candidate)[0] == 200
    states = {row["id"]: row["state"] for row in panel.client("viewer").get("/api/v1/models").json()["rows"]}
    assert (states[candidate], states[before]) == ("active", "retired")
    assert _do(panel, "approve_model", "models/actions/rollback", id=candidate)[0] == 200
    states = {row["id"]: row["state"] for row in panel.client("viewer").get("/api/v1/models").json()["rows"]}
    assert (states[candidate], states[before]) == ("retired", "active")
    assert _do(panel, "approve_model", "models/actions/rollback", id=candidate)[0] == 409


def test_a_protocol_is_approved_and_suspended_by_name(panel: PanelServer) -> None:
    protocol = panel.seed.pending_protocol
    for action, state in (("approve", "approved"), ("suspend", "suspended"), ("refuse", "refused")):
        path = f"federation/actions/{action}"
        rows = panel.client("viewer").get("/api/v1/federation").json()["protocols"]
        shown = next(row["shown_sha256"] for row in rows if row["id"] == protocol)
        fields = {"id": protocol, "reason": "a test", "shown": shown}
        if action == "approve":
            assert _do(panel, "approve_protocol", path, **{**fields, "shown": "0" * 64})[0] == 409
        assert _do(panel, "approve_protocol", path, **fields)[0] == 200
        view = panel.client("viewer").get("/api/v1/federation").json()
        found = next(row for row in view["protocols"] if row["id"] == protocol)
        assert found["state"] == state
        assert view["people"][found["decided_by"]] == "approve_protocol"


def test_nobody_grants_what_they_may_not_do(panel: PanelServer) -> None:
    fields = {"name": "new-admin", "password": PASSWORD, "role": "admin"}
    status, said = _do(panel, "manage_users", "users/actions/add", **fields)
    assert status == 409
    assert "rights that you have" in said


def test_nobody_takes_over_a_user_with_more_rights(panel: PanelServer) -> None:
    for action in ("password", "disable", "rights"):
        fields = {"id": panel.seed.admin, "password": "another long password", "rights": "view"}
        assert _do(panel, "manage_users", f"users/actions/{action}", **fields)[0] == 409


def test_a_user_is_added_changed_and_shut_out(panel: PanelServer, desk: Desk) -> None:
    assert _do(panel, "ada", "users/actions/add", name="eva", password=PASSWORD, role="radiologist")[0] == 200
    with reading(desk.zone.engine) as session:
        eva = session.scalar(select(User.id).where(User.name == "eva"))
    assert eva is not None
    client = panel.client("eva")
    assert client.get("/api/v1/peers").status_code == 200
    assert _do(panel, "ada", "users/actions/rights", id=eva, rights="view_identity")[0] == 200
    assert client.get("/api/v1/peers").status_code == 403  # from the next request on
    assert _do(panel, "ada", "users/actions/disable", id=eva)[0] == 200
    assert client.get("/session").status_code == 401
    assert _do(panel, "ada", "users/actions/add", name="eva", password="short", role="")[0] == 409


def test_nobody_locks_themselves_out(panel: PanelServer) -> None:
    for action in ("disable", "rights"):
        assert _do(panel, "ada", f"users/actions/{action}", id=panel.seed.admin, rights="view")[0] == 409
