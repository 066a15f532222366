from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from sqlalchemy import func, select, update

from appliance import models, serving, serving_rows
from appliance.auth.rights import Right
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, ModelVersion, Result, Study
from appliance.db.engine import make_engine, reading, writing
from appliance.db.peers import Delivery
from appliance.delivery import deliver
from appliance.ledger import verify
from appliance.work import claimed
from dicom_node.inbox import Inbox
from inference.results.uids import result_uid
from inference.study import build_results
from tests.appliance.serving_material import (
    add_instances,
    add_model,
    add_peer,
    add_user,
    assemble,
    requeue,
    run_job,
    study_instance,
)
from tests.dicom_node.support import RunningSCP, start_scp
from tests.inference.material import PNEUMONIA, make_card, make_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.ledger import Ledger
    from appliance.node import ClinicalZone
    from tests.appliance.servers import PostgreSQL


def _results(zone: ClinicalZone) -> list[Result]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(Result).order_by(Result.created_at, Result.kind)))


def _deliveries(zone: ClinicalZone) -> list[Delivery]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.created_at)))


def _kinds(zone: ClinicalZone) -> list[str]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(ClinicalLedgerEntry.kind).order_by(ClinicalLedgerEntry.sequence)))


def _one_study(
    zone: ClinicalZone, *changes: dict[str, Any], destinations: tuple[str, ...] = ()
) -> tuple[str, str, str]:
    study_id = add_instances(zone, [study_instance(**item) for item in changes or ({},)])
    return (study_id, *assemble(zone, study_id, destinations))


def test_a_study_gets_report_and_capture_and_a_delivery_of_each(clinical_zone: ClinicalZone) -> None:
    model_id, peer_id = add_model(clinical_zone), add_peer(clinical_zone)
    study_id, revision_id, job_id = _one_study(clinical_zone, destinations=("workstation",))
    assert run_job(clinical_zone, job_id) == ("done", None)

    report, capture = sorted(_results(clinical_zone), key=lambda item: item.kind, reverse=True)
    assert (report.kind, report.sop_class_uid) == ("sr", ComprehensiveSRStorage)
    assert (capture.kind, capture.sop_class_uid) == ("sc", SecondaryCaptureImageStorage)
    with reading(clinical_zone.engine) as session:
        digest = session.get_one(ModelVersion, model_id).package_sha256
        job = session.scalars(select(ClinicalJob).where(ClinicalJob.kind == "deliver")).first()
        assert job is not None
        assert job.priority == 3
    for result in (report, capture):
        assert result.sop_instance_uid == result_uid(revision_id, digest, result.kind)
        assert (result.study_id, result.shadow, result.superseded) == (study_id, False, False)
        ds = dcmread(clinical_zone.root / result.path)
        assert ds.SOPInstanceUID == result.sop_instance_uid
        assert (ds.PatientID, str(ds.PatientName)) == ("P-1071", "Meadow^Clara^^Dr")
        assert result.probability == pytest.approx(result.finding["probability"])
        assert result.finding["code"] == PNEUMONIA.code
    found = _deliveries(clinical_zone)
    assert {item.result_id for item in found} == {report.id, capture.id}
    assert {(item.peer_id, item.state) for item in found} == {(peer_id, "queued")}
    assert _kinds(clinical_zone)[-3:] == ["result.created", "result.created", "inference.done"]
    public = clinical_zone.keys.signing.public_key()
    assert verify(clinical_zone.engine, public).problems == ()


@pytest.mark.postgres
def test_a_new_revision_supersedes_on_postgresql_as_well(
    clinical_zone: ClinicalZone, postgresql_templates: PostgreSQL, ledger: Ledger
) -> None:
    engine = make_engine(postgresql_templates.new_database(template="template_clinical"))
    zone = replace(clinical_zone, engine=engine, ledger=ledger)
    add_model(zone)
    add_peer(zone)
    study_id, _, job_id = _one_study(zone, destinations=("workstation",))
    assert run_job(zone, job_id) == ("done", None)
    add_instances(zone, [study_instance()])
    _, second_job = assemble(zone, study_id, ("workstation",))
    assert run_job(zone, second_job) == ("done", None)
    assert sorted(item.superseded for item in _results(zone)) == [False, False, True, True]
    assert sorted(item.state for item in _deliveries(zone)) == ["queued", "queued", "withheld", "withheld"]
    assert verify(engine, ledger.signing.public_key()).problems == ()
    engine.dispose()


