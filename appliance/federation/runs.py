"""The run controller: a run is a chain of engine jobs, and the book says where the next one starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from appliance import logs
from appliance.db.base import now
from appliance.db.coordinator import RunState
from appliance.federation import job
from appliance.federation.enginelink import EngineAwayError, has_ended
from appliance.federation.errors import CoordinatorError
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.federation.book import Book

MAX_FAILURES: Final = 6
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
GATHER_S: Final = 15.0
WAIT_FOR_PAUSED_S: Final = 20.0
PATIENCE_S: Final = 120.0  # longer than a restarted engine's sites take to come back

JOB_SUBMITTED: Final = "federation.job_submitted"
JOB_ENDED: Final = "federation.job_ended"
RUN_DEAD: Final = "federation.run_dead"
RUN_STEPPED_ASIDE: Final = "federation.run_stepped_aside"
ENGINE_AWAY: Final = "federation.engine_away"

_LOG = logs.logger(__name__)


class Engine(Protocol):
    """What the run controller asks of the engine; see :class:`appliance.federation.enginelink.EngineLink`."""

    def sites(self) -> frozenset[str]:
        """Return the connected sites."""

    def submit(self, job: Path) -> str:
        """Submit a job folder, return its id."""

    def status(self, job_id: str) -> str:
        """Return a job's status."""

    def abort(self, job_id: str) -> None:
        """End a job."""


@dataclass
class _Attempt:
    """The run that is being worked on, and how its jobs fared."""

    run_id: str
    job_id: str | None = None
    reached_at_start: tuple[int, int] = (0, 0)
    failures: int = 0
    not_before: float = 0.0
    enough_since: float | None = None
    short_since: float | None = None


