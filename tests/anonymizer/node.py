"""A node whose clinical zone holds studies that are ready to be released."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from appliance.db.base import new_id, now
from appliance.db.clinical import ClinicalJob, Instance, Series, Study, StudyRevision, StudyState
from appliance.db.engine import reading, writing
from appliance.node import ClinicalZone, ResearchZone, open_clinical, open_research
from appliance.release import release_study
from appliance.review.trials import try_out
from appliance.settings import load_settings
from appliance.work import claimed, enqueue, reconcile
from tests.anonymizer.material import ct, encode
from tests.blank_node import template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from pydicom import Dataset

    from appliance.settings import Settings

CONFIG = 'name = "test-node"\ndata_root = "data"\n[deidentification]\nproject = "trial"\n'

_WORK = {"deidentify": release_study, "review": try_out}


@dataclass(frozen=True)
class Node:
    """Both zones of a node, for tests."""

    settings: Settings
    config: Path
    clinical: ClinicalZone
    research: ResearchZone

    def add_study(self, instances: Sequence[Dataset], *, study_instance_uid: str = "") -> str:
        """File instances as one assembled study; return the row id of its revision."""
        first = instances[0]
        with writing(self.clinical.engine) as session:
            study = Study(
                study_instance_uid=study_instance_uid or first.StudyInstanceUID,
                patient_id=str(first.get("PatientID", "")),
                patient_name=str(first.get("PatientName", "")),
                accession_number=str(first.get("AccessionNumber", "")),
                issuer_of_patient_id=str(first.get("IssuerOfPatientID", "")),
                state=StudyState.ASSEMBLED,
                instance_count=len(instances),
                revision=1,
            )
            series = Series(
                study=study,
                series_instance_uid=first.SeriesInstanceUID,
                modality=str(first.Modality),
                manufacturer=str(first.get("Manufacturer", "")),
                manufacturer_model_name=str(first.get("ManufacturerModelName", "")),
            )
            session.add_all([study, series])
            session.flush()
            for ds in instances:
                session.add(self._instance(series.id, ds))
            revision = StudyRevision(study_id=study.id, number=1, instance_count=len(instances))
            session.add(revision)
            session.flush()
            return revision.id

    def add_late(self, revision_id: str, ds: Dataset) -> None:
        """File one more instance of a study after its revision was assembled."""
        with writing(self.clinical.engine) as session:
            study_id = session.get_one(StudyRevision, revision_id).study_id
            series_id = session.scalars(select(Series.id).where(Series.study_id == study_id)).one()
            session.add(self._instance(series_id, ds))

    def _instance(self, series_id: str, ds: Dataset) -> Instance:
        content = encode(ds)
        row_id = new_id()
        path = self.clinical.root / "instances" / f"{row_id}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return Instance(
            id=row_id,
            series_id=series_id,
            sop_instance_uid=ds.SOPInstanceUID,
            sop_class_uid=ds.SOPClassUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            path=str(path.relative_to(self.clinical.root)),
            size_bytes=len(content),
            sha256=sha256(content).hexdigest(),
            rows=ds.get("Rows"),
            columns=ds.get("Columns"),
            calling_ae_title="MODALITY",
            received_at=now(),
        )

    def enqueue(self, revision_id: str) -> str:
        """Queue the release of a revision; return the job's row id."""
        with writing(self.clinical.engine) as session:
            job_id = enqueue(session, ClinicalJob, "deidentify", revision_id, f"deidentify:{revision_id}")
        assert job_id is not None
        return job_id

    def run(self, job_id: str) -> ClinicalJob:
        """Do a job as a worker would; return its row afterwards."""
        with claimed(self.clinical.engine, ClinicalJob, job_id, "test", 60) as claim:
            if claim is not None:
                _WORK[claim.row.kind](self.clinical, claim)
        with reading(self.clinical.engine) as session:
            return session.get_one(ClinicalJob, job_id)

    def release(self, revision_id: str) -> ClinicalJob:
        """Queue and do the release of a revision."""
        return self.run(self.enqueue(revision_id))

    def reconcile(self, at: datetime) -> None:
        """Take jobs back from dead workers."""
        reconcile(self.clinical.engine, ClinicalJob, lambda *_: True, at)

    def bundles(self) -> list[str]:
        """Return the names in the spool, hidden ones included."""
        return sorted(path.name for path in self.settings.crossing_out.iterdir())


def make_node(folder: Path) -> Node:
    """Create a node in a folder."""
    ignored = shutil.ignore_patterns("run", "*-wal", "*-shm")
    shutil.copytree(template(CONFIG).name, folder, dirs_exist_ok=True, ignore=ignored)
    config = folder / "cloister.toml"
    settings = load_settings(config)
    return Node(settings, config, open_clinical(settings), open_research(settings))


def study_of(count: int, patient_id: str = "MRN-4711-X", study: int = 1) -> list[Dataset]:
    """Return the instances of a study."""
    found = []
    for number in range(count):
        ds = ct(patient_id=patient_id)
        ds.StudyInstanceUID = f"1.3.6.1.4.1.99999.8.{study}"
        ds.SeriesInstanceUID = f"1.3.6.1.4.1.99999.8.{study}.1"
        ds.SOPInstanceUID = f"1.3.6.1.4.1.99999.8.{study}.1.{number + 1}"
        ds.InstanceNumber = str(number + 1)
        found.append(ds)
    return found
