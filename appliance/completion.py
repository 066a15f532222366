"""What modalities and archives say of a study being complete: procedure steps and availability notices."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.base import now
from appliance.db.clinical import Instance, Series, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import PerformedProcedureStep
from dicom_node.ports import COMPLETED, IN_PROGRESS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from dicom_node.ports import Caller, Step

STUDY_COMPLETE: Final = "study.complete"

_STEPS: Final = 200  # that are looked at in one round, from the latest
_CHUNK: Final = 500
_FORGET_AFTER: Final = timedelta(days=1)  # what was announced and never came
_STALE_AFTER: Final = timedelta(days=1)  # a step that its modality never ended


class DatabaseSteps:
    """Keeps procedure steps; implements :class:`dicom_node.ports.StepKeeper`."""

    def __init__(self, zone: ClinicalZone) -> None:
        self._zone = zone

    def create(self, caller: Caller, sop_instance_uid: str, step: Step) -> bool:
        """Store a new step; return False where there is one of this UID."""
        with writing(self._zone.engine) as session:
            if _find(session, sop_instance_uid) is not None:
                return False
            session.add(
                PerformedProcedureStep(
                    sop_instance_uid=sop_instance_uid,
                    study_instance_uids=list(step.study_instance_uids),
                    status=step.status,
                    calling_ae_title=caller.calling_ae_title,
                    instances=list(step.instances),
                )
            )
        return True

    def update(self, sop_instance_uid: str, step: Step) -> str | None:
        """Change a step while it is in progress; return the status it had, None for an unknown one."""
        with writing(self._zone.engine) as session:
            row = _find(session, sop_instance_uid)
            if row is None:
                return None
            before = row.status
            if before == IN_PROGRESS:
                row.status = step.status or before
                row.instances = list(step.instances) or row.instances
                row.study_instance_uids = list(step.study_instance_uids) or row.study_instance_uids
        return before


def mark_complete(zone: ClinicalZone) -> int:
    """Mark studies complete whose steps are completed and whose instances are all filed; return how many.

    A study stays as it is while another of its steps is in progress. What does not come within a day is
    awaited no longer: the quiet period decides then, as it does for senders that say nothing.
    """
    ended = (PerformedProcedureStep.status == COMPLETED, PerformedProcedureStep.settled.is_(False))
    latest = select(PerformedProcedureStep).where(*ended).order_by(PerformedProcedureStep.updated_at.desc())
    with reading(zone.engine) as session:
        due = [step.id for step in session.scalars(latest.limit(_STEPS)) if _is_due(session, step)]
    marked = 0
    for row_id in due:
        with writing(zone.engine) as session:
            marked += _settle(zone, session, session.get_one(PerformedProcedureStep, row_id))
    return marked


def _is_due(session: Session, step: PerformedProcedureStep) -> bool:
    if now() - step.updated_at > _FORGET_AFTER or not step.instances:
        return True
    return len(_studies(session, step)) == len(step.instances) and not _others_go_on(session, step)


def _settle(zone: ClinicalZone, session: Session, step: PerformedProcedureStep) -> int:
    found = _studies(session, step)
    step.settled = True
    if len(found) < len(step.instances):
        return 0
    marked = 0
    for study_id in sorted(set(found)):
        study = session.get_one(Study, study_id)
        if not study.complete:
            study.complete = True
            marked += 1
            body = {"by": "procedure_step", "step": step.id}
            zone.ledger.append(session, kind=STUDY_COMPLETE, subject_id=study_id, body=body)
    return marked


def _studies(session: Session, step: PerformedProcedureStep) -> list[str]:
    """Return the study of each instance of a step that is filed."""
    found: list[str] = []
    for start in range(0, len(step.instances), _CHUNK):
        chunk = step.instances[start : start + _CHUNK]
        statement = (
            select(Series.study_id)
            .join(Instance, Instance.series_id == Series.id)
            .where(Instance.sop_instance_uid.in_(chunk))
        )
        found.extend(session.scalars(statement))
    return found


def _others_go_on(session: Session, step: PerformedProcedureStep) -> bool:
    fresh = (
        PerformedProcedureStep.status == IN_PROGRESS,
        PerformedProcedureStep.created_at > now() - _STALE_AFTER,
    )
    others = session.scalars(select(PerformedProcedureStep.study_instance_uids).where(*fresh)).all()
    return any(set(other) & set(step.study_instance_uids) for other in others)


def _find(session: Session, sop_instance_uid: str) -> PerformedProcedureStep | None:
    return session.scalar(
        select(PerformedProcedureStep).where(PerformedProcedureStep.sop_instance_uid == sop_instance_uid)
    )
