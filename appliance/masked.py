"""Pictures and DICOM SEG masks of the research zone, for segmentation and anomaly tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import distinct, func, select

from appliance.db.engine import reading
from appliance.db.research import ResearchInstance, Subject

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone
    from trainer.segmentation.cases import Stored
    from trainer.task import TaskSpec

SEG: Final = "SEG"


def select_masked(zone: ResearchZone, task: TaskSpec) -> tuple[tuple[Stored, ...], dict[str, int]]:
    """Return a task's pictures and masks without those of people who opted out, who are counted.

    ``opted_out`` counts what would have been cases: series of a task of volumes, else instances.
    """
    from trainer.segmentation.cases import Stored, weight  # noqa: PLC0415 - loads pydicom

    statement = (
        select(ResearchInstance, Subject.pseudonym, Subject.opted_out)
        .join(Subject, Subject.id == ResearchInstance.subject_id)
        .where(ResearchInstance.modality.in_({*task.modalities, SEG}))
        .order_by(ResearchInstance.sha256)
    )
    stored: list[Stored] = []
    out: dict[tuple[str, str], int] = {}
    with reading(zone.engine) as session:
        for row, pseudonym, opted_out in session.execute(statement):
            if not opted_out:
                path = zone.root / row.path
                uids = (row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid)
                stored.append(Stored(pseudonym, *uids, row.modality, path, row.sha256))
            elif row.modality != SEG:
                key = (pseudonym, row.series_instance_uid)
                out[key] = out.get(key, 0) + 1
    count = sum(weight(task, images) for images in out.values())
    return tuple(stored), {"opted_out": count} if count else {}


def cohort(session: Session, task: TaskSpec) -> int:
    """Count the subjects that have pictures of the task's modalities, and did not opt out.

    Of a segmentation they must have masks, too.
    """
    pictures = _having(task.modalities)
    useful = pictures if task.segmentation is None else pictures.intersect(_having({SEG}))
    kept = select(func.count(distinct(Subject.id))).where(
        Subject.opted_out.is_(False), Subject.id.in_(select(useful.subquery().c.subject_id))
    )
    return int(session.scalar(kept) or 0)


def missing(session: Session, task: TaskSpec) -> dict[str, int]:
    """Count subjects with pictures and no mask, and with masks and no picture of the modalities.

    Where masks are for measuring alone, count the subjects who have both.
    """
    pictures, masks = (set(session.scalars(_having(modalities))) for modalities in (task.modalities, {SEG}))
    if task.segmentation is None:
        return {"subjects_with_masks": len(pictures & masks)}
    return {
        "pictures_without_masks": len(pictures - masks),
        "masks_without_pictures": len(masks - pictures),
    }


def _having(modalities: Collection[str]) -> Select[str]:
    return select(ResearchInstance.subject_id).where(ResearchInstance.modality.in_(modalities)).distinct()
