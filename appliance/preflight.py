"""Preflight: what the local cohort is to a protocol's task, asked for by a person before approving it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import datasets, logs, masked, work
from appliance.db.base import WorkState, new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Label, Preflight, Protocol, ResearchInstance, ResearchJob, Subject
from appliance.federation import protocols
from appliance.heartbeat import Beat

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone
    from appliance.work import Claim
    from trainer.federation.plan import Plan
    from trainer.task import TaskSpec

KIND: Final = "preflight"
PREFLIGHT_ASKED: Final = "preflight.asked"
PREFLIGHT_DONE: Final = "preflight.done"
MAX_ATTEMPTS: Final = 3
_OPEN: Final = (WorkState.QUEUED, WorkState.RUNNING, WorkState.FAILED)


def ask(zone: ResearchZone, protocol_id: str, actor: str) -> str:
    """Queue a preflight of a protocol and wake a worker; one that waits already is returned instead.

    Raises
    ------
    UnknownProtocolError
        If there is no such protocol.
    """
    with writing(zone.engine) as session:
        protocol = protocols.find(session, protocol_id)
        waiting = session.scalar(
            select(ResearchJob.id)
            .where(ResearchJob.kind == KIND, ResearchJob.subject_id == protocol.id)
            .where(ResearchJob.state.in_(_OPEN))
        )
        if waiting is not None:
            return waiting
        key = f"{KIND}:{protocol.id}:{new_id()}"
        job_id = work.enqueue(session, ResearchJob, KIND, protocol.id, key, max_attempts=MAX_ATTEMPTS)
        zone.ledger.append(session, kind=PREFLIGHT_ASKED, subject_id=protocol.id, actor=actor)
    zone.wake_job(KIND, str(job_id))
    return str(job_id)


def run(zone: ResearchZone, claim: Claim) -> None:
    """Do a claimed preflight; a task that cannot be examined makes the job dead with its reason."""
    from trainer.errors import TrainerError  # noqa: PLC0415
    from trainer.federation.plan import Plan  # noqa: PLC0415

    with reading(zone.engine) as session:
        protocol = session.get_one(Protocol, claim.subject_id)
    try:
        report = _examine(zone, Plan.from_json(protocol.plan), Beat(claim))
    except TrainerError as error:
        claim.die(logs.safe_reason(error))
        return
    with writing(zone.engine) as session:
        stored = Preflight(id=new_id(), protocol_id=protocol.id, report=report)
        session.add(stored)
        session.flush()
        body = {"preflight_id": stored.id, "eligible": report["eligible"], "used": report["used"]}
        zone.ledger.append(session, kind=PREFLIGHT_DONE, subject_id=protocol.id, body=body)
        claim.finish(session)


def latest(session: Session, protocol_id: str) -> Preflight | None:
    """Return a protocol's newest preflight."""
    found = select(Preflight).where(Preflight.protocol_id == protocol_id)
    return session.scalar(found.order_by(Preflight.created_at.desc(), Preflight.id).limit(1))


def newest_job(session: Session, protocol_id: str) -> ResearchJob | None:
    """Return a protocol's newest preflight job, done or not."""
    found = select(ResearchJob).where(ResearchJob.kind == KIND, ResearchJob.subject_id == protocol_id)
    return session.scalar(found.order_by(ResearchJob.created_at.desc(), ResearchJob.id).limit(1))


def _examine(zone: ResearchZone, plan: Plan, beat: Beat) -> dict[str, Any]:
    from trainer import preflight  # noqa: PLC0415 - torch loads here
    from trainer.local_round import use_threads  # noqa: PLC0415

    use_threads(zone.settings.training.threads)
    started = time.perf_counter()
    datasets.prepare(zone, plan.task, beat)
    first = time.perf_counter() - started
    started = time.perf_counter()
    prepared = datasets.prepare(zone, plan.task, beat)
    again = time.perf_counter() - started
    report = preflight.examine(plan, prepared.dataset, again, beat).to_json()
    with reading(zone.engine) as session:
        look = _missing if plan.task.finding is not None else masked.missing
        missing = look(session, plan.task)
    needed = max(plan.minimum_cohort, zone.settings.federation.minimum_cohort)
    subjects = report["train"]["subjects"] + report["held_out"]["subjects"]
    warnings = [code for code in report["warnings"] if code != "cohort_too_small"]
    if subjects < needed:
        warnings.insert(0, "cohort_too_small")
    return {
        **report,
        **prepared.cases,
        "missing": missing,
        "minimum_cohort": needed,
        "max_hours": plan.max_hours,
        "total_rounds": plan.total_rounds,
        "first_prepare_seconds": round(first, 3),
        "warnings": warnings,
    }


def _missing(session: Session, task: TaskSpec) -> dict[str, int]:
    """Count labelled subjects whose pictures are not here, or of other modalities alone."""
    labelled = select(Label.pseudonym).where(Label.name == task.label).distinct()
    having = (
        select(Subject.pseudonym)
        .join(ResearchInstance, ResearchInstance.subject_id == Subject.id)
        .where(Subject.pseudonym.in_(labelled))
        .distinct()
    )
    fitting = having.where(ResearchInstance.modality.in_(task.modalities))
    counts = [
        int(session.scalar(select(func.count()).select_from(one.subquery())) or 0)
        for one in (labelled, having, fitting)
    ]
    return {
        "labelled_without_pictures": counts[0] - counts[1],
        "labelled_of_other_modality": counts[1] - counts[2],
    }
