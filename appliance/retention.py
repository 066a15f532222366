"""Retention: received studies are deleted by rule, when they are past their time and everything is delivered.

Rows and ledger go first, in one transaction with a job that holds the names of the files; the job removes
those (``appliance.erasing``). Killed in between, the node has files that no row points to and a job that
removes them, never a row that points to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, tuple_, update

from appliance import conditions, facts, logs
from appliance.conditions import Facts, RuleError
from appliance.db.base import WorkState, new_id
from appliance.db.clinical import (
    ClinicalJob,
    Decision,
    Instance,
    QuarantineItem,
    Result,
    RetentionRule,
    Series,
    Study,
    StudyRevision,
    StudyState,
)
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery
from appliance.erasing import ERASE, erase
from appliance.quarantine import INDEX_STAGE
from appliance.work import claimed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

STUDY_DELETED: Final = "study.deleted"
SWEPT: Final = "retention.swept"
RULE_BROKEN: Final = "retention.rule_broken"
PAGE: Final = 100
STEP_S: Final = 1.0
SWEEP_EVERY_S: Final = 3600.0
PREVIEW_S: Final = 5.0
LEASE_S: Final = 300.0

_SETTLED: Final = ("delivered", "withheld")
_ENDED: Final = (StudyState.ASSEMBLED, StudyState.DISCARDED)
_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Found:
    """A study that a rule lets go."""

    study_id: str
    rule_id: str
    keep_days: int


@dataclass(frozen=True)
class Preview:
    """What would be deleted now; ``complete`` says whether all studies were looked at."""

    studies: int
    instances: int
    size_bytes: int
    complete: bool


@dataclass
class Sweeper:
    """Goes through the studies in small steps, so that nothing else waits for it."""

    zone: ClinicalZone
    _after: tuple[datetime, str] | None = None
    _next_at: float = 0.0

    def step(self, at: datetime, step_s: float = STEP_S) -> int:
        """Delete what is due, for a short while; return how many studies."""
        if self._after is None and monotonic() < self._next_at:
            return 0
        until, deleted = monotonic() + step_s, 0
        rules = enabled_rules(self.zone)
        for after, found in _walk(self.zone, rules, at, self._after):
            self._after = after
            if found is not None:
                deleted += delete_study(self.zone, found, at)
            if monotonic() >= until:
                break
        else:
            self._after, self._next_at = None, monotonic() + SWEEP_EVERY_S
        if deleted:
            _LOG.info(SWEPT, studies=deleted)
        return deleted


def enabled_rules(zone: ClinicalZone) -> list[RetentionRule]:
    """Return the rules that are applied."""
    with reading(zone.engine) as session:
        return list(
            session.scalars(
                select(RetentionRule).where(RetentionRule.enabled).order_by(RetentionRule.keep_days)
            )
        )


def run(zone: ClinicalZone, at: datetime) -> int:
    """Delete everything that is due, and its files; return how many studies."""
    found = [item for _, item in _walk(zone, enabled_rules(zone), at, None) if item is not None]
    deleted = [item.study_id for item in found if delete_study(zone, item, at)]
    for study_id in deleted:
        with reading(zone.engine) as session:
            job_id = session.scalar(
                select(ClinicalJob.id).where(ClinicalJob.subject_id == study_id, ClinicalJob.kind == ERASE)
            )
        with claimed(zone.engine, ClinicalJob, str(job_id), "retention", LEASE_S) as claim:
            if claim is not None:  # else a worker has it
                erase(zone, claim)
    return len(deleted)


def preview(zone: ClinicalZone, at: datetime, within_s: float = PREVIEW_S) -> Preview:
    """Say what would be deleted now, as far as can be looked at in a while."""
    until, studies, instances, size = monotonic() + within_s, 0, 0, 0
    for _, found in _walk(zone, enabled_rules(zone), at, None):
        if found is not None:
            with reading(zone.engine) as session:
                number, total = _content(session, found.study_id)
            studies, instances, size = studies + 1, instances + number, size + total
        if monotonic() >= until:
            return Preview(studies, instances, size, complete=False)
    return Preview(studies, instances, size, complete=True)


def delete_study(zone: ClinicalZone, found: Found, at: datetime) -> bool:
    """Delete the rows of a study, if it may still go; leave its files to a job.

    Returns
    -------
    bool
        Whether it was deleted.
    """
    with writing(zone.engine) as session:
        study = session.scalar(
            select(Study).where(Study.id == found.study_id, _may_go(at, found.keep_days)).with_for_update()
        )
        if study is None or _undelivered(session, study.id):
            return False
        body = {"rule_id": found.rule_id, "keep_days": found.keep_days}
        job_id = delete_rows(zone, session, study.id, body, actor="node")
    zone.wake(ERASE, job_id)
    return True


def delete_rows(
    zone: ClinicalZone, session: Session, study_id: str, body: Mapping[str, Any], *, actor: str
) -> str:
    """Delete a study's rows in the caller's transaction, with a ledger entry; return its files' job."""
    instances, size = _content(session, study_id)
    results = session.scalar(select(func.count()).where(Result.study_id == study_id)) or 0
    job = ClinicalJob(
        id=new_id(),
        kind=ERASE,
        subject_id=study_id,
        dedupe_key=f"{ERASE}:{study_id}",
        priority=9,
        progress={"paths": _paths(session, study_id)},
    )
    _forget(session, study_id)
    session.add(job)
    counts = {"instances": instances, "results": results, "size_bytes": size}
    zone.ledger.append(session, kind=STUDY_DELETED, subject_id=study_id, body={**body, **counts}, actor=actor)
    return job.id


