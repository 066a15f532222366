"""Commitment requests and procedure steps as rows, on databases of both kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import completion, dimse
from appliance.commitment import DatabaseKeeper, OtherItemsError
from appliance.completion import DatabaseSteps
from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.db.peers import CommitmentRequest
from dicom_node.ports import Caller, Step
from tests.appliance.test_catalogue import CT, receive, zone

if TYPE_CHECKING:
    from appliance.node import ClinicalZone
    from dicom_node.commitment import Report

__all__ = ["zone"]  # a fixture
CALLER = Caller("SCANNER", "CLOISTER", "127.0.0.1")


def test_a_request_is_kept_once_judged_and_reported(zone: ClinicalZone) -> None:
    uid = receive(zone, StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")
    keeper = DatabaseKeeper(zone, dimse.unasked)
    keeper.keep(CALLER, "1.2.7", [(CT, uid)])
    key = keeper.keep(CALLER, "1.2.7", [(CT, uid)])
    with pytest.raises(OtherItemsError):
        keeper.keep(CALLER, "1.2.7", [(CT, "1.2.3")])
    sent: list[Report] = []

    def send(report: Report) -> bool:
        sent.append(report)
        return True

    keeper.report(key, send, lambda: True)
    assert [(report.committed, report.failed) for report in sent] == [(((CT, uid),), ())]
    keeper.report(key, send, lambda: True)
    assert len(sent) == 1
    with reading(zone.engine) as session:
        assert session.scalars(select(CommitmentRequest.state)).all() == ["reported"]
        assert session.scalars(select(Study.complete)).all() == [True]


def test_a_step_is_kept_and_completes_its_study(zone: ClinicalZone) -> None:
    uid = receive(zone, StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")
    steps = DatabaseSteps(zone)
    assert steps.create(CALLER, "1.2.9", Step("IN PROGRESS", ("1.2.1",)))
    assert not steps.create(CALLER, "1.2.9", Step("IN PROGRESS", ("1.2.1",)))
    assert steps.update("1.2.9", Step("COMPLETED", (), (uid,))) == "IN PROGRESS"
    assert steps.update("1.2.9", Step("IN PROGRESS")) == "COMPLETED"
    assert steps.update("1.2.8", Step("COMPLETED")) is None
    assert completion.mark_complete(zone) == 1
    with writing(zone.engine) as session:
        assert session.scalars(select(Study.complete)).all() == [True]
