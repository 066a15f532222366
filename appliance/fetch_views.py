"""Fetches as staff see them: how far each is, and its studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import schedules
from appliance.db.clinical import Study
from appliance.db.peers import Fetch, FetchedStudy, Peer
from appliance.db.people import User
from appliance.fetching import DONE, FAILED, QUEUED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

MOST: Final = 200


@dataclass(frozen=True)
class FetchRow:
    """One fetch. ``match`` holds values of patients: it is empty for those who may not see them."""

    id: str
    peer: str
    state: str
    reason: str | None
    keys: tuple[str, ...]
    match: Mapping[str, str]
    priors: bool
    method: str
    hours: str
    pause_s: float
    per_hour: int
    studies: int
    done: int
    failed: int
    left: int
    instances: int | None  # that the archive says there are, where it says so of all
    received: int
    here: int  # studies of which something was here when they were listed
    dropped: int
    requested_by: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class StudyRow:
    """One study of a fetch; ``study_id`` is the row of the stored study, once there is one."""

    id: str
    study_id: str | None
    state: str
    reason: str | None
    expected: int | None
    received: int
    attempts: int
    updated_at: datetime


def list_fetches(session: Session, *, identity: bool) -> list[FetchRow]:
    """Return the latest fetches, the latest first."""
    rows = session.scalars(select(Fetch).order_by(Fetch.created_at.desc()).limit(MOST)).all()
    return _rows(session, list(rows), identity=identity)


def get_fetch(session: Session, fetch_id: str, *, identity: bool) -> FetchRow | None:
    """Return one fetch."""
    row = session.get(Fetch, fetch_id)
    return None if row is None else _rows(session, [row], identity=identity)[0]


def list_studies(session: Session, fetch_id: str, *, offset: int = 0, limit: int = MOST) -> list[StudyRow]:
    """Return studies of a fetch in the order of pulling, those that failed first."""
    statement = (
        select(FetchedStudy, Study.id)
        .outerjoin(Study, Study.study_instance_uid == FetchedStudy.study_instance_uid)
        .where(FetchedStudy.fetch_id == fetch_id)
        .order_by(FetchedStudy.state.desc(), FetchedStudy.updated_at, FetchedStudy.id)
        .offset(offset)
        .limit(limit)
    )
    return [
        StudyRow(
            row.id,
            study_id,
            row.state,
            row.reason,
            row.expected,
            row.received,
            row.attempts,
            row.updated_at,
        )
        for row, study_id in session.execute(statement)
    ]


def preview(session: Session, fetch_id: str, *, identity: bool) -> list[dict[str, str]]:
    """Return what an archive said of the first studies it found, names and ids only for those who may see."""
    row = session.get(Fetch, fetch_id)
    shown = [] if row is None else list(row.options.get("preview") or ())
    hidden = () if identity else ("PatientID", "PatientName", "StudyDescription")
    return [{key: value for key, value in one.items() if key not in hidden} for one in shown]


def _rows(session: Session, fetches: list[Fetch], *, identity: bool) -> list[FetchRow]:
    ids = [row.id for row in fetches]
    counted = (
        select(FetchedStudy.fetch_id, FetchedStudy.state, func.count(), func.sum(FetchedStudy.received))
        .where(FetchedStudy.fetch_id.in_(ids))
        .group_by(FetchedStudy.fetch_id, FetchedStudy.state)
    )
    counts: dict[tuple[str, str], tuple[int, int]] = {
        (row[0], row[1]): (int(row[2]), int(row[3] or 0)) for row in session.execute(counted)
    }
    peers = {row[0]: row[1] for row in session.execute(select(Peer.id, Peer.name))}
    users = {row[0]: row[1] for row in session.execute(select(User.id, User.name))}
    return [_row(row, counts, peers, users, identity=identity) for row in fetches]


def _row(
    row: Fetch,
    counts: Mapping[tuple[str, str], tuple[int, int]],
    peers: Mapping[str, str],
    users: Mapping[str, str],
    *,
    identity: bool,
) -> FetchRow:
    options: dict[str, Any] = row.options
    found: dict[str, Any] = options.get("found") or {}
    done, failed, left = (counts.get((row.id, state), (0, 0)) for state in (DONE, FAILED, QUEUED))
    return FetchRow(
        id=row.id,
        peer=peers.get(row.peer_id, "?"),
        state=row.state,
        reason=row.reason,
        keys=tuple(sorted(row.query)),
        match=dict(row.query) if identity else {},
        priors="priors" in options,
        method=str(options.get("method", "")),
        hours=schedules.text_of(options.get("hours") or {}),
        pause_s=float(options.get("pause_s", 0)),
        per_hour=int(options.get("per_hour", 0)),
        studies=done[0] + failed[0] + left[0],
        done=done[0],
        failed=failed[0],
        left=left[0],
        instances=found.get("instances"),
        received=done[1] + failed[1] + left[1],
        here=int(found.get("here", 0)),
        dropped=int(found.get("dropped", 0)),
        requested_by=users.get(row.requested_by, row.requested_by),
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