def _walk(
    zone: ClinicalZone,
    rules: Sequence[RetentionRule],
    at: datetime,
    after: tuple[datetime, str] | None,
) -> Iterator[tuple[tuple[datetime, str], Found | None]]:
    """Go through all studies that may go, oldest first; say of each which rule lets it go, if any does."""
    if not rules:
        return
    shortest = min(rule.keep_days for rule in rules)
    while True:
        with reading(zone.engine) as session:
            page = session.execute(
                select(Study.id, Study.last_received_at)
                .where(_may_go(at, shortest), _later_than(after))
                .order_by(Study.last_received_at, Study.id)
                .limit(PAGE)
            ).all()
        for study_id, last_received_at in page:
            after = (last_received_at, study_id)
            yield after, _rule_for(zone, rules, study_id, last_received_at, at)
        if len(page) < PAGE:
            return


def _later_than(after: tuple[datetime, str] | None) -> ColumnElement[bool]:
    if after is None:
        return Study.id.is_not(None)
    return tuple_(Study.last_received_at, Study.id) > tuple_(*after)


def _rule_for(
    zone: ClinicalZone, rules: Sequence[RetentionRule], study_id: str, received_at: datetime, at: datetime
) -> Found | None:
    """Return the rule that lets a study go. A study that any rule still keeps stays: the longest time counts.

    A rule that cannot be evaluated keeps everything.
    """
    try:
        with reading(zone.engine) as session:
            if _undelivered(session, study_id):
                return None
            seen = Facts()
            if any(rule.condition for rule in rules):
                seen = facts.gather(session, study_id, received_at)
        matching = [rule for rule in rules if conditions.evaluate(rule.condition, seen).holds]
    except RuleError:
        _LOG.exception(RULE_BROKEN, study_id=study_id)
        return None
    if not matching:
        return None
    longest = max(matching, key=lambda rule: rule.keep_days)
    if received_at >= at - timedelta(days=longest.keep_days):
        return None
    return Found(study_id, longest.id, longest.keep_days)


