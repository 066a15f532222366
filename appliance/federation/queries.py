"""Questions to the research database; each returns views and can be tested without a socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from sqlalchemy import func, select

from appliance import preflight
from appliance.db.base import WorkState
from appliance.db.research import (
    CandidateModel,
    Crossing,
    DatasetVersion,
    Label,
    Protocol,
    ProtocolState,
    Receipt,
    ResearchInstance,
    ResearchJob,
    ResearchLedgerEntry,
    Round,
    Subject,
)
from appliance.federation import budget, comparing, protocols, receipts, views
from trainer.federation import receipt
from trainer.federation.errors import ReceiptError
from trainer.federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.node import ResearchZone

PAGE: Final = 100
LONGEST_PAGE: Final = 1000
_OPEN: Final = (WorkState.QUEUED, WorkState.RUNNING, WorkState.FAILED)


def summary(session: Session, zone: ResearchZone) -> views.Summary:
    """Count everything."""
    settings = zone.settings.federation
    return views.Summary(
        site=settings.site,
        federation_enabled=settings.enabled,
        subjects=_count(session, select(func.count(Subject.id))),
        opted_out=_count(session, select(func.count(Subject.id)).where(Subject.opted_out.is_(True))),
        instances=_count(session, select(func.count(ResearchInstance.id))),
        labels=_labels(session),
        protocols_pending=_count(
            session, select(func.count(Protocol.id)).where(Protocol.state == ProtocolState.PENDING)
        ),
        rounds_done=_count(session, select(func.count(Round.id)).where(Round.state == WorkState.DONE)),
        rounds_open=_count(session, select(func.count(Round.id)).where(Round.state.in_(_OPEN))),
        rounds_dead=_count(session, select(func.count(Round.id)).where(Round.state == WorkState.DEAD)),
        candidates=_count(session, select(func.count(CandidateModel.id))),
        last_import_at=session.scalar(select(func.max(Crossing.imported_at))),
        certificate_ends_at=_certificate_end(settings.workspace) if settings.enabled else None,
    )


def _certificate_end(workspace: Path | None) -> datetime | None:
    """Return the end of the certificate; a missing or damaged one is for health and doctor to tell."""
    try:
        content = b"" if workspace is None else (workspace / "startup" / "client.crt").read_bytes()
        return x509.load_pem_x509_certificate(content).not_valid_after_utc
    except (OSError, ValueError):
        return None


def list_protocols(session: Session, zone: ResearchZone) -> list[views.ProtocolView]:
    """Return all protocols, those that wait for a decision first, then the newest."""
    rows = session.scalars(select(Protocol).order_by(Protocol.created_at.desc())).all()
    ordered = sorted(rows, key=lambda row: row.state != ProtocolState.PENDING)
    return [_protocol(session, zone, row) for row in ordered]


def protocol(session: Session, zone: ResearchZone, protocol_id: str) -> views.ProtocolView:
    """Return one protocol by row id or the beginning of its hash."""
    return _protocol(session, zone, protocols.find(session, protocol_id))


def list_runs(session: Session) -> list[views.RunView]:
    """Return the runs that this site knows, newest first, with their rounds."""
    rounds: dict[str, list[Round]] = {}
    for row in session.scalars(select(Round).order_by(Round.number, Round.created_at)):
        rounds.setdefault(row.protocol_id, []).append(row)
    found = session.scalars(select(Protocol).order_by(Protocol.created_at.desc())).all()
    return [_run(row, rounds.get(row.id, [])) for row in found]


def list_receipts(session: Session, zone: ResearchZone, limit: int = PAGE) -> list[views.ReceiptView]:
    """Return the newest receipts."""
    statement = (
        select(Receipt, Round)
        .join(Round, Round.id == Receipt.round_id)
        .order_by(Receipt.created_at.desc())
        .limit(_page(limit))
    )
    return [_receipt(zone, row[0], row[1]) for row in session.execute(statement)]


def one_receipt(session: Session, zone: ResearchZone, name: str) -> views.ReceiptView:
    """Return one receipt; raises UnknownReceiptError."""
    row = receipts.find(session, name)
    return _receipt(zone, row, session.get_one(Round, row.round_id))


def privacy_budget(session: Session) -> views.BudgetView:
    """Return the privacy budget; without numbers while staff have set none."""
    found = budget.current(session)
    if found is None:
        return views.BudgetView(None, None, 0.0, 0.0, 0, "")
    return views.BudgetView(found.epsilon, found.delta, found.spent, found.left, found.rounds, found.set_by)


def list_datasets(session: Session, limit: int = PAGE) -> list[views.DatasetView]:
    """Return the newest dataset versions."""
    statement = select(DatasetVersion).order_by(DatasetVersion.created_at.desc()).limit(_page(limit))
    return [
        views.DatasetView(
            row.id,
            row.content_sha256,
            row.label_name,
            dict(row.counts),
            dict(row.skipped),
            row.created_at,
        )
        for row in session.scalars(statement)
    ]


def list_candidates(session: Session, limit: int = PAGE) -> list[views.CandidateView]:
    """Return the newest model packages made here."""
    statement = select(CandidateModel).order_by(CandidateModel.created_at.desc()).limit(_page(limit))
    return [
        views.CandidateView(
            row.id, row.run_id, row.package_sha256, row.parity_max_abs, dict(row.metrics), row.created_at
        )
        for row in session.scalars(statement)
    ]


def list_jobs(session: Session, state: str | None = None, limit: int = PAGE) -> list[views.JobView]:
    """Return rounds and other jobs as pieces of work, newest first."""
    rounds = select(Round).order_by(Round.updated_at.desc()).limit(_page(limit))
    jobs = select(ResearchJob).order_by(ResearchJob.updated_at.desc()).limit(_page(limit))
    if state is not None:
        rounds, jobs = rounds.where(Round.state == state), jobs.where(ResearchJob.state == state)
    found = [_job(row, "round", row.run_id) for row in session.scalars(rounds)]
    found += [_job(row, "job", row.subject_id) for row in session.scalars(jobs)]
    return sorted(found, key=lambda view: view.updated_at, reverse=True)[: _page(limit)]


def ledger_page(session: Session, before: int | None = None, limit: int = PAGE) -> list[views.LedgerRow]:
    """Return ledger entries, newest first, below a sequence number."""
    statement = select(ResearchLedgerEntry).order_by(ResearchLedgerEntry.sequence.desc()).limit(_page(limit))
    if before is not None:
        statement = statement.where(ResearchLedgerEntry.sequence < before)
    return [
        views.LedgerRow(
            row.sequence, row.at, row.kind, row.actor, row.subject_id, json.loads(row.body), row.entry_hash
        )
        for row in session.scalars(statement)
    ]


def _count(session: Session, statement: Any) -> int:
    return int(session.scalar(statement) or 0)


def _labels(session: Session) -> tuple[views.LabelCount, ...]:
    statement = select(Label.name, Label.value, func.count(Label.id)).group_by(Label.name, Label.value)
    counts: dict[str, dict[int, int]] = {}
    for name, value, count in session.execute(statement):
        counts.setdefault(name, {})[value] = count
    return tuple(
        views.LabelCount(name, values.get(1, 0), values.get(0, 0)) for name, values in sorted(counts.items())
    )


def _protocol(session: Session, zone: ResearchZone, row: Protocol) -> views.ProtocolView:
    plan = Plan.from_json(row.plan)
    compared = comparing.comparison(session, row)
    return views.ProtocolView(
        id=row.id,
        run_id=row.run_id,
        name=row.name,
        plan_sha256=row.plan_sha256,
        state=row.state,
        reason=row.reason,
        expires_at=row.expires_at,
        decided_by=row.decided_by,
        decided_at=row.decided_at,
        created_at=row.created_at,
        label=plan.task.label,
        modalities=tuple(plan.task.modalities),
        network=plan.task.network.name,
        strategy=plan.strategy.name,
        total_rounds=plan.total_rounds,
        min_sites=plan.min_sites,
        minimum_cohort=max(plan.minimum_cohort, zone.settings.federation.minimum_cohort),
        max_update_norm=plan.max_update_norm,
        max_samples_per_site=plan.max_samples_per_site,
        cohort=protocols.cohort(session, plan.task),
        ethics_number=plan.ethics_number,
        max_hours=plan.max_hours,
        hours=protocols.hours(session, row),
        comparison=None if compared is None else _comparison(compared),
        preflight=_preflight(session, row.id),
        shown_sha256=comparing.shown_sha256(row, compared),
        plan=dict(row.plan),
    )


def _preflight(session: Session, protocol_id: str) -> views.PreflightView | None:
    job = preflight.newest_job(session, protocol_id)
    if job is None:
        return None
    done = preflight.latest(session, protocol_id) if job.state == WorkState.DONE else None
    return views.PreflightView(
        state=job.state,
        reason=job.reason,
        progress=dict(job.progress),
        asked_at=job.created_at,
        made_at=None if done is None else done.created_at,
        report={} if done is None else dict(done.report),
    )


def _comparison(found: comparing.Comparison) -> views.ComparisonView:
    earlier = found.earlier
    return views.ComparisonView(
        protocol_id=earlier.id,
        name=earlier.name,
        plan_sha256=earlier.plan_sha256,
        approved_at=earlier.approved_at or earlier.created_at,
        rule=found.rule,
        differences=tuple(
            views.DifferenceView(one.field, one.words, one.old, one.new, one.grade.value)
            for one in found.differences
        ),
    )


def _run(row: Protocol, rounds: Sequence[Round]) -> views.RunView:
    plan = Plan.from_json(row.plan)
    finished = {one.number for one in rounds if one.kind == "train" and one.state == WorkState.DONE}
    return views.RunView(
        run_id=row.run_id,
        name=row.name,
        plan_sha256=row.plan_sha256,
        protocol_id=row.id,
        protocol_state=row.state,
        strategy=plan.strategy.name,
        total_rounds=plan.total_rounds,
        finished_rounds=len(finished),
        last_activity_at=max([row.created_at, *(one.updated_at for one in rounds)]),
        rounds=tuple(_round(one) for one in rounds),
    )


def _round(row: Round) -> views.RoundView:
    return views.RoundView(
        id=row.id,
        run_id=row.run_id,
        number=row.number,
        kind=row.kind,
        state=row.state,
        reason=row.reason,
        samples=row.samples,
        metrics=dict(row.metrics),
        train_seconds=row.train_seconds,
        cases=dict(row.cases),
        progress=dict(row.progress),
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        receipt_id=row.receipt_id,
        dataset_version_id=row.dataset_version_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _receipt(zone: ResearchZone, row: Receipt, of: Round) -> views.ReceiptView:
    signed = receipt.SignedReceipt(row.body, row.body_sha256, row.signature)
    try:
        receipt.verify(signed, zone.keys.signing.public_key())
        genuine = True
    except ReceiptError:
        genuine = False
    return views.ReceiptView(
        id=row.id,
        round_id=row.round_id,
        run_id=of.run_id,
        number=of.number,
        kind=of.kind,
        size_bytes=int(row.body.get("size_bytes", 0)),
        samples=int(row.body.get("samples", 0)),
        body=dict(row.body),
        body_sha256=row.body_sha256,
        signature=row.signature,
        genuine=genuine,
        created_at=row.created_at,
    )


def _job(row: Round | ResearchJob, table: str, subject_id: str) -> views.JobView:
    return views.JobView(
        id=row.id,
        table=table,
        kind=row.kind,
        subject_id=subject_id,
        state=row.state,
        reason=row.reason,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        progress=dict(row.progress),
        next_try_at=row.next_try_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _page(limit: int) -> int:
    return max(1, min(limit, LONGEST_PAGE))