class RunController:
    """Continues open runs, the oldest first, one job at a time; call :meth:`step` about once a second.

    A run that lacks sites for ``patience_s`` steps aside for a later one that has enough, between jobs alone.

    Parameters
    ----------
    members : callable
        Returns the sites that belong to the federation now. A job starts when all are there, or ``gather_s``
        after enough are; whoever joins takes part from the next job on.
    """

    def __init__(
        self,
        book: Book,
        engine: Engine,
        members: Callable[[], frozenset[str]],
        *,
        gather_s: float = GATHER_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._engine = engine
        self._members = members
        self._gather_s = gather_s
        self._patience_s = patience_s
        self._clock = clock
        self._attempt: _Attempt | None = None
        self._others: dict[str, _Attempt] = {}  # that stepped aside

    def step(self) -> None:
        """Look once, and do what is due; an engine that does not answer is asked again at the next step."""
        self._end_hopeless()
        attempt = self._current()
        if attempt is None:
            return
        try:
            if attempt.job_id is None:
                self._start(attempt)
            else:
                self._watch(attempt, attempt.job_id)
        except EngineAwayError:
            attempt.enough_since = attempt.short_since = None
            _LOG.warning(ENGINE_AWAY, run_id=attempt.run_id)

    def engine_restarted(self) -> None:
        """Take note that the engine's server was restarted: whatever ran on it runs no more."""
        if self._attempt is not None and self._attempt.job_id is not None:
            self._ended(self._attempt, "the coordinator's engine was restarted")

    def _current(self) -> _Attempt | None:
        attempt = self._attempt
        if attempt is not None:
            state = self._book.state(attempt.run_id)
            if state not in {RunState.QUEUED, RunState.RUNNING}:
                self._leave(attempt, state)
        if self._attempt is None:
            runs = self._book.open_runs()
            self._others = {run_id: self._others[run_id] for run_id in runs if run_id in self._others}
            if runs:
                self._attempt = self._others.pop(runs[0], None) or _Attempt(runs[0])
        return self._attempt

    def _end_hopeless(self) -> None:
        """End open runs whose plan has expired or cannot be read: no site works on them any more."""
        for run_id in self._book.open_runs():
            try:
                reason = "the plan has expired" if self._book.plan(run_id).expires_at <= now() else None
            except (CoordinatorError, TrainerError) as error:
                reason = str(error)
            if reason is not None:
                _LOG.error(RUN_DEAD, run_id=run_id)
                self._book.end_run(run_id, RunState.DEAD, reason)

    def _step_aside(self, attempt: _Attempt, here: frozenset[str]) -> None:
        """Let the oldest other run go first that has enough sites, when this one has lacked them for long."""
        at = self._clock()
        attempt.enough_since = None
        if attempt.short_since is None:
            attempt.short_since = at
        if at - attempt.short_since < self._patience_s:
            return
        for run_id in self._book.open_runs():
            if run_id != attempt.run_id and self._has_sites(run_id, here):
                _LOG.warning(RUN_STEPPED_ASIDE, run_id=attempt.run_id, sites=len(here))
                attempt.short_since = None
                self._others[attempt.run_id] = attempt
                self._attempt = self._others.pop(run_id, None) or _Attempt(run_id)
                return

    def _has_sites(self, run_id: str, here: frozenset[str]) -> bool:
        return len(here - self._book.delivered(run_id)) >= self._book.needed(run_id)

    def _leave(self, attempt: _Attempt, state: RunState) -> None:
        """Let go of a run that is over; a job of a run that was stopped is aborted."""
        self._attempt = None
        if state != RunState.DONE and attempt.job_id is not None:
            try:
                self._engine.abort(attempt.job_id)
            except EngineAwayError:
                _LOG.warning(ENGINE_AWAY, run_id=attempt.run_id)

    def _start(self, attempt: _Attempt) -> None:
        at = self._clock()
        if at < attempt.not_before:
            return
        expected = self._members()
        here = self._engine.sites() & expected
        if not self._has_sites(attempt.run_id, here):
            self._step_aside(attempt, here)
            return
        attempt.short_since = None
        if attempt.enough_since is None:
            attempt.enough_since = at
        if not expected <= here and at - attempt.enough_since < self._gather_s:
            return
        attempt.reached_at_start = self._reached(attempt.run_id)
        name = f"run-after-{attempt.reached_at_start[0]}"
        folder = self._book.root / "runs" / attempt.run_id / "jobs" / name
        needed, timeout_s = self._book.needed(attempt.run_id), self._book.plan(attempt.run_id).round_timeout_s
        attempt.job_id = self._engine.submit(job.build(folder, attempt.run_id, needed, timeout_s))
        attempt.enough_since = None
        self._book.set_job(attempt.run_id, attempt.job_id)
        _LOG.info(JOB_SUBMITTED, run_id=attempt.run_id, job_id=attempt.job_id, sites=len(here))

    def _watch(self, attempt: _Attempt, job_id: str) -> None:
        status = self._engine.status(job_id)
        if has_ended(status):
            self._ended(attempt, status)

    def _ended(self, attempt: _Attempt, why: str) -> None:
        """Decide what follows a job that ended before its run did."""
        _LOG.warning(JOB_ENDED, run_id=attempt.run_id, job_id=attempt.job_id, status=why)
        attempt.job_id = None
        if self._book.waits(attempt.run_id):
            attempt.not_before = self._clock() + WAIT_FOR_PAUSED_S
            return
        advanced = self._reached(attempt.run_id) > attempt.reached_at_start
        attempt.failures = 0 if advanced else attempt.failures + 1
        if attempt.failures >= MAX_FAILURES:
            _LOG.error(RUN_DEAD, run_id=attempt.run_id)
            self._book.end_run(
                attempt.run_id, RunState.DEAD, f"{MAX_FAILURES} engine jobs without a round ({why})"
            )
            return
        backoff_s = min(FIRST_BACKOFF_S * 2**attempt.failures, LONGEST_BACKOFF_S) if attempt.failures else 0.0
        attempt.not_before = self._clock() + backoff_s

    def _reached(self, run_id: str) -> tuple[int, int]:
        """Return how far a run is: its last finished round, and how many sites have the final model."""
        return self._book.last_round(run_id), len(self._book.delivered(run_id))
