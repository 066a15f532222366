from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from appliance import delivery, intake, merges, quarantine, work
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, Instance, QuarantineItem, Result
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery, Peer
from dicom_node.inbox import Announcement
from tests.appliance.delivery_scene import Scene, report, running_scene
from tests.dicom_node.support import CALLER, ct, encoded, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


def test_a_result_arrives_and_is_marked_delivered(scene: Scene) -> None:
    row = scene.deliver()
    assert (row.state, row.reason, scene.job.state) == ("delivered", None, "done")
    assert row.delivered_at is not None
    assert scene.received == [scene.result.SOPInstanceUID]
    with reading(scene.zone.engine) as session:
        kinds = session.scalars(select(ClinicalLedgerEntry.kind)).all()
    assert kinds.count("result.delivered") == 1


def test_a_task_that_comes_twice_delivers_once(scene: Scene) -> None:
    scene.deliver()
    scene.deliver()
    assert scene.received == [scene.result.SOPInstanceUID]


def test_a_worker_that_died_after_the_delivery_was_stored_sends_nothing_again(scene: Scene) -> None:
    scene.deliver()
    scene.change(ClinicalJob, state="queued", attempts=0)
    scene.deliver()
    assert scene.job.state == "done"
    assert len(scene.received) == 1


def test_a_workstation_that_is_away_is_tried_again_with_growing_pauses(scene: Scene) -> None:
    scene.workstation.scp.stop()
    row = scene.deliver()
    assert (row.state, scene.job.state) == ("queued", "failed")
    assert row.reason
    first = scene.job.next_try_at
    assert first is not None
    assert first - now() > timedelta(seconds=10)
    assert scene.deliver().state == "queued", "its pause is not over"
    assert scene.job.attempts == 1
    scene.make_due()
    scene.deliver()
    assert scene.job.attempts == 2


def test_a_workstation_that_comes_back_gets_the_result(scene: Scene) -> None:
    scene.workstation.inbox.min_free_bytes = 1 << 60
    assert scene.deliver().state == "queued"
    scene.workstation.inbox.min_free_bytes = 0
    scene.make_due()
    assert scene.deliver().state == "delivered"
    assert scene.received == [scene.result.SOPInstanceUID]


def test_after_the_last_attempt_a_person_decides_and_may_try_again(scene: Scene) -> None:
    scene.workstation.inbox.min_free_bytes = 1 << 60
    for _ in range(3):
        scene.make_due()
        scene.deliver()
    row = scene.deliver()
    assert (row.state, scene.job.state) == ("dead", "dead")
    assert "out of resources" in (row.reason or "")
    scene.workstation.inbox.min_free_bytes = 0
    with writing(scene.zone.engine) as session:
        assert work.retry(session, ClinicalJob, scene.job_id)
    assert scene.deliver().state == "delivered"


def test_what_no_other_try_can_change_is_dead_at_once(scene: Scene) -> None:
    scene.change(Peer, ae_title="SOMEBODY")
    row = scene.deliver()
    assert (row.state, scene.job.state, scene.job.attempts) == ("dead", "dead", 1)
    assert "Called AE title" in (row.reason or "")


@pytest.mark.parametrize("why", ["superseded", "shadow"])
def test_a_result_that_must_not_leave_is_withheld(scene: Scene, why: str) -> None:
    if why == "superseded":
        scene.change(Result, superseded=True)
    else:
        scene.change(Result, shadow=True)
    row = scene.deliver()
    assert (row.state, scene.job.state) == ("withheld", "done")
    assert why in (row.reason or "")
    assert scene.received == []


def add_revision(scene: Scene) -> str:
    """Let a late instance make the next revision; return the id of its inference job."""
    late = ct(StudyInstanceUID=scene.instances[0].StudyInstanceUID)
    inbox = intake.open_inbox(scene.zone)
    inbox.min_free_bytes = 0
    announced = Announcement(late.SOPClassUID, late.SOPInstanceUID, ExplicitVRLittleEndian)
    inbox.commit([encoded(late)], CALLER, announced)
    intake.index_batch(scene.zone, inbox)
    revision_id = intake.assemble(scene.zone, scene.row(Result, scene.result_id).study_id)
    with reading(scene.zone.engine) as session:
        newer = ClinicalJob.subject_id == revision_id
        return session.scalars(select(ClinicalJob.id).where(newer, ClinicalJob.kind == "infer")).one()


def set_state(scene: Scene, job_id: str, state: str) -> None:
    """Change the state of one job."""
    with writing(scene.zone.engine) as session:
        session.get_one(ClinicalJob, job_id).state = state


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_a_result_waits_while_models_answer_a_newer_revision_and_uses_up_no_attempt(
    scene: Scene, state: str
) -> None:
    set_state(scene, add_revision(scene), state)
    for _ in range(4):
        scene.deliver()
        scene.make_due()
    row = scene.deliver()
    assert (row.state, scene.job.state, scene.job.attempts) == ("queued", "failed", 0)
    assert "newer revision" in (row.reason or "")
    assert scene.received == []


@pytest.mark.parametrize("state", ["done", "dead"])
def test_a_result_that_a_newer_revision_did_not_supersede_is_delivered(scene: Scene, state: str) -> None:
    job_id = add_revision(scene)
    scene.deliver()
    set_state(scene, job_id, state)
    scene.make_due()
    row = scene.deliver()
    assert (row.state, row.reason, scene.job.state) == ("delivered", None, "done")
    assert scene.received == [scene.result.SOPInstanceUID]


