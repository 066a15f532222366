"""Fetches as staff order and steer them: a query to an archive, and the studies that it found.

A fetch is first *looking*: the worker asks the archive. What was found is *listed* for a person to look at,
and *running* once a person starts it (or at once, where that was asked for). Each act is in the ledger, with
counts and codes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, update

from appliance import archives, schedules, work
from appliance.archives import FetchError
from appliance.db.base import WorkState, new_id, now
from appliance.db.clinical import ClinicalJob, Study
from appliance.db.engine import writing
from appliance.db.peers import Fetch, FetchedStudy
from appliance.peers import get_peer
from dicom_node.query import Level, Query, QueryError
from dicom_node.query import check as check_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

LOOKING: Final = "looking"
LISTED: Final = "listed"
RUNNING: Final = "running"
PAUSED: Final = "paused"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

QUEUED: Final = "queued"  # of a study of a fetch, beside done and failed

ORDERED: Final = "fetch.ordered"
STARTED: Final = "fetch.started"
STEERED: Final = "fetch.steered"

MAX_PAUSE_S: Final = 24 * 3600.0
MAX_PER_HOUR: Final = 100_000
MAX_PRIORS: Final = 100
MAX_YEARS: Final = 150
MAX_ATTEMPTS: Final = 1_000_000  # of the job: each study counts its own
_OPEN: Final = (WorkState.QUEUED, WorkState.RUNNING, WorkState.FAILED)
PRIORS_PRIORITY: Final = 3
COHORT_PRIORITY: Final = 7

# What a person may do: act -> (states it can be done in, state it leads to).
ACTS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "start": ((LISTED,), RUNNING),
    "pause": ((RUNNING, LOOKING), PAUSED),
    "resume": ((PAUSED, FAILED, DONE), RUNNING),
    "cancel": ((LOOKING, LISTED, RUNNING, PAUSED), CANCELLED),
}


@dataclass(frozen=True)
class Manner:
    """How a fetch goes about it.

    Parameters
    ----------
    method : str
        Of :data:`appliance.archives.METHODS`; empty for the best that the peer can do.
    hours : str
        When studies are pulled, as :func:`appliance.schedules.parse` reads it.
    pause_s : float
        Between two studies.
    per_hour : int
        Studies at most; 0: no bound.
    at_once : bool
        Start without a look at what was found.
    """

    method: str = ""
    hours: str = ""
    pause_s: float = 0.0
    per_hour: int = 0
    at_once: bool = False


@dataclass(frozen=True)
class Priors:
    """Which earlier studies of a patient are wanted.

    Parameters
    ----------
    study_id : str
        Row id of the stored study.
    modalities : tuple of str
        Any of these; none: all.
    years : int
        Not older than that before the study; 0: however old.
    most : int
        The latest so many.
    """

    study_id: str
    modalities: tuple[str, ...] = ()
    years: int = 0
    most: int = 5


@dataclass(frozen=True)
class Order:
    """What is to be fetched."""

    peer: str
    match: Mapping[str, str] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)


def order(zone: ClinicalZone, wanted: Order, *, actor: str) -> str:
    """Order a cohort by query; return the fetch's row id.

    Raises
    ------
    FetchError, PeerError
        Naming what is wrong.
    """
    match = {keyword: value.strip() for keyword, value in wanted.match.items() if value.strip()}
    if not match:
        raise FetchError("query: expected at least one key with a value")
    try:
        check_query(Query(Level.STUDY, match))
    except QueryError as error:
        raise FetchError(f"query: {error}") from error
    return _order(zone, wanted.peer, match, wanted.manner, {}, actor)


def order_priors(zone: ClinicalZone, wanted: Priors, peer: str, manner: Manner, *, actor: str) -> str:
    """Order earlier studies of the patient of a stored study; raises as :func:`order`."""
    if not 1 <= wanted.most <= MAX_PRIORS:
        raise FetchError(f"most: expected 1 to {MAX_PRIORS}")
    if not 0 <= wanted.years <= MAX_YEARS:
        raise FetchError(f"years: expected 0 (however old) to {MAX_YEARS}")
    if any(not (code.isascii() and code.isalnum() and len(code) <= 16) for code in wanted.modalities):
        raise FetchError("modalities: expected codes such as CT")
    with writing(zone.engine) as session:
        study = session.get(Study, wanted.study_id)
        if study is None:
            raise FetchError("study: there is none of this id")
        patient_id = study.patient_id
    if not patient_id or set(patient_id) & set("\\*?"):
        raise FetchError("study: its patient has no single id to ask for")
    choice = {
        "study_id": wanted.study_id,
        "modalities": [code.upper() for code in wanted.modalities],
        "years": wanted.years,
        "most": wanted.most,
    }
    return _order(zone, peer, {"PatientID": patient_id}, manner, choice, actor)


def act(zone: ClinicalZone, fetch_id: str, name: str, *, actor: str) -> None:
    """Start, pause, resume or cancel.

    Resuming what ended tries the studies again that did not come whole.

    Raises
    ------
    FetchError
        If there is no such fetch, or this cannot be done with it now.
    """
    allowed, target = ACTS[name]
    with writing(zone.engine) as session:
        fetch = session.scalar(select(Fetch).where(Fetch.id == fetch_id).with_for_update())
        if fetch is None:
            raise FetchError("there is no such fetch")
        if fetch.state not in allowed:
            raise FetchError(f"it is {fetch.state}; expected {' or '.join(allowed)}")
        if name == "resume":
            target = _revive(session, fetch)
        fetch.state, fetch.reason = target, None
        fetch.finished_at = now() if target == CANCELLED else None
        body = {"act": name, "peer_id": fetch.peer_id}
        kind = STARTED if name == "start" else STEERED
        zone.ledger.append(session, kind=kind, subject_id=fetch.id, body=body, actor=actor)
        job_id = _ensure_job(session, fetch) if target in {RUNNING, LOOKING} else None
    if job_id is not None:
        zone.wake("fetch", job_id)


def _revive(session: Session, fetch: Fetch) -> str:
    """Give what failed another chance; one that was not listed yet looks again."""
    session.execute(
        update(FetchedStudy)
        .where(FetchedStudy.fetch_id == fetch.id, FetchedStudy.state == FAILED)
        .values(state=QUEUED, attempts=1, reason=None)
    )
    fetch.options = {**fetch.options, "failures": 0}
    if "found" not in fetch.options:
        return LOOKING
    waits = select(FetchedStudy.id).where(FetchedStudy.fetch_id == fetch.id, FetchedStudy.state == QUEUED)
    if fetch.state == DONE and session.scalar(waits.limit(1)) is None:
        raise FetchError("everything of it has come")
    return RUNNING


def _order(
    zone: ClinicalZone,
    peer_name: str,
    match: Mapping[str, str],
    manner: Manner,
    priors: Mapping[str, Any],
    actor: str,
) -> str:
    hours = _checked(manner)
    with writing(zone.engine) as session:
        peer = get_peer(session, peer_name)
        method = manner.method or next(iter(archives.methods_of(peer)), "")
        archives.check(peer, method)
        options = {
            "method": method,
            "hours": hours,
            "pause_s": manner.pause_s,
            "per_hour": manner.per_hour,
            "at_once": manner.at_once,
        }
        if priors:
            options["priors"] = dict(priors)
        fetch = Fetch(peer_id=peer.id, query=dict(match), options=options, state=LOOKING, requested_by=actor)
        session.add(fetch)
        session.flush()
        body = {"peer_id": peer.id, "method": method, "keys": len(match), "priors": bool(priors)}
        zone.ledger.append(session, kind=ORDERED, subject_id=fetch.id, body=body, actor=actor)
        fetch_id, job_id = fetch.id, _ensure_job(session, fetch)
    if job_id is not None:
        zone.wake("fetch", job_id)
    return fetch_id


def _checked(manner: Manner) -> dict[str, Any]:
    """Return the hours as they are stored."""
    if not 0 <= manner.pause_s <= MAX_PAUSE_S:
        raise FetchError(f"pause_s: expected 0 to {MAX_PAUSE_S:.0f}")
    if not 0 <= manner.per_hour <= MAX_PER_HOUR:
        raise FetchError(f"per_hour: expected 0 (no bound) to {MAX_PER_HOUR}")
    try:
        return schedules.parse(manner.hours)
    except ValueError as error:
        raise FetchError(f"hours: {error}") from error


def _ensure_job(session: Session, fetch: Fetch) -> str | None:
    """See that one job works on it, and return the one to wake; the row of the fetch is locked."""
    open_jobs = select(ClinicalJob).where(
        ClinicalJob.kind == "fetch", ClinicalJob.subject_id == fetch.id, ClinicalJob.state.in_(_OPEN)
    )
    job = session.scalar(open_jobs.limit(1))
    if job is not None:
        work.retry(session, ClinicalJob, job.id)  # no effect on one that runs
        return job.id
    priority = PRIORS_PRIORITY if "priors" in fetch.options else COHORT_PRIORITY
    key = f"fetch:{fetch.id}:{new_id()}"
    return work.enqueue(
        session, ClinicalJob, "fetch", fetch.id, key, priority=priority, max_attempts=MAX_ATTEMPTS
    )


def level_of(name: str) -> Level:
    """Return a level by the word that people use; raises FetchError."""
    levels = {"study": Level.STUDY, "series": Level.SERIES, "instance": Level.IMAGE}
    if name not in levels:
        raise FetchError(f"level: expected one of {', '.join(levels)}")
    return levels[name]