def test_a_second_message_and_a_retry_make_nothing_new(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    add_peer(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    before = [(item.id, item.sop_instance_uid) for item in _results(clinical_zone)]
    files = {item.path: (clinical_zone.root / item.path).read_bytes() for item in _results(clinical_zone)}
    assert run_job(clinical_zone, job_id) == ("done", None)
    requeue(clinical_zone, job_id)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert [(item.id, item.sop_instance_uid) for item in _results(clinical_zone)] == before
    assert len(_deliveries(clinical_zone)) == 2
    assert all((clinical_zone.root / path).read_bytes() == content for path, content in files.items())


def test_a_worker_that_dies_before_its_commit_leads_to_the_same_instances(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone)

    def power_cut(*_: object) -> list[str]:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(serving_rows, "store", power_cut)
        state, _ = run_job(clinical_zone, job_id)
    assert state == "failed"
    assert _results(clinical_zone) == []
    left = {path: path.read_bytes() for path in (clinical_zone.root / "results").rglob("*.dcm")}
    requeue(clinical_zone, job_id)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert {clinical_zone.root / item.path for item in _results(clinical_zone)} == set(left)
    assert all(path.read_bytes() == content for path, content in left.items())


def test_shadow_results_are_kept_and_never_delivered(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone, "shadow")
    add_peer(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert [item.shadow for item in _results(clinical_zone)] == [True, True]
    assert _deliveries(clinical_zone) == []


def test_active_and_shadow_model_answer_side_by_side(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone, "active")
    add_model(clinical_zone, "shadow", name="run-2", onnx=make_onnx(bias=-3.0), card=make_card(version="2.0"))
    add_peer(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    found = _results(clinical_zone)
    assert sorted((item.kind, item.shadow) for item in found) == [
        ("sc", False), ("sc", True), ("sr", False), ("sr", True),
    ]  # fmt: skip
    assert len(_deliveries(clinical_zone)) == 2


@pytest.mark.parametrize(
    "changes",
    [{"Modality": "CT"}, {"Manufacturer": "Cloister", "ManufacturerModelName": "Cloister inference"}],
)
def test_what_no_model_takes_or_a_node_of_ours_made_gets_no_result(
    clinical_zone: ClinicalZone, changes: dict[str, Any]
) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, changes)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert _results(clinical_zone) == []


def test_own_results_that_come_back_do_not_start_a_circle(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    add_peer(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    own = [dcmread(clinical_zone.root / item.path) for item in _results(clinical_zone)]
    add_instances(clinical_zone, own)
    _, second_job = assemble(clinical_zone, study_id, ("workstation",))
    assert run_job(clinical_zone, second_job) == ("done", None)
    assert len(_results(clinical_zone)) == 2
    assert not any(item.superseded for item in _results(clinical_zone))
    assert [item.state for item in _deliveries(clinical_zone)] == ["queued", "queued"]


def test_a_new_revision_supersedes_and_withholds_what_was_not_delivered(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    add_peer(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    old = _results(clinical_zone)
    with writing(clinical_zone.engine) as session:
        sent = session.scalars(select(Delivery).join(Result).where(Result.kind == "sr")).one()
        sent.state = "delivered"
    add_instances(clinical_zone, [study_instance()])
    revision_id, second_job = assemble(clinical_zone, study_id, ("workstation",))
    assert run_job(clinical_zone, second_job) == ("done", None)

    found = _results(clinical_zone)
    assert len(found) == 4
    assert {item.id for item in found if item.superseded} == {item.id for item in old}
    states = {
        (item.result_id in {result.id for result in old}, item.state) for item in _deliveries(clinical_zone)
    }
    assert states == {(True, "delivered"), (True, "withheld"), (False, "queued")}
    report = next(item for item in found if item.kind == "sr" and item.study_revision_id == revision_id)
    previous = next(item for item in old if item.kind == "sr")
    ds = dcmread(clinical_zone.root / report.path)
    series = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == previous.sop_instance_uid
    assert series.SeriesInstanceUID == dcmread(clinical_zone.root / previous.path).SeriesInstanceUID
    assert report.finding["pictures"] == 2
    assert _kinds(clinical_zone).count("result.superseded") == 2


def _deliver_all(zone: ClinicalZone) -> None:
    """Run every delivery as its worker does, whether its pause is over or not."""
    with writing(zone.engine) as session:
        session.execute(update(ClinicalJob).where(ClinicalJob.state == "failed").values(next_try_at=now()))
        ids = session.scalars(select(ClinicalJob.id).where(ClinicalJob.kind == "deliver")).all()
    for job_id in ids:
        with claimed(zone.engine, ClinicalJob, job_id, "test", 60) as claim:
            if claim is not None:
                deliver(zone, claim)


@pytest.fixture
def workstation(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[RunningSCP]:
    """Run a workstation that is a peer of the node."""
    running = start_scp(Inbox(tmp_path / "workstation", min_free_bytes=0))
    add_peer(clinical_zone, ae_title="CLOISTER", port=running.port)
    yield running
    running.scp.stop()


def _arrived(workstation: RunningSCP) -> list[str]:
    return sorted(entry.sop_instance_uid for entry in workstation.inbox.entries(100))


def test_a_late_instance_that_concerns_no_model_does_not_stop_the_delivery(
    clinical_zone: ClinicalZone, workstation: RunningSCP
) -> None:
    add_model(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    add_instances(clinical_zone, [study_instance(Modality="SR", SeriesInstanceUID="1.2.3.9")])
    _, second_job = assemble(clinical_zone, study_id, ("workstation",))
    _deliver_all(clinical_zone)
    assert _arrived(workstation) == [], "the models may still supersede it"
    assert run_job(clinical_zone, second_job) == ("done", None)
    _deliver_all(clinical_zone)
    assert _arrived(workstation) == sorted(item.sop_instance_uid for item in _results(clinical_zone))
    assert len(_results(clinical_zone)) == 2


def test_of_two_revisions_the_destination_gets_the_current_result_alone(
    clinical_zone: ClinicalZone, workstation: RunningSCP
) -> None:
    add_model(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    add_instances(clinical_zone, [study_instance()])
    _, second_job = assemble(clinical_zone, study_id, ("workstation",))
    _deliver_all(clinical_zone)
    assert run_job(clinical_zone, second_job) == ("done", None)
    _deliver_all(clinical_zone)
    current = [item for item in _results(clinical_zone) if not item.superseded]
    assert _arrived(workstation) == sorted(item.sop_instance_uid for item in current)
    (report,) = [item for item in current if item.kind == "sr"]
    assert "PredecessorDocumentsSequence" in dcmread(clinical_zone.root / report.path)
    assert sorted(item.state for item in _deliveries(clinical_zone)) == [
        "delivered", "delivered", "withheld", "withheld",
    ]  # fmt: skip


def test_of_several_models_only_those_that_a_late_instance_concerns_answer_anew(
    clinical_zone: ClinicalZone, workstation: RunningSCP
) -> None:
    add_model(clinical_zone, card=make_card(modalities=("CR",)))
    other = make_card(name="other", modalities=("DX",))
    add_model(clinical_zone, name="run-2", onnx=make_onnx(bias=-3.0), card=other)
    pictures: tuple[dict[str, Any], ...] = ({"Modality": "CR"}, {"Modality": "DX"})
    study_id, _, job_id = _one_study(clinical_zone, *pictures, destinations=("workstation",))
    run_job(clinical_zone, job_id)
    assert len(_results(clinical_zone)) == 4
    add_instances(clinical_zone, [study_instance(Modality="DX")])
    _, second_job = assemble(clinical_zone, study_id, ("workstation",))
    _deliver_all(clinical_zone)
    assert run_job(clinical_zone, second_job) == ("done", None)
    _deliver_all(clinical_zone)
    current = [item for item in _results(clinical_zone) if not item.superseded]
    assert sorted(item.kind for item in current) == ["sc", "sc", "sr", "sr"]
    assert len({item.study_revision_id for item in current}) == 2
    assert _arrived(workstation) == sorted(item.sop_instance_uid for item in current)


def test_an_old_revision_is_not_answered_any_more(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    study_id, _, old_job = _one_study(clinical_zone)
    add_instances(clinical_zone, [study_instance()])
    _, new_job = assemble(clinical_zone, study_id)
    assert run_job(clinical_zone, old_job) == ("done", None)
    assert _results(clinical_zone) == []
    assert _kinds(clinical_zone)[-1] == "inference.outdated"
    assert run_job(clinical_zone, new_job) == ("done", None)
    assert len(_results(clinical_zone)) == 2


def test_a_revision_that_arrives_while_a_model_runs_wins(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone)
    build = build_results

    def late(*arguments: Any) -> Any:
        assemble(clinical_zone, study_id)
        return build(*arguments)

    monkeypatch.setattr(serving, "build_results", late)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert _results(clinical_zone) == []


def test_instances_of_two_patients_stop_the_study_for_a_person(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, {}, {"PatientID": "P-9999"})
    state, reason = run_job(clinical_zone, job_id)
    assert state == "dead"
    assert reason is not None
    assert "identity.mismatch" in reason
    assert "9999" not in reason
    assert _results(clinical_zone) == []


def test_a_study_whose_row_names_another_patient_is_stopped(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    study_id, _, job_id = _one_study(clinical_zone)
    with writing(clinical_zone.engine) as session:
        session.get_one(Study, study_id).patient_id = "P-0000"
    assert run_job(clinical_zone, job_id)[0] == "dead"


def test_pictures_that_cannot_be_read_are_left_out_and_counted(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, {}, {"PixelData": b"\0\1"})
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert [(item.finding["pictures"], item.finding["unreadable"]) for item in _results(clinical_zone)] == [
        (1, 1), (1, 1),
    ]  # fmt: skip


def test_a_study_without_one_readable_picture_is_dead_with_the_reason(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone, {"PixelData": b"\0\1"})
    state, reason = run_job(clinical_zone, job_id)
    assert state == "dead"
    assert reason is not None
    assert "pixel.decode" in reason


def test_a_broken_shadow_model_does_not_hold_up_the_active_one(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone, "active")
    shadow = add_model(clinical_zone, "shadow", name="run-2", onnx=make_onnx(bias=1.0))
    with reading(clinical_zone.engine) as session:
        path = session.get_one(ModelVersion, shadow).path
    (clinical_zone.root / path / "model.onnx").write_bytes(b"overwritten")
    _, _, job_id = _one_study(clinical_zone)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert [item.shadow for item in _results(clinical_zone)] == [False, False]


def test_an_active_model_that_was_changed_on_disk_is_not_run(clinical_zone: ClinicalZone) -> None:
    model_id = add_model(clinical_zone, onnx=make_onnx(bias=0.5))
    with reading(clinical_zone.engine) as session:
        path = session.get_one(ModelVersion, model_id).path
    (clinical_zone.root / path / "model.onnx").write_bytes(make_onnx(bias=9.0))
    _, _, job_id = _one_study(clinical_zone)
    state, reason = run_job(clinical_zone, job_id)
    assert state == "failed"
    assert reason is not None
    assert "package.hash" in reason
    assert _results(clinical_zone) == []


def test_a_retired_model_serves_no_more(clinical_zone: ClinicalZone) -> None:
    model_id = add_model(clinical_zone)
    models.retire(clinical_zone, model_id, add_user(clinical_zone, Right.APPROVE_MODEL))
    _, _, job_id = _one_study(clinical_zone)
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert _results(clinical_zone) == []


def test_a_destination_that_is_unknown_or_disabled_gets_nothing_and_stops_nobody(
    clinical_zone: ClinicalZone,
) -> None:
    add_model(clinical_zone)
    add_peer(clinical_zone, "off", enabled=False)
    add_peer(clinical_zone, "sender", is_destination=False)
    _, _, job_id = _one_study(clinical_zone, destinations=("off", "sender", "gone"))
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert len(_results(clinical_zone)) == 2
    assert _deliveries(clinical_zone) == []


def test_a_job_on_a_revision_that_does_not_exist_is_dead(clinical_zone: ClinicalZone) -> None:
    with writing(clinical_zone.engine) as session:
        job = ClinicalJob(kind="infer", subject_id="0" * 32, dedupe_key="infer:none")
        session.add(job)
        session.flush()
        job_id = job.id
    assert run_job(clinical_zone, job_id)[0] == "dead"


def test_the_ledger_holds_nothing_of_the_patient(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone)
    _, _, job_id = _one_study(clinical_zone)
    run_job(clinical_zone, job_id)
    with reading(clinical_zone.engine) as session:
        text = "".join(session.scalars(select(ClinicalLedgerEntry.body)))
        assert (session.scalar(select(func.count()).select_from(ClinicalLedgerEntry)) or 0) > 4
    for secret in ("P-1071", "Meadow", "19610305", "1.2.826", "2.25."):
        assert secret not in text


def test_importing_serving_loads_no_runtime() -> None:
    import subprocess  # noqa: PLC0415  only here

    code = (
        "import sys, appliance.serving, appliance.models, appliance.cli.infer, appliance.cli.model\n"
        "print(sorted({'onnxruntime', 'highdicom', 'onnx', 'torch', 'monai', 'nicegui'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