def _may_go(at: datetime, keep_days: int) -> ColumnElement[bool]:
    """Say of a study: past its time, not on hold, and nothing about it is open."""
    unfinished = ClinicalJob.state != WorkState.DONE
    of_revision = (
        select(StudyRevision.id)
        .join(ClinicalJob, ClinicalJob.subject_id == StudyRevision.id)
        .where(StudyRevision.study_id == Study.id, unfinished)
    )
    deliveries = (
        select(Delivery.id)
        .join(Result, Result.id == Delivery.result_id)
        .join(ClinicalJob, ClinicalJob.subject_id == Delivery.id, isouter=True)
        .where(Result.study_id == Study.id, or_(Delivery.state.not_in(_SETTLED), unfinished))
    )
    items = select(QuarantineItem.id).where(
        QuarantineItem.study_id == Study.id, QuarantineItem.resolved_at.is_(None)
    )
    return and_(
        Study.state.in_(_ENDED),
        ~Study.on_hold,
        Study.last_received_at < at - timedelta(days=keep_days),
        ~of_revision.exists(),
        ~deliveries.exists(),
        ~items.exists(),
    )


def _undelivered(session: Session, study_id: str) -> bool:
    """Whether results that the rules wanted delivered were never queued: their destination was unknown."""
    outcome = session.scalar(
        select(StudyRevision.rule_outcome)
        .join(Study, and_(Study.id == StudyRevision.study_id, Study.revision == StudyRevision.number))
        .where(Study.id == study_id)
    )
    if not (outcome or {}).get("destinations"):
        return False
    delivered = select(Delivery.result_id).where(Delivery.state == "delivered")
    statement = select(Result.id).where(
        Result.study_id == study_id, ~Result.shadow, ~Result.superseded, Result.id.not_in(delivered)
    )
    return session.scalar(statement.limit(1)) is not None


def _content(session: Session, study_id: str) -> tuple[int, int]:
    """Return how many instances a study holds, and the bytes of them and of its results."""
    number, size = session.execute(
        select(func.count(), func.coalesce(func.sum(Instance.size_bytes), 0))
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study_id)
    ).one()
    of_results = session.scalar(
        select(func.coalesce(func.sum(Result.size_bytes), 0)).where(Result.study_id == study_id)
    )
    return int(number), int(size) + int(of_results or 0)


def _paths(session: Session, study_id: str) -> list[str]:
    instances = select(Instance.path).join(Series, Series.id == Instance.series_id)
    results = select(Result.path).where(Result.study_id == study_id)
    return [*session.scalars(instances.where(Series.study_id == study_id)), *session.scalars(results)]


def jobs_of(session: Session, study_id: str) -> list[str]:
    """Return the ids of all jobs on a study's revisions and deliveries."""
    revisions = select(StudyRevision.id).where(StudyRevision.study_id == study_id)
    deliveries = select(Delivery.id).join(Result).where(Result.study_id == study_id)
    subjects = [*session.scalars(revisions), *session.scalars(deliveries)]
    found: list[str] = []
    for start in range(0, len(subjects), 500):
        chunk = subjects[start : start + 500]
        found += session.scalars(select(ClinicalJob.id).where(ClinicalJob.subject_id.in_(chunk)))
    return found


def _forget(session: Session, study_id: str) -> None:
    """Delete a study's rows and what points to them; what waits in quarantine keeps its file."""
    jobs = jobs_of(session, study_id)
    for start in range(0, len(jobs), 500):
        session.execute(delete(ClinicalJob).where(ClinicalJob.id.in_(jobs[start : start + 500])))
    items = update(QuarantineItem).where(QuarantineItem.study_id == study_id)
    session.execute(items.where(QuarantineItem.stage != INDEX_STAGE).values(path=None))
    session.execute(items.values(study_id=None, instance_id=None))
    decisions = update(Decision).where(Decision.study_id == study_id)
    session.execute(decisions.values(study_id=None, series_id=None, instance_id=None))
    session.execute(delete(Study).where(Study.id == study_id))
