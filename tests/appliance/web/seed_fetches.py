"""Fetches in every state, for the panel's pages."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from appliance.db.peers import Fetch, FetchedStudy, Peer

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.db.clinical import Study

_MANNER: Final = {"method": "move", "hours": {"from": "20:00", "to": "06:00"}, "pause_s": 2.0, "per_hour": 30}


def plant(session: Session, studies: list[Study], admin: str, at: datetime) -> str:
    """Plant fetches; return the id of one that is listed and waits to be started."""
    archive = Peer(name="Big PACS", ae_title="BIGPACS", host="10.20.3.1", port=104, is_archive=True)
    session.add(archive)
    session.flush()
    one = studies[4]
    shown = {
        "PatientID": one.patient_id,
        "PatientName": one.patient_name,
        "StudyDate": "20240105",
        "ModalitiesInStudy": "CT\\SR",
        "StudyDescription": one.study_description,
        "NumberOfStudyRelatedInstances": "214",
    }
    found = {"studies": 6, "instances": 900, "here": 2, "dropped": 1}
    made = []
    for number, state in enumerate(("listed", "running", "done", "paused", "failed", "looking", "cancelled")):
        listed = state not in {"failed", "looking"}
        fetch = Fetch(
            peer_id=archive.id,
            query={"PatientID": one.patient_id, "StudyDate": "20240101-20241231"},
            options={**_MANNER, **({"found": found, "preview": [shown]} if listed else {})},
            state=state,
            reason="connect: no connection, or no answer" if state == "failed" else None,
            requested_by=admin,
            created_at=at - timedelta(minutes=number),
        )
        session.add(fetch)
        session.flush()
        made.append(fetch.id)
        if listed:
            session.add_all(_study(fetch, index, studies) for index in range(6))
    return made[0]


def _study(fetch: Fetch, index: int, studies: list[Study]) -> FetchedStudy:
    row = FetchedStudy(fetch_id=fetch.id, study_instance_uid=f"2.25.77{index}", expected=150)
    if index < 2:
        row.study_instance_uid = studies[4 + index].study_instance_uid
    if fetch.state in {"running", "paused", "done"} and (index < 3 or fetch.state == "done"):
        row.state, row.received, row.attempts = "done", 150, 1
    if fetch.state == "done" and index == 5:
        row.state, row.received, row.attempts = "failed", 148, 5
        row.reason = "148 of 150 instances came (2 not sent by the archive)"
    return row
