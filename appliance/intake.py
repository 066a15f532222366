"""Intake: from received instances to assembled studies, and the clean-up of the crossing behind them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import figures, logs, merges, patience, routing
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, Study, StudyRevision, StudyState
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError
from appliance.filing import IndexCounts, index_batch, open_inbox
from appliance.reconciling import not_announced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from appliance.node import ClinicalZone

__all__ = [
    "AssembleCounts",
    "DisputedError",
    "IndexCounts",
    "IntakeError",
    "Looks",
    "assemble",
    "assemble_due",
    "index_batch",
    "mark_complete",
    "open_inbox",
    "remove_acknowledged_bundles",
    "retry_stopped",
]

STUDY_COMPLETE: Final = "study.complete"
STUDY_ASSEMBLED: Final = "study.assembled"
STUDY_QUARANTINED: Final = "study.quarantined"
RULE_FAILED: Final = "rule_failed"
IDENTITY_DISPUTED: Final = "identity_disputed"
ASSEMBLED: Final = "intake.assembled"
ASSEMBLY_FAILED: Final = "intake.assembly_failed"
STOPPED: Final = "intake.study_stopped"
BUNDLE_REMOVED: Final = "intake.bundle_removed"

_BUNDLE_ID: Final = re.compile(r"[0-9a-f]{32}")
_logger = logs.logger(__name__)


class IntakeError(ApplianceError):
    """A study that cannot be assembled as asked."""


class DisputedError(IntakeError):
    """A study of which nobody knows yet whose it is."""


@dataclass(frozen=True)
class AssembleCounts:
    """What one look at the studies did."""

    assembled: int = 0
    waiting: int = 0
    stopped: int = 0


@dataclass
class Looks:
    """The looks at the studies that wait; one after another, by the indexer alone.

    A study that its sender or staff called complete is assembled as soon as all that was received before is
    filed. When it was called so is in no row: each look remembers what it saw first.
    """

    zone: ClinicalZone
    _complete_since: dict[str, datetime] = field(default_factory=dict)

    def look(self, at: datetime) -> AssembleCounts:
        """Assemble what is due; parameters and errors as of :func:`assemble_due`."""
        zone = self.zone
        with reading(zone.engine) as session:
            waits = patience.read(session, zone.settings.assembly)
            due = patience.due(session, waits, at)
            due += [study_id for study_id in self._complete(session, at) if study_id not in set(due)]
            waiting = session.scalar(
                select(func.count()).select_from(Study).where(Study.state == StudyState.RECEIVING)
            )
        return replace(_assemble_all(zone, due, at), waiting=max((waiting or 0) - len(due), 0))

    def _complete(self, session: Session, at: datetime) -> list[str]:
        states = (StudyState.RECEIVING, StudyState.QUARANTINED)
        found = session.scalars(select(Study.id).where(Study.state.in_(states), Study.complete)).all()
        seen_at = now()
        self._complete_since = {study_id: self._complete_since.get(study_id, seen_at) for study_id in found}
        return [study_id for study_id, since in self._complete_since.items() if since <= at]


def assemble_due(zone: ClinicalZone, at: datetime) -> AssembleCounts:
    """Assemble every study whose wait is over, and let the rules decide what becomes of it.

    A study whose rules cannot be evaluated, or whose patient is disputed, is stopped, see
    :func:`retry_stopped`; one that fails otherwise stays as it is. Neither holds up another.

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
    return Looks(zone).look(at)


def mark_complete(session: Session, ledger: Ledger, study_id: str, actor: str) -> bool:
    """Say that nothing more comes of a study, in the caller's writing transaction; the next look assembles.

    Returns
    -------
    bool
        Whether it waited; one that is assembled already stays as it is.

    Raises
    ------
    IntakeError
        If there is no such study.
    """
    study = session.get(Study, study_id)
    if study is None:
        raise IntakeError(f"study {study_id}: does not exist")
    if study.state not in {StudyState.RECEIVING, StudyState.QUARANTINED}:
        return False
    study.complete = True
    ledger.append(session, kind=STUDY_COMPLETE, subject_id=study_id, actor=actor)
    return True