def test_a_result_waits_while_a_person_has_to_decide_whose_study_it_is(scene: Scene) -> None:
    with writing(scene.zone.engine) as session:
        item = QuarantineItem(
            stage="index",
            reason_code=merges.PATIENT_MISMATCH,
            reason="-",
            study_id=session.get_one(Result, scene.result_id).study_id,
            dedupe_key="index:1",
        )
        session.add(item)
    for _ in range(3):
        scene.deliver()
        scene.make_due()
    row = scene.deliver()
    assert (row.state, row.reason, scene.job.attempts) == ("queued", merges.DISPUTED, 0)
    assert scene.received == []
    with writing(scene.zone.engine) as session:
        quarantine.discard(session, scene.zone.ledger, item.id, "wrong_patient", actor="u")
    scene.make_due()
    assert scene.deliver().state == "delivered"


def test_a_delivery_that_a_person_retries_still_waits_for_the_newer_revision(scene: Scene) -> None:
    job_id = add_revision(scene)
    set_state(scene, scene.job_id, "dead")
    with writing(scene.zone.engine) as session:
        assert work.retry(session, ClinicalJob, scene.job_id)
    assert scene.deliver().state == "queued"
    assert scene.received == []
    scene.change(Result, superseded=True)
    set_state(scene, job_id, "done")
    scene.make_due()
    assert scene.deliver().state == "withheld"
    assert scene.received == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"PatientID": "0815"}, "PatientID"),
        ({"PatientID": ""}, "PatientID"),
        ({"IssuerOfPatientID": "ELSEWHERE"}, "IssuerOfPatientID"),
        ({"PatientName": "Roe^Jane"}, "PatientName"),
        ({"PatientBirthDate": "19700102"}, "PatientBirthDate"),
        ({"StudyInstanceUID": "1.2.3"}, "StudyInstanceUID"),
    ],
)
def test_a_result_with_another_identity_never_leaves(
    scene: Scene, changes: dict[str, str], named: str
) -> None:
    save(report(scene.instances[0], **changes), scene.zone.root / "results" / "r.dcm")
    row = scene.deliver()
    assert (row.state, scene.job.state) == ("dead", "dead")
    assert named in (row.reason or "")
    assert scene.received == []
    with reading(scene.zone.engine) as session:
        (item,) = session.scalars(select(QuarantineItem)).all()
    assert (item.stage, item.reason_code) == ("deliver", "identity_mismatch")
    assert not any(value in item.reason for value in changes.values() if value)


def test_the_identity_is_compared_with_every_instance(scene: Scene) -> None:
    with reading(scene.zone.engine) as session:
        last = session.scalars(select(Instance).order_by(Instance.received_at.desc()).limit(1)).one()
    ds = scene.instances[2]
    ds.PatientBirthDate = "19011212"
    save(ds, scene.zone.root / last.path)
    assert scene.deliver().state == "dead"
    with reading(scene.zone.engine) as session:
        assert session.scalars(select(QuarantineItem.instance_id)).one() == last.id
    assert scene.received == []


def test_an_instance_that_cannot_be_read_stops_the_delivery(scene: Scene) -> None:
    with reading(scene.zone.engine) as session:
        path = scene.zone.root / session.scalars(select(Instance.path).limit(1)).one()
    path.write_bytes(path.read_bytes()[:-10])
    assert scene.deliver().state == "dead"
    with reading(scene.zone.engine) as session:
        assert session.scalars(select(QuarantineItem.reason_code)).one() == "identity_unreadable"


def test_names_that_differ_in_form_alone_are_the_same(scene: Scene) -> None:
    changed = report(scene.instances[0], PatientName="DOE^jane^^", IssuerOfPatientID="", PatientBirthDate="")
    save(changed, scene.zone.root / "results" / "r.dcm")
    assert scene.deliver().state == "delivered"


def test_a_disabled_destination_gets_nothing(scene: Scene) -> None:
    scene.change(Peer, enabled=False)
    assert scene.deliver().state == "dead"
    assert scene.received == []


def ledger_kinds(scene: Scene) -> list[str]:
    """Return the kinds of the ledger's entries."""
    with reading(scene.zone.engine) as session:
        return list(session.scalars(select(ClinicalLedgerEntry.kind)))


@pytest.mark.parametrize(
    "fate",
    [{"state": "running", "attempts": 3}, {"deadline_at": now() - timedelta(days=1)}],
    ids=["worn out", "too late"],
)
def test_a_delivery_whose_job_was_buried_is_dead_with_the_reason(scene: Scene, fate: dict[str, Any]) -> None:
    scene.change(ClinicalJob, **fate)
    work.reconcile(scene.zone.engine, ClinicalJob, lambda *_: True, now())
    assert scene.job.state == "dead"
    assert (delivery.align(scene.zone), delivery.align(scene.zone)) == (1, 0)
    row = scene.row(Delivery, scene.delivery_id)
    assert (row.state, row.reason) == ("dead", scene.job.reason)
    assert ledger_kinds(scene).count("result.stopped") == 1


def test_a_dead_delivery_is_queued_again_with_its_job(scene: Scene) -> None:
    scene.change(Peer, enabled=False)
    assert scene.deliver().state == "dead"
    assert delivery.align(scene.zone) == 0
    with writing(scene.zone.engine) as session:
        assert work.retry(session, ClinicalJob, scene.job_id)
    assert delivery.align(scene.zone) == 1
    row = scene.row(Delivery, scene.delivery_id)
    assert (row.state, row.reason) == ("queued", None)
    scene.change(Peer, enabled=True)
    assert scene.deliver().state == "delivered"
    assert delivery.align(scene.zone) == 0
    assert ledger_kinds(scene).count("result.stopped") == 1


def test_pauses_grow_to_half_an_hour() -> None:
    pauses = [delivery.retry_in_s(attempts, "0" * 32) for attempts in range(1, 12)]
    assert pauses == sorted(pauses)
    assert 15 <= pauses[0] <= 18
    assert 1800 <= pauses[-1] <= 2160
