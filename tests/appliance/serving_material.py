"""Studies and models put into a clinical zone the way intake and the spool leave them."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydicom.uid import generate_uid
from sqlalchemy import select

from appliance import models
from appliance.auth.rights import Right
from appliance.db.base import WorkState, new_id, now
from appliance.db.clinical import ClinicalJob, Instance, ModelVersion, Series, Study, StudyRevision
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.db.people import User
from appliance.keys import load_research_keys
from appliance.serving import infer_study
from appliance.work import claimed, enqueue
from inference.evaluation import sign_report
from inference.package import pack, package_sha256, write_package
from tests.inference.material import make_card, make_instance, make_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

UID_STUDY = "1.2.826.0.1.3680043.8.498.7"


def add_user(zone: ClinicalZone, *rights: Right) -> str:
    with writing(zone.engine) as session:
        user = User(name=f"u{new_id()[:8]}", password_hash="-", rights=[right.value for right in rights])
        session.add(user)
        session.flush()
        return user.id


def add_peer(zone: ClinicalZone, name: str = "workstation", **changes: Any) -> str:
    with writing(zone.engine) as session:
        values = {"ae_title": "WORK", "host": "127.0.0.1", "port": 11112, "is_destination": True}
        peer = Peer(name=name, **{**values, **changes})
        session.add(peer)
        session.flush()
        return peer.id


def drop_package(
    zone: ClinicalZone,
    name: str = "run-1",
    *,
    report: bool = True,
    card: Any = None,
    onnx: bytes | None = None,
    key: Any = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Leave a package in the crossing as the research zone does; return the zip."""
    signing = key or load_research_keys(zone.settings.zone_root("research")).signing
    spool = zone.settings.crossing_in / "packages"
    folder = spool.parent / f"making-{new_id()}"
    write_package(folder, onnx or make_onnx(), card or make_card(), signing)
    if report:
        content = sign_report(package_sha256(folder), metrics or {"auc": 0.91}, {"rounds": 3}, signing)
        (spool / f"{name}.json").write_bytes(content)
    pack(folder, spool / f"{name}.zip")
    return spool / f"{name}.zip"


def add_model(zone: ClinicalZone, to: str | None = "active", **changes: Any) -> str:
    """Take a model in and approve it; return its row id."""
    zipped = drop_package(zone, **changes)
    digest = package_sha256(zipped)
    models.take_in_candidates(zone)
    with reading(zone.engine) as session:
        version = session.scalars(select(ModelVersion).where(ModelVersion.package_sha256 == digest)).one()
    if to is not None:
        models.approve(zone, version.id, add_user(zone, Right.APPROVE_MODEL), to)
    return version.id


def add_instances(zone: ClinicalZone, instances: Sequence[Dataset]) -> str:
    """File instances of one study; return the study's row id."""
    with writing(zone.engine) as session:
        first = instances[0]
        study = session.scalar(select(Study).where(Study.study_instance_uid == str(first.StudyInstanceUID)))
        if study is None:
            study = Study(
                study_instance_uid=str(first.StudyInstanceUID),
                patient_id=str(first.PatientID),
                patient_name=str(first.PatientName),
            )
            session.add(study)
            session.flush()
        for ds in instances:
            _file(zone, session, study, ds)
        return study.id


def _file(zone: ClinicalZone, session: Session, study: Study, ds: Dataset) -> None:
    uid = str(ds.SeriesInstanceUID)
    series = session.scalar(
        select(Series).where(Series.study_id == study.id, Series.series_instance_uid == uid)
    )
    if series is None:
        series = Series(study_id=study.id, series_instance_uid=uid, modality=str(ds.get("Modality", "")))
        session.add(series)
        session.flush()
    path = f"instances/{new_id()}.dcm"
    (zone.root / path).parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(zone.root / path, enforce_file_format=True)
    content = (zone.root / path).read_bytes()
    session.add(
        Instance(
            series_id=series.id,
            sop_instance_uid=str(ds.SOPInstanceUID),
            sop_class_uid=str(ds.SOPClassUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            path=path,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            received_at=now() - timedelta(seconds=1),
        )
    )


def assemble(zone: ClinicalZone, study_id: str, destinations: Sequence[str] = ()) -> tuple[str, str]:
    """Make the next revision and its inference job; return both row ids."""
    with writing(zone.engine) as session:
        study = session.get_one(Study, study_id)
        study.revision += 1
        outcome = {"rules": ["r"], "inference": True, "destinations": list(destinations), "priority": 3}
        revision = StudyRevision(
            study_id=study_id, number=study.revision, instance_count=1, rule_outcome=outcome
        )
        session.add(revision)
        session.flush()
        job = enqueue(session, ClinicalJob, "infer", revision.id, f"infer:{revision.id}", priority=3)
        assert job is not None
        return revision.id, job


def run_job(zone: ClinicalZone, job_id: str) -> tuple[str, str | None]:
    """Run an inference job as its worker does; return the state and reason that it ends in."""
    with claimed(zone.engine, ClinicalJob, job_id, "test", 60) as claim:
        if claim is not None:
            infer_study(zone, claim)
    with reading(zone.engine) as session:
        job = session.get_one(ClinicalJob, job_id)
        return job.state, job.reason


def requeue(zone: ClinicalZone, job_id: str) -> None:
    """Put a job back as if its worker had died just before its end."""
    with writing(zone.engine) as session:
        job = session.get_one(ClinicalJob, job_id)
        job.state, job.next_try_at, job.lease_owner = WorkState.QUEUED, None, None


def study_instance(**changes: Any) -> Dataset:
    """An instance of the same study and patient each time."""
    values = {
        "StudyInstanceUID": UID_STUDY,
        "SeriesInstanceUID": f"{UID_STUDY}.1",
        "SOPInstanceUID": generate_uid(),
    }
    return make_instance(**{**values, **changes})
