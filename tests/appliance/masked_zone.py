"""Pictures and masks in a research zone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.db.base import new_id
from appliance.db.engine import writing
from appliance.db.research import ResearchInstance, Subject
from tests.trainer import masked
from trainer.segmentation.folders import read_mask_folder
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ResearchZone

MASKED_TASK: Final = masked.small_masks_task(
    local=LocalSpec(batch_size=4, local_steps=4, learning_rate=1e-2), validation_fraction=0.4
)


def file_masked(zone: ResearchZone, folder: Path) -> None:
    """File what lies in a folder as the crossing does."""
    subjects: dict[str, str] = {}
    with writing(zone.engine) as session:
        for one in read_mask_folder(folder, MASKED_TASK).stored:
            pseudonym = one.pseudonym.strip()
            if pseudonym not in subjects:
                subject = Subject(id=new_id(), pseudonym=pseudonym)
                session.add(subject)
                session.flush()
                subjects[pseudonym] = subject.id
            session.add(
                ResearchInstance(
                    subject_id=subjects[pseudonym],
                    study_instance_uid=one.study_instance_uid,
                    series_instance_uid=one.series_instance_uid,
                    sop_instance_uid=one.sop_instance_uid,
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
                    modality=one.modality,
                    path=str(one.path.relative_to(zone.root)),
                    size_bytes=one.path.stat().st_size,
                    sha256=one.sha256,
                    crossing_id=new_id(),
                )
            )
