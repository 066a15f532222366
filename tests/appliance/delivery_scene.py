"""A node with a result, and a workstation that takes it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sqlalchemy import select, update

from appliance import delivery, intake
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, ModelVersion, Result, Study, StudyRevision
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery
from appliance.peers import NewPeer, add_peer
from appliance.work import claimed, enqueue
from dicom_node.inbox import Announcement, Inbox
from tests.dicom_node.support import CALLER, RunningSCP, ct, encoded, save, start_scp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

    from appliance.node import ClinicalZone


@dataclass
class Scene:
    """A node with one assembled study, one result of it, and a workstation to send it to."""

    zone: ClinicalZone
    workstation: RunningSCP
    instances: list[Dataset]
    result: Dataset
    result_id: str
    delivery_id: str
    job_id: str

    def deliver(self) -> Delivery:
        """Run the job as a worker would; return the delivery afterwards."""
        with claimed(self.zone.engine, ClinicalJob, self.job_id, "test", 60) as claim:
            if claim is not None:
                delivery.deliver(self.zone, claim)
        row: Delivery = self.row(Delivery, self.delivery_id)
        return row

    def row(self, model: type[Any], row_id: str) -> Any:
        """Read one row."""
        with reading(self.zone.engine) as session:
            return session.get_one(model, row_id)

    @property
    def job(self) -> ClinicalJob:
        """The job's row."""
        row: ClinicalJob = self.row(ClinicalJob, self.job_id)
        return row

    def change(self, model: type[Any], **values: Any) -> None:
        """Change all rows of a table."""
        with writing(self.zone.engine) as session:
            session.execute(update(model).values(**values))

    def make_due(self) -> None:
        """Let the pause before the next try pass."""
        self.change(ClinicalJob, next_try_at=now() - timedelta(seconds=1))

    @property
    def received(self) -> list[str]:
        """SOP Instance UIDs that the workstation holds."""
        return [entry.sop_instance_uid for entry in self.workstation.inbox.entries(100)]


def report(of: Dataset, **changes: Any) -> Dataset:
    """Return a result with the patient's true identity."""
    ds = ct(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        SOPInstanceUID=generate_uid(),
        StudyInstanceUID=of.StudyInstanceUID,
        Modality="OT",
    )
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


@contextmanager
def running_scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    """Set the scene."""
    study, series = generate_uid(), generate_uid()
    instances = [ct(StudyInstanceUID=study, SeriesInstanceUID=series) for _ in range(3)]
    inbox = intake.open_inbox(clinical_zone)
    inbox.min_free_bytes = 0
    for ds in instances:
        announced = Announcement(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian)
        inbox.commit([encoded(ds)], CALLER, announced)
    intake.index_batch(clinical_zone, inbox)
    with reading(clinical_zone.engine) as session:
        study_id = session.scalars(select(Study.id)).one()
    intake.assemble(clinical_zone, study_id)
    workstation = start_scp(Inbox(tmp_path / "workstation", min_free_bytes=0))
    yield _with_result(clinical_zone, study_id, instances, workstation)
    workstation.scp.stop()


def _with_result(
    zone: ClinicalZone, study_id: str, instances: list[Dataset], workstation: RunningSCP
) -> Scene:
    ds = report(instances[0])
    (zone.root / "results").mkdir(exist_ok=True)
    save(ds, zone.root / "results" / "r.dcm")
    with writing(zone.engine) as session:
        revision_id = session.scalars(select(StudyRevision.id)).one()
        model = ModelVersion(name="m", version="1", package_sha256="0" * 64, path="models/m")
        new = NewPeer("ws", "CLOISTER", "127.0.0.1", workstation.port, is_destination=True)
        peer = add_peer(session, zone.ledger, new)
        session.add(model)
        session.flush()
        result = Result(
            study_id=study_id,
            study_revision_id=revision_id,
            model_version_id=model.id,
            kind="sc",
            sop_class_uid=ds.SOPClassUID,
            sop_instance_uid=ds.SOPInstanceUID,
            path="results/r.dcm",
        )
        session.add(result)
        session.flush()
        row = Delivery(result_id=result.id, peer_id=peer.id)
        session.add(row)
        session.flush()
        job_id = enqueue(session, ClinicalJob, "deliver", row.id, f"deliver:{row.id}", max_attempts=3)
        assert job_id is not None
        return Scene(zone, workstation, instances, ds, result.id, row.id, job_id)
