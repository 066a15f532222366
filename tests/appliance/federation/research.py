"""A research zone with labelled subjects, for tests that train nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.db.base import WorkState, new_id
from appliance.db.engine import reading, writing
from appliance.db.research import DatasetVersion, Label, ResearchInstance, Round, Subject
from trainer.weights_io import load, save

if TYPE_CHECKING:
    from appliance.node import ResearchZone


def add_subjects(zone: ResearchZone, count: int, *, modality: str = "CR", label: str = "blob") -> list[str]:
    """Insert labelled subjects with one instance each, without files; return the pseudonyms."""
    names = [hashlib.sha256(f"{modality}{label}{i}".encode()).hexdigest()[:16] for i in range(count)]
    with writing(zone.engine) as session:
        for number, name in enumerate(names):
            subject = Subject(pseudonym=name)
            session.add(subject)
            session.flush()
            session.add(
                ResearchInstance(
                    subject_id=subject.id,
                    study_instance_uid=f"2.25.{number}",
                    series_instance_uid="2.25.1",
                    sop_instance_uid=f"2.25.{new_id()[:8]}{number}",
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
                    modality=modality,
                    path=f"instances/{name}",
                    size_bytes=1,
                    sha256="0" * 64,
                    crossing_id=new_id(),
                )
            )
            session.add(Label(pseudonym=name, name=label, value=number % 2, source="csv"))
    return names


def finish_round(zone: ResearchZone, round_id: str, *, samples: int = 12) -> str:
    """Do what a worker's transaction does at the end of a round, with the model's own values as update."""
    with reading(zone.engine) as session:
        row = session.scalars(select(Round).where(Round.id == round_id)).one()
    relative = f"federation/updates/{round_id}.safetensors"
    digest = save(zone.root / relative, load(zone.root / row.input_path))
    with writing(zone.engine) as session:
        stored = session.get(Round, round_id)
        assert stored is not None
        version = DatasetVersion(content_sha256=new_id() * 2, label_name="blob", path="datasets/x")
        session.add(version)
        session.flush()
        stored.output_path, stored.output_sha256 = relative, digest
        stored.dataset_version_id = version.id
        stored.samples, stored.metrics, stored.train_seconds = samples, {"auc": 0.75}, 1.5
        stored.state = WorkState.DONE
    return digest
