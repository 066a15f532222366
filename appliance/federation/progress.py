"""How far the runs of a coordinator are, from its book."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, select

from appliance.db.coordinator import Contribution, FinishedRound, Run
from appliance.db.engine import reading
from trainer import strategies

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session


WEIGHT: Final = "weight"  # beside a contribution's metrics: its share of the mean, by the strategy
LED: Final = "led"  # beside a contribution's metrics: the site aggregated the round
ANOMALY: Final = "anomaly_score"  # beside a contribution's metrics, of its update


@dataclass(frozen=True)
class SiteProgress:
    """One site in one round; ``reason`` says why it was not counted.

    ``metrics`` are the site's, with the coordinator's :data:`ANOMALY` where updates were compared.
    """

    site: str
    samples: int
    bytes_received: int
    update_sha256: str
    accepted: bool
    reason: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True)
class RoundProgress:
    """A finished round; its sites' metrics are of the model that the round started from."""

    number: int
    started_at: datetime | None
    finished_at: datetime
    seconds: float
    model_sha256: str
    sites: tuple[SiteProgress, ...]


@dataclass(frozen=True)
class RunProgress:
    """A run; ``final`` holds the sites' evaluations of the finished model."""

    run_id: str
    name: str
    state: str
    reason: str | None
    plan_sha256: str
    total_rounds: int
    finished_rounds: int
    min_sites: int
    engine_jobs: int
    created_at: datetime
    updated_at: datetime
    rounds: tuple[RoundProgress, ...]
    final: tuple[SiteProgress, ...]


def contributors(engine: Engine, run_id: str) -> frozenset[str]:
    """Return the sites whose updates have counted in a run."""
    counted = select(Contribution.site).where(Contribution.run_id == run_id, Contribution.accepted.is_(True))
    with reading(engine) as session:
        return frozenset(session.scalars(counted.distinct()))


def suspects(run: RunProgress) -> dict[str, tuple[int, int]]:
    """Return sites whose updates were unlike the others': in how many rounds, of how many compared."""
    counts: dict[str, tuple[int, int]] = {}
    for one in (site for number in run.rounds for site in number.sites):
        score = one.metrics.get(ANOMALY)
        if isinstance(score, int | float):
            unlike, compared = counts.get(one.site, (0, 0))
            counts[one.site] = (unlike + (score > strategies.THRESHOLD), compared + 1)
    return {site: count for site, count in sorted(counts.items()) if count[0]}


def runs(engine: Engine) -> list[RunProgress]:
    """Return all runs, newest first."""
    with reading(engine) as session:
        found = session.scalars(select(Run).order_by(Run.created_at.desc(), Run.id)).all()
        return [_run(session, row) for row in found]


def run(engine: Engine, run_id: str) -> RunProgress | None:
    """Return one run."""
    with reading(engine) as session:
        row = session.get(Run, run_id)
        return None if row is None else _run(session, row)


def _run(session: Session, row: Run) -> RunProgress:
    sites: dict[int, list[SiteProgress]] = {}
    contributions = select(Contribution).where(Contribution.run_id == row.id).order_by(Contribution.site)
    for one in session.scalars(contributions):
        sites.setdefault(one.number, []).append(_site(one))
    finished = session.scalars(
        select(FinishedRound)
        .where(FinishedRound.run_id == row.id, FinishedRound.number > 0)
        .order_by(FinishedRound.number)
    ).all()
    return RunProgress(
        run_id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        plan_sha256=row.plan_sha256,
        total_rounds=row.total_rounds,
        finished_rounds=len(finished),
        min_sites=row.min_sites,
        engine_jobs=row.engine_jobs,
        created_at=row.created_at,
        updated_at=row.updated_at,
        rounds=tuple(_round(one, sites.get(one.number, [])) for one in finished),
        final=tuple(sites.get(row.total_rounds + 1, [])),
    )


def _round(row: FinishedRound, sites: list[SiteProgress]) -> RoundProgress:
    seconds = 0.0 if row.started_at is None else (row.finished_at - row.started_at).total_seconds()
    return RoundProgress(row.number, row.started_at, row.finished_at, seconds, row.model_sha256, tuple(sites))


def _site(row: Contribution) -> SiteProgress:
    return SiteProgress(
        row.site,
        row.samples,
        row.bytes_received,
        row.update_sha256,
        row.accepted,
        row.reason,
        dict(row.metrics),
    )
