"""Intake: from received instances to assembled studies, and the clean-up of the crossing behind them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs, routing
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob, Instance, Series, Study, StudyRevision, StudyState
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError
from appliance.filing import IndexCounts, index_batch, open_inbox
from appliance.reconciling import not_announced
from dicom_node.assembly import is_complete

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

__all__ = [
    "AssembleCounts",
    "IndexCounts",
    "IntakeError",
    "assemble",
    "assemble_due",
    "index_batch",
    "open_inbox",
    "remove_acknowledged_bundles",
    "retry_stopped",
]

STUDY_ASSEMBLED: Final = "study.assembled"
STUDY_QUARANTINED: Final = "study.quarantined"
RULE_FAILED: Final = "rule_failed"
ASSEMBLED: Final = "intake.assembled"
ASSEMBLY_FAILED: Final = "intake.assembly_failed"
STOPPED: Final = "intake.study_stopped"
BUNDLE_REMOVED: Final = "intake.bundle_removed"

_BUNDLE_ID: Final = re.compile(r"[0-9a-f]{32}")
_logger = logs.logger(__name__)


class IntakeError(ApplianceError):
    """A study that cannot be assembled as asked."""


@dataclass(frozen=True)
class AssembleCounts:
    """What one look at the studies did."""

    assembled: int = 0
    waiting: int = 0
    stopped: int = 0


def assemble_due(zone: ClinicalZone, at: datetime) -> AssembleCounts:
    """Assemble every study whose quiet period is over, and let the rules decide what becomes of it.

    A study whose rules cannot be evaluated is stopped, see :func:`retry_stopped`; one that fails otherwise
    stays as it is. Neither holds up another.

    Parameters
    ----------
    at : datetime
        The moment up to which everything received is filed: the reception time of the oldest entry that waits
        in the inbox, or the present.

    Raises
    ------
    Exception
        What the first study that failed raised, after all others.
    """
    settings = zone.settings.assembly
    with reading(zone.engine) as session:
        waiting = session.scalars(select(Study).where(Study.state == StudyState.RECEIVING)).all()
        due = [
            study.id
            for study in waiting
            if is_complete(
                _first_pending(session, study),
                study.last_received_at,
                at,
                settings.quiet_period_s,
                settings.max_wait_s,
            )
        ]
    counts = _assemble_all(zone, due)
    return replace(counts, waiting=len(waiting) - len(due))


def retry_stopped(zone: ClinicalZone) -> AssembleCounts:
    """Assemble the studies that the rules stopped, where staff have mended them; raises as for those due."""
    with reading(zone.engine) as session:
        stopped = session.scalars(select(Study.id).where(Study.state == StudyState.QUARANTINED)).all()
    return _assemble_all(zone, stopped)


def _assemble_all(zone: ClinicalZone, study_ids: Sequence[str]) -> AssembleCounts:
    assembled = stopped = 0
    failed: Exception | None = None
    for study_id in study_ids:
        try:
            assemble(zone, study_id)
            assembled += 1
        except routing.RuleError as error:
            _stop(zone, study_id, str(error))
            stopped += 1
        except Exception as error:
            _logger.exception(ASSEMBLY_FAILED, study_id=study_id)
            failed = failed or error
    if failed is not None:
        raise failed
    return AssembleCounts(assembled=assembled, stopped=stopped)


def _stop(zone: ClinicalZone, study_id: str, reason: str) -> None:
    """Let staff see why a study was not assembled; nothing of it goes anywhere meanwhile."""
    with writing(zone.engine) as session:
        study = session.get(Study, study_id)
        if study is None or study.state == StudyState.ASSEMBLED:
            return
        if study.state == StudyState.RECEIVING:
            body = {"code": RULE_FAILED}
            zone.ledger.append(session, kind=STUDY_QUARANTINED, subject_id=study_id, body=body)
        study.state, study.reason = StudyState.QUARANTINED, reason
    _logger.warning(STOPPED, study_id=study_id)


def assemble(zone: ClinicalZone, study_id: str, actor: str = "node") -> str | None:
    """Make the next revision of a study at once; return its id, or None when nothing is new.

    Raises
    ------
    IntakeError
        If there is no such study.
    RuleError
        If a rule cannot be evaluated; the study stays as it is.
    """
    with writing(zone.engine) as session:
        study = session.get(Study, study_id)
        if study is None:
            raise IntakeError(f"study {study_id}: does not exist")
        if study.state == StudyState.ASSEMBLED:
            return None
        revision = StudyRevision(
            study_id=study.id, number=study.revision + 1, instance_count=study.instance_count
        )
        session.add(revision)
        study.revision = revision.number
        study.state = StudyState.ASSEMBLED
        study.reason = None
        session.flush()
        body = {"study_id": study.id, "number": revision.number, "instances": revision.instance_count}
        zone.ledger.append(session, kind=STUDY_ASSEMBLED, subject_id=revision.id, body=body, actor=actor)
        routing.apply(zone, session, revision.id)
        session.flush()
        jobs = session.scalars(
            select(ClinicalJob).where(
                ClinicalJob.subject_id == revision.id, ClinicalJob.state == WorkState.QUEUED
            )
        ).all()
        for job in jobs:
            job.woken_at = revision.assembled_at
        wake = [(job.kind, job.id) for job in jobs]
        revision_id, number = revision.id, revision.number
    unsent = [job_id for kind, job_id in wake if not zone.wake(kind, job_id)]
    if unsent:
        not_announced(zone.engine, ClinicalJob, unsent)
    _logger.info(ASSEMBLED, study_id=study_id, revision_id=revision_id, number=number)
    return revision_id


def _first_pending(session: Session, study: Study) -> datetime:
    """Return when the first instance came that no revision counts yet."""
    if study.revision == 0:
        return study.first_received_at
    counted = session.scalar(
        select(StudyRevision.instance_count).where(
            StudyRevision.study_id == study.id, StudyRevision.number == study.revision
        )
    )
    pending = max(study.instance_count - (counted or 0), 1)
    newest = (
        select(Instance.received_at)
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study.id)
        .order_by(Instance.received_at.desc())
        .limit(pending)
    )
    return min(session.scalars(newest), default=study.last_received_at)


def remove_acknowledged_bundles(zone: ClinicalZone) -> int:
    """Remove from the crossing what the research zone has taken; return how many bundles."""
    acknowledgements = zone.settings.crossing_in / "acks"
    if not acknowledgements.is_dir():
        return 0
    removed = 0
    for item in os.scandir(acknowledgements):
        if not _BUNDLE_ID.fullmatch(item.name):
            continue
        bundle = zone.settings.crossing_out / item.name
        if bundle.is_dir() and not bundle.is_symlink():
            shutil.rmtree(bundle)
            removed += 1
            _logger.info(BUNDLE_REMOVED, bundle_id=item.name)
    return removed
