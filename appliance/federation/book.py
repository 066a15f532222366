"""The coordinator's book: runs, finished rounds and contributions. What stands here is what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray
from sqlalchemy import Engine, Select, func, select

from appliance import keys
from appliance.db.base import now
from appliance.db.coordinator import Contribution, CoordinatorLedgerEntry, FinishedRound, Run, RunState
from appliance.db.engine import make_engine, reading, writing
from appliance.federation import chapters, checkpoints
from appliance.federation.errors import CoordinatorError
from appliance.ledger import Ledger
from trainer.federation.plan import Plan
from trainer.weights_io import save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session

    from appliance.federation.provision import Federation

Array = NDArray[Any]
RUN_ADDED: Final = "run.added"
ROUND_FINISHED: Final = "round.finished"
RUN_ENDED: Final = "run.ended"
RUN_PAUSED: Final = "run.paused"
WAITING: Final = "waiting for sites"  # how a run's reason begins then
OPEN: tuple[RunState, ...] = (RunState.QUEUED, RunState.RUNNING)


class StaleJobError(CoordinatorError):
    """The engine job is no longer the one that continues the run."""


@dataclass(frozen=True)
class Counted:
    """One site's contribution as it goes into the book."""

    site: str
    samples: int
    update_sha256: str
    bytes_received: int
    metrics: Mapping[str, Any]
    reason: str | None
    signed: Mapping[str, Any] = field(default_factory=dict)  # the site's statement and its signature, checked


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run stands: its last finished round (0: the initial model), with model and strategy state."""

    number: int
    weights: dict[str, Array]
    state: dict[str, Array]
    model_sha256: str


@dataclass(frozen=True)
class Book:
    """Reads and writes the coordinator's database and the checkpoints beside it."""

    engine: Engine
    root: Path
    ledger: Ledger | None = None

    def add_run(self, plan: Plan, initial: Mapping[str, Array]) -> str:
        """Write a new run with its initial model; return its id.

        Raises
        ------
        CoordinatorError
            If there is a run of this id already.
        """
        with reading(self.engine) as session:
            if session.get(Run, plan.run_id) is not None:
                raise CoordinatorError("a run of this id exists already")
        path = self._path(plan.run_id, 0)
        digest = save(path, initial)
        with writing(self.engine) as session:
            run = Run(
                id=plan.run_id,
                name=plan.name,
                plan=plan.to_json(),
                plan_sha256=plan.sha256,
                total_rounds=plan.total_rounds,
                min_sites=plan.min_sites,
            )
            session.add(run)
            session.flush()
            session.add(self._finished(plan.run_id, 0, digest, None))
            self._record(
                session, RUN_ADDED, plan.run_id, {"plan_sha256": plan.sha256, "model_sha256": digest}
            )
        return plan.run_id

    def plan(self, run_id: str) -> Plan:
        """Return a run's plan; raises CoordinatorError when its hash is not the one in the book."""
        with reading(self.engine) as session:
            run = _run(session, run_id)
            plan = Plan.from_json(run.plan)
            if plan.sha256 != run.plan_sha256:
                raise CoordinatorError("the run's plan differs from its hash")
            return plan

    def checkpoint(self, run_id: str) -> Checkpoint:
        """Load the last finished round.

        Raises
        ------
        CoordinatorError
            If its file, or that of the strategy's state, is not the one that was written.
        """
        with reading(self.engine) as session:
            row = session.scalar(
                select(FinishedRound)
                .where(FinishedRound.run_id == run_id)
                .order_by(FinishedRound.number.desc())
                .limit(1)
            )
        if row is None:
            raise CoordinatorError("the run has no initial model")
        weights, state = checkpoints.read(self.root / row.checkpoint_path, row.model_sha256)
        return Checkpoint(row.number, weights, state, row.model_sha256)

    def finish_round(
        self,
        run_id: str,
        job_id: str,
        checkpoint: Checkpoint,
        counted: Sequence[Counted],
        started_at: datetime,
    ) -> Checkpoint:
        """Write a finished round: model and state first, fsynced, then the rows in one transaction.

        Returns
        -------
        Checkpoint
            The same with the hash of the written file.

        Raises
        ------
        StaleJobError
            If another engine job continues this run by now, or the round is in the book already.
        """
        path = self._path(run_id, checkpoint.number, job_id)
        checkpoints.make_room(path.parent.parent, sum(one.nbytes for one in checkpoint.weights.values()))
        path, digest = checkpoints.write(path, checkpoint.weights, checkpoint.state)
        with writing(self.engine) as session:
            self._check_job(session, run_id, job_id)
            last = session.scalar(
                select(func.max(FinishedRound.number)).where(FinishedRound.run_id == run_id)
            )
            if last != checkpoint.number - 1:
                raise StaleJobError(f"round {checkpoint.number} does not follow round {last}")
            row = self._finished(run_id, checkpoint.number, digest, started_at)
            row.checkpoint_path = str(path.relative_to(self.root))
            session.add(row)
            session.add_all(chapters.row(run_id, checkpoint.number, one) for one in counted)
            body = {
                "number": checkpoint.number,
                "model_sha256": digest,
                "counted": sum(one.reason is None for one in counted),
                "refused": sum(one.reason is not None for one in counted),
            }
            self._record(session, ROUND_FINISHED, run_id, body)
            run = _run(session, run_id)
            chapters.round_finished(session, self.ledger, run, checkpoint.number, counted)
        return Checkpoint(checkpoint.number, checkpoint.weights, checkpoint.state, digest)

    def finish_run(self, run_id: str, job_id: str, counted: Sequence[Counted]) -> frozenset[str]:
        """Write down which sites took the final model; with ``min_sites`` of them the run is done.

        The sites' evaluations of the final model stand one round after the last. A site that has the model
        keeps it, whatever it answers later.

        Returns
        -------
        frozenset of str
            All sites that have the final model by now.
        """
        with writing(self.engine) as session:
            run = self._check_job(session, run_id, job_id)
            number = run.total_rounds + 1
            known = {row.site: row for row in session.scalars(_contributions(run_id, number))}
            new = [one for one in counted if one.site not in known or not known[one.site].accepted]
            for one in new:
                row = known.get(one.site)
                if row is not None:
                    session.delete(row)
                    session.flush()
                session.add(chapters.row(run_id, number, one))
            chapters.model_taken(session, self.ledger, run, new)
            session.flush()
            have = _delivered(session, run)
            if len(have) >= run.min_sites:
                run.state, run.reason = RunState.DONE, None
                body = {"state": RunState.DONE.value, "delivered": len(have)}
                self._record(session, RUN_ENDED, run_id, body)
        return have

    def delivered(self, run_id: str) -> frozenset[str]:
        """Return the sites that have the final model."""
        with reading(self.engine) as session:
            return _delivered(session, _run(session, run_id))

    def needed(self, run_id: str) -> int:
        """Return how many sites a job needs that do not have the final model yet."""
        with reading(self.engine) as session:
            run = _run(session, run_id)
            return max(1, run.min_sites - len(_delivered(session, run)))

    def offer(self, run_id: str, sites: frozenset[str]) -> frozenset[str]:
        """Let a done run offer its final model once more; return those of ``sites`` that miss it.

        Raises
        ------
        CoordinatorError
            If the run is not done, its plan has expired, or nobody misses the model.
        """
        with writing(self.engine) as session:
            run = _run(session, run_id)
            missing = sites - _delivered(session, run)
            if run.state != RunState.DONE:
                raise CoordinatorError(f"the run is {run.state}; expected done")
            if Plan.from_json(run.plan).expires_at <= now():
                raise CoordinatorError("the plan has expired; no site would take the model")
            if not missing:
                raise CoordinatorError("every site has the final model")
            run.state, run.reason = RunState.QUEUED, None
        return missing

    def note(self, run_id: str, job_id: str, reason: str) -> None:
        """Keep why an open run does not advance, for people; a stale job's word does not count."""
        with writing(self.engine) as session:
            run = session.get(Run, run_id)
            if run is not None and run.engine_job_id == job_id and run.state in OPEN:
                run.reason = reason[:500]

    def give_up(self, run_id: str, job_id: str, reason: str) -> None:
        """Mark a run dead at the word of its current job."""
        if self.is_current(run_id, job_id):
            self.end_run(run_id, RunState.DEAD, reason)

    def pause(self, run_id: str, reason: str) -> None:
        """Let an open run rest until it is reopened; its engine job is ended.

        Raises
        ------
        CoordinatorError
            If it is not open.
        """
        with writing(self.engine) as session:
            run = _run(session, run_id)
            if run.state not in OPEN:
                raise CoordinatorError(f"the run is {run.state}; expected queued or running")
            run.state, run.reason = RunState.PAUSED, reason[:500]
            self._record(session, RUN_PAUSED, run_id, {"state": run.state})

    def waits(self, run_id: str) -> bool:
        """Whether the last job ended for lack of sites that have paused, or run another version."""
        with reading(self.engine) as session:
            reason = _run(session, run_id).reason
            return reason is not None and reason.startswith(WAITING)

    def reopen(self, run_id: str) -> None:
        """Let a dead, stopped or paused run go on from its last finished round.

        Raises
        ------
        CoordinatorError
            If it is neither.
        """
        with writing(self.engine) as session:
            run = _run(session, run_id)
            if run.state not in {RunState.DEAD, RunState.STOPPED, RunState.PAUSED}:
                raise CoordinatorError(f"the run is {run.state}; expected dead, stopped or paused")
            run.state, run.reason = RunState.QUEUED, None

    def is_current(self, run_id: str, job_id: str) -> bool:
        """Whether this engine job is the one that continues the run."""
        with reading(self.engine) as session:
            run = session.get(Run, run_id)
            return run is not None and run.engine_job_id == job_id and run.state == RunState.RUNNING

    def set_job(self, run_id: str, job_id: str) -> None:
        """Make an engine job the one that continues the run."""
        with writing(self.engine) as session:
            run = _run(session, run_id)
            run.engine_job_id = job_id
            run.engine_jobs += 1
            if run.reason is not None and run.reason.startswith(WAITING):
                run.reason = None
            run.state = RunState.RUNNING

    def end_run(self, run_id: str, state: RunState, reason: str) -> None:
        """Give a run up (dead) or stop it at a person's wish (stopped).

        A run whose final model enough sites have stays done: what ended is the offer to the others.
        """
        with writing(self.engine) as session:
            run = _run(session, run_id)
            if run.state in OPEN:
                state = RunState.DONE if len(_delivered(session, run)) >= run.min_sites else state
                run.state = state
                run.reason = reason[:500]
                self._record(session, RUN_ENDED, run_id, {"state": state.value})

    def arrived(self, run_id: str) -> Path:
        """Return the folder for updates of a run's round that is under way."""
        return self.root / "runs" / run_id / "arrived"

    def key_path(self, run_id: str) -> Path:
        """Return where the sites' sealed key of an encrypted run lies."""
        return self.root / "runs" / run_id / "key.json"

    def open_runs(self) -> list[str]:
        """Return the ids of runs that are not finished, oldest first."""
        with reading(self.engine) as session:
            statement = select(Run.id).where(Run.state.in_(OPEN)).order_by(Run.created_at, Run.id)
            return list(session.scalars(statement))

    def state(self, run_id: str) -> RunState:
        """Return a run's state."""
        with reading(self.engine) as session:
            return RunState(_run(session, run_id).state)

    def last_round(self, run_id: str) -> int:
        """Return the number of the last finished round."""
        with reading(self.engine) as session:
            number = session.scalar(
                select(func.max(FinishedRound.number)).where(FinishedRound.run_id == run_id)
            )
            return int(number or 0)

    def _record(self, session: Session, kind: str, run_id: str, body: dict[str, Any]) -> None:
        """Append to the coordinator's ledger; the run is named by a commitment, since its id is free text."""
        if self.ledger is not None:
            body = {**body, "run": self.ledger.commitment("run", run_id)}
            self.ledger.append(session, kind=kind, body=body, actor="coordinator")

    def _check_job(self, session: Session, run_id: str, job_id: str) -> Run:
        run = _run(session, run_id)
        if run.engine_job_id != job_id or run.state != RunState.RUNNING:
            raise StaleJobError("another engine job continues this run, or it was stopped")
        return run

    def _finished(self, run_id: str, number: int, digest: str, started_at: datetime | None) -> FinishedRound:
        return FinishedRound(
            run_id=run_id,
            number=number,
            checkpoint_path=str(self._path(run_id, number).relative_to(self.root)),
            model_sha256=digest,
            started_at=started_at,
            finished_at=now(),
        )

    def _path(self, run_id: str, number: int, job_id: str = "") -> Path:
        """Name a checkpoint; the job is in the name so that a stale job overwrites nothing."""
        suffix = f"-{job_id[:8]}" if job_id else ""
        return self.root / "runs" / run_id / f"round-{number:05d}{suffix}.safetensors"


def _run(session: Session, run_id: str) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise CoordinatorError("there is no such run")
    return run


def _contributions(run_id: str, number: int) -> Select[Contribution]:
    return select(Contribution).where(Contribution.run_id == run_id, Contribution.number == number)


def _delivered(session: Session, run: Run) -> frozenset[str]:
    rows = session.scalars(_contributions(run.id, run.total_rounds + 1))
    return frozenset(row.site for row in rows if row.accepted)


def open_book(federation: Federation) -> Book:
    """Open a coordinator's database and ledger; raises KeyFileError without the ledger's keys."""
    return Book(make_engine(federation.database_url), federation.root, open_ledger(federation.root))


def open_ledger(root: Path) -> Ledger:
    """Open a coordinator's ledger."""
    secrets = keys.load_research_keys(root)
    return Ledger(CoordinatorLedgerEntry, secrets.signing, secrets.ledger_salt, root / "ledger.head")
