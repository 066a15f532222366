"""A segmenting model in the clinical zone: from a stored study to a DICOM SEG at the workstation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage
from sqlalchemy import select

from appliance import models
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, ModelVersion, Result
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery
from appliance.delivery import deliver
from appliance.models import Counts
from appliance.web.panel import segment_parts
from appliance.work import claimed, retry
from dicom_node.inbox import Inbox
from inference.results.uids import result_uid
from inference.volumes import read_volume
from tests.appliance.serving_material import (
    add_instances,
    add_model,
    add_peer,
    assemble,
    drop_package,
    requeue,
    run_job,
)
from tests.dicom_node.support import start_scp
from tests.inference.segment_material import make_segment_card, make_segment_onnx
from tests.trainer import masked
from trainer.segmentation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom import Dataset

    from appliance.node import ClinicalZone
    from tests.dicom_node.support import RunningSCP

DRAWN = masked.draw(3)
CARD = make_segment_card()
ONNX = make_segment_onnx()
DICE = {
    "dice": {"estimate": 0.81, "low": 0.7, "high": 0.9},
    "segments": {"HIP-ANT": {"estimate": 0.81, "low": 0.7, "high": 0.9}, "HIP-POST": None},
}


def series(seed: int = 3, like: Dataset | None = None, **options: Any) -> list[Dataset]:
    """A volume, in the study of another where one is given."""
    made = masked.series(masked.draw(seed).image, "P-7", **options)
    if like is not None:
        for ds in made:
            ds.StudyInstanceUID = like.StudyInstanceUID
    return made


def results(zone: ClinicalZone) -> list[Result]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(Result).order_by(Result.kind, Result.path)))


def serve(zone: ClinicalZone, instances: list[Dataset], to: str = "active") -> tuple[str, str, str]:
    """Take a model in and run it on a study; return row ids of study, revision and job."""
    add_model(zone, to, card=CARD, onnx=ONNX)
    study_id = add_instances(zone, instances)
    return (study_id, *assemble(zone, study_id, ("workstation",)))


def test_a_study_gets_a_segmentation_and_a_report_and_a_delivery_of_each(clinical_zone: ClinicalZone) -> None:
    add_peer(clinical_zone)
    sources = series()
    _, revision_id, job_id = serve(clinical_zone, sources)
    assert run_job(clinical_zone, job_id) == ("done", None)
    capture, segmentation, report = results(clinical_zone)
    assert (capture.kind, capture.sop_class_uid) == ("sc", SecondaryCaptureImageStorage)
    assert (segmentation.kind, segmentation.sop_class_uid) == ("seg", SegmentationStorage)
    assert (report.kind, report.sop_class_uid) == ("sr", ComprehensiveSRStorage)
    with reading(clinical_zone.engine) as session:
        version = session.scalars(select(ModelVersion)).one()
        assert len(session.scalars(select(Delivery)).all()) == 3
    assert report.sop_instance_uid == result_uid(revision_id, version.package_sha256, "sr")
    ds = dcmread(clinical_zone.root / segmentation.path)
    read = read_mask(ds, read_volume(sources).planes, masked.SEGMENTS)
    assert segmentation.probability is None
    rows = segmentation.finding["segments"]
    assert [(row["code"], row["voxels"]) for row in rows] == [
        ("HIP-ANT", int((read == 1).sum())), ("HIP-POST", int((read == 2).sum())),
    ]  # fmt: skip
    assert [row["volume_ml"] for row in rows] == [round(row["voxels"] / 1000, 3) for row in rows]
    assert (segmentation.finding["series"], segmentation.finding["unreadable"]) == (1, 0)


def test_a_retry_makes_the_same_instances_and_a_second_look_none(clinical_zone: ClinicalZone) -> None:
    _, _, job_id = serve(clinical_zone, series())
    run_job(clinical_zone, job_id)
    before = {
        item.sop_instance_uid: (clinical_zone.root / item.path).read_bytes()
        for item in results(clinical_zone)
    }
    requeue(clinical_zone, job_id)
    assert run_job(clinical_zone, job_id) == ("done", None)
    after = {
        item.sop_instance_uid: (clinical_zone.root / item.path).read_bytes()
        for item in results(clinical_zone)
    }
    assert before == after


def test_each_series_has_its_segmentation_and_a_spoilt_one_is_counted(clinical_zone: ClinicalZone) -> None:
    first = series()
    gap = series(5, first[0])
    del gap[4]
    _, _, job_id = serve(clinical_zone, [*first, *series(4, first[0]), *gap])
    assert run_job(clinical_zone, job_id) == ("done", None)
    found = results(clinical_zone)
    assert [item.kind for item in found] == ["sc", "seg", "seg", "sr"]
    assert len({item.path for item in found}) == 4
    assert {(item.finding["series"], item.finding["unreadable"]) for item in found} == {(2, 1)}
    assert [row["series"] for row in found[1].finding["segments"]] == [1, 1, 2, 2]


def test_a_new_revision_supersedes_and_its_report_names_the_one_before(clinical_zone: ClinicalZone) -> None:
    add_peer(clinical_zone)
    first = series()
    study_id, _, job_id = serve(clinical_zone, first)
    run_job(clinical_zone, job_id)
    old = {item.id: item for item in results(clinical_zone)}
    add_instances(clinical_zone, series(4, first[0]))
    _, second = assemble(clinical_zone, study_id, ("workstation",))
    assert run_job(clinical_zone, second) == ("done", None)
    found = results(clinical_zone)
    assert {item.id for item in found if item.superseded} == set(old)
    report = next(item for item in found if item.kind == "sr" and not item.superseded)
    named = (
        dcmread(clinical_zone.root / report.path).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    )
    before = next(item for item in old.values() if item.kind == "sr")
    assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.sop_instance_uid
    assert named.SeriesInstanceUID == dcmread(clinical_zone.root / before.path).SeriesInstanceUID


def test_to_a_study_without_a_volume_the_model_is_not_applicable_and_the_reason_is_told(
    clinical_zone: ClinicalZone,
) -> None:
    gap, single = series(), series()[:1]
    del gap[4]
    for ds in single:
        ds.StudyInstanceUID = gap[0].StudyInstanceUID
    _, revision_id, job_id = serve(clinical_zone, [*gap, *single])
    state, reason = run_job(clinical_zone, job_id)
    assert state == "done"
    assert reason is not None
    assert reason.startswith("not applicable: model hippocampus 1.0: ")
    assert "1 volume.slices, 1 volume.spacing" in reason
    assert results(clinical_zone) == []
    with reading(clinical_zone.engine) as session:
        entry = session.scalars(
            select(ClinicalLedgerEntry).where(
                ClinicalLedgerEntry.kind == "inference.done", ClinicalLedgerEntry.subject_id == revision_id
            )
        ).one()
        assert json.loads(entry.body) == {"models": 0, "not_applicable": 1, "results": 0}
    with writing(clinical_zone.engine) as session:
        assert not retry(session, ClinicalJob, job_id)


def test_a_study_whose_only_series_is_damaged_is_dead_with_the_reason(clinical_zone: ClinicalZone) -> None:
    damaged = series()
    damaged[2].PixelData = b"\0\0"
    _, _, job_id = serve(clinical_zone, damaged)
    state, reason = run_job(clinical_zone, job_id)
    assert state == "dead"
    assert reason is not None
    assert "1 pixel.decode" in reason


def test_a_model_that_does_not_apply_keeps_no_other_from_its_results(clinical_zone: ClinicalZone) -> None:
    add_model(clinical_zone, card=CARD, onnx=ONNX)
    pictures = make_segment_card(volume=None, name="slices")
    add_model(clinical_zone, card=pictures, onnx=make_segment_onnx(size=pictures.input.size), name="run-2")
    _, job_id = assemble(clinical_zone, add_instances(clinical_zone, series()[:1]))
    state, reason = run_job(clinical_zone, job_id)
    assert state == "done"
    assert reason is not None
    assert "hippocampus 1.0: volume.slices" in reason
    assert "slices 1.0" not in reason
    assert [item.kind for item in results(clinical_zone)] == ["sc", "seg"]


def test_a_study_of_another_modality_and_a_shadow_model_send_nothing(clinical_zone: ClinicalZone) -> None:
    add_peer(clinical_zone)
    other = series()
    for ds in other:
        ds.Modality = "CT"
    _, _, job_id = serve(clinical_zone, other, "shadow")
    assert run_job(clinical_zone, job_id) == ("done", None)
    assert results(clinical_zone) == []
    study_id = add_instances(clinical_zone, series())
    _, shadowed = assemble(clinical_zone, study_id, ("workstation",))
    assert run_job(clinical_zone, shadowed) == ("done", None)
    assert [item.shadow for item in results(clinical_zone)] == [True, True, True]
    with reading(clinical_zone.engine) as session:
        assert session.scalars(select(Delivery)).all() == []


def test_a_model_of_single_pictures_marks_slices_and_measures_no_volume(clinical_zone: ClinicalZone) -> None:
    card = make_segment_card(volume=None)
    add_model(clinical_zone, card=card, onnx=make_segment_onnx(size=card.input.size))
    study_id = add_instances(clinical_zone, series())
    _, job_id = assemble(clinical_zone, study_id)
    assert run_job(clinical_zone, job_id) == ("done", None)
    found = results(clinical_zone)
    assert [item.kind for item in found] == ["sc", "seg"]
    assert {row["volume_ml"] for row in found[0].finding["segments"]} == {None}
    assert all(row["voxels"] for row in found[0].finding["segments"])
    row, *_ = segment_parts.read(found[0].finding)
    assert row.size == f"{row.voxels} pixels"


@pytest.fixture
def workstation(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[RunningSCP]:
    running = start_scp(Inbox(tmp_path / "workstation", min_free_bytes=0))
    add_peer(clinical_zone, ae_title="CLOISTER", port=running.port)
    yield running
    running.scp.stop()


def test_the_segmentation_arrives_at_the_workstation_and_coming_back_starts_nothing(
    clinical_zone: ClinicalZone, workstation: RunningSCP
) -> None:
    study_id, _, job_id = serve(clinical_zone, series())
    run_job(clinical_zone, job_id)
    with reading(clinical_zone.engine) as session:
        jobs = session.scalars(select(ClinicalJob.id).where(ClinicalJob.kind == "deliver")).all()
    for one in jobs:
        with claimed(clinical_zone.engine, ClinicalJob, one, "test", 60) as claim:
            assert claim is not None
            deliver(clinical_zone, claim)
    arrived = {entry.sop_instance_uid: entry for entry in workstation.inbox.entries(100)}
    made = {item.sop_instance_uid: clinical_zone.root / item.path for item in results(clinical_zone)}
    assert set(arrived) == set(made)
    add_instances(clinical_zone, [dcmread(path) for path in made.values()])
    _, again = assemble(clinical_zone, study_id, ("workstation",))
    assert run_job(clinical_zone, again) == ("done", None)
    assert len(results(clinical_zone)) == 3


def test_a_package_of_segments_is_evaluated_by_its_dice(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone, card=CARD, onnx=ONNX, metrics=DICE)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1, evaluated=1)
    (version,) = models.list_versions(clinical_zone)
    assert (version.state, version.name, version.modalities) == ("evaluated", "hippocampus", "MR")
    assert version.metrics["dice"] == DICE["dice"]
    assert version.metrics["segments"]["HIP-POST"] is None