def retry_stopped(zone: ClinicalZone) -> AssembleCounts:
    """Assemble the studies that the rules stopped, where staff have mended them; raises as for those due."""
    with reading(zone.engine) as session:
        stopped = session.scalars(select(Study.id).where(Study.state == StudyState.QUARANTINED)).all()
    return _assemble_all(zone, stopped, now())


def _assemble_all(zone: ClinicalZone, study_ids: Sequence[str], at: datetime) -> AssembleCounts:
    assembled = stopped = 0
    failed: Exception | None = None
    for study_id in study_ids:
        try:
            assemble(zone, study_id, at=at)
            assembled += 1
        except routing.RuleError as error:
            _stop(zone, study_id, RULE_FAILED, str(error))
            stopped += 1
        except DisputedError as error:
            _stop(zone, study_id, IDENTITY_DISPUTED, str(error))
            stopped += 1
        except Exception as error:
            _logger.exception(ASSEMBLY_FAILED, study_id=study_id)
            failed = failed or error
    if failed is not None:
        raise failed
    return AssembleCounts(assembled=assembled, stopped=stopped)


def _stop(zone: ClinicalZone, study_id: str, code: str, reason: str) -> None:
    """Let staff see why a study was not assembled; nothing of it goes anywhere meanwhile."""
    with writing(zone.engine) as session:
        study = session.get(Study, study_id)
        if study is None or study.state == StudyState.ASSEMBLED:
            return
        if study.state == StudyState.RECEIVING:
            body = {"code": code}
            zone.ledger.append(session, kind=STUDY_QUARANTINED, subject_id=study_id, body=body)
        study.state, study.reason, study.complete = StudyState.QUARANTINED, reason, False
    _logger.warning(STOPPED, study_id=study_id)


def assemble(
    zone: ClinicalZone, study_id: str, actor: str = "node", *, at: datetime | None = None
) -> str | None:
    """Make the next revision of a study at once; return its id, or None when nothing is new.

    Parameters
    ----------
    at : datetime or None
        The moment up to which everything received is filed, if known: what is received later belongs to the
        next revision.

    Raises
    ------
    IntakeError
        If there is no such study.
    DisputedError
        If a person has to decide first whose study it is.
    RuleError
        If a rule cannot be evaluated; the study stays as it is.
    """
    with writing(zone.engine) as session:
        study = session.get(Study, study_id)
        if study is None:
            raise IntakeError(f"study {study_id}: does not exist")
        if study.state in {StudyState.ASSEMBLED, StudyState.DISCARDED}:
            return None
        if merges.is_disputed(session, study_id):
            raise DisputedError(merges.DISPUTED)
        present = now()
        revision = StudyRevision(
            study_id=study.id,
            number=study.revision + 1,
            instance_count=study.instance_count,
            assembled_at=max(min(at or present, present), study.last_received_at),
        )
        session.add(revision)
        study.revision = revision.number
        study.state = StudyState.ASSEMBLED
        study.reason = study.pending_since = None
        session.flush()
        body = {"study_id": study.id, "number": revision.number, "instances": revision.instance_count}
        zone.ledger.append(session, kind=STUDY_ASSEMBLED, subject_id=revision.id, body=body, actor=actor)
        routing.apply(zone, session, revision.id)
        wake = _announced(session, revision.id, present)
        revision_id, number = revision.id, revision.number
        delay = present - study.last_received_at
    unsent = [job_id for kind, job_id in wake if not zone.wake(kind, job_id)]
    if unsent:
        not_announced(zone.engine, ClinicalJob, unsent)
    figures.observe(figures.ASSEMBLY_SECONDS, delay.total_seconds())
    _logger.info(ASSEMBLED, study_id=study_id, revision_id=revision_id, number=number)
    return revision_id


def _announced(session: Session, revision_id: str, at: datetime) -> list[tuple[str, str]]:
    session.flush()
    jobs = session.scalars(
        select(ClinicalJob).where(
            ClinicalJob.subject_id == revision_id, ClinicalJob.state == WorkState.QUEUED
        )
    ).all()
    for job in jobs:
        job.woken_at = at
    return [(job.kind, job.id) for job in jobs]


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
