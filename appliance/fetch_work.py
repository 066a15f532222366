"""What the worker does for a fetch: ask the archive, then pull one study after the other.

A claim is for one step: the list, or one study. What has come is in the database, so that a worker which is
killed goes on where it was, and nothing that is stored whole is asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import fetch_study, logs, schedules
from appliance.archives import FetchError, open_archive
from appliance.db.base import now
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, FetchedStudy, Peer
from appliance.delivery import retry_in_s
from appliance.fetch_listing import Found, choose, summarise
from appliance.fetching import DONE, FAILED, LISTED, LOOKING, QUEUED, RUNNING
from appliance.filing import open_inbox
from dicom_node.archive import ArchiveError
from dicom_node.errors import InboxFullError
from dicom_node.query import Level, Query, QueryError

if TYPE_CHECKING:
    from appliance.archives import Archive
    from appliance.node import ClinicalZone
    from appliance.work import Claim

LISTING_TRIES: Final = 5
MAX_WAITING_ENTRIES: Final = 5000  # in the inbox: filing comes first
LOOK_AGAIN_S: Final = 600.0
NEXT: Final = "the next study"
FETCH_ENDED: Final = "fetch.ended"
FETCH_LISTED: Final = "fetch.listed"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class _Fetch:
    """A fetch as it was when the claim began."""

    id: str
    state: str
    match: dict[str, str]
    options: dict[str, Any]
    peer: Peer


def fetch(zone: ClinicalZone, claim: Claim) -> None:
    """Do the next step of a fetch."""
    with reading(zone.engine) as session:
        row = session.get(Fetch, claim.subject_id)
        peer = None if row is None else session.get(Peer, row.peer_id)
    if row is None or peer is None:
        claim.die("the fetch or its peer is gone")
        return
    this = _Fetch(row.id, row.state, dict(row.query), dict(row.options), peer)
    if this.state not in {LOOKING, RUNNING}:
        _put_down(zone, claim)
        return
    try:
        archive = open_archive(zone, peer, str(this.options.get("method", "")))
        if this.state == LOOKING:
            _look(zone, claim, this, archive)
        else:
            _pull(zone, claim, this, archive)
    except (FetchError, QueryError) as error:
        _end(zone, claim, FAILED, str(error))
    except ArchiveError as error:
        _archive_failed(zone, claim, this, error)


def _put_down(zone: ClinicalZone, claim: Claim) -> None:
    """End the job of a fetch that is paused or over, unless a person has just resumed it."""
    with writing(zone.engine) as session:
        row = session.scalar(select(Fetch).where(Fetch.id == claim.subject_id).with_for_update())
        if row is not None and row.state in {LOOKING, RUNNING}:
            claim.postpone(NEXT, 0, session)
        else:
            claim.finish(session)


def _look(zone: ClinicalZone, claim: Claim, this: _Fetch, archive: Archive) -> None:
    limit = zone.settings.fetch.max_studies
    answers = archive.find(Query(Level.STUDY, this.match, limit=limit))
    if not answers.complete:
        raise FetchError(f"more than {limit} studies match; ask for fewer (fetch.max_studies)")
    found = choose(zone, answers, this.options.get("priors"), archive)
    with writing(zone.engine) as session:
        row = session.scalar(select(Fetch).where(Fetch.id == this.id).with_for_update())
        if row is None or row.state != LOOKING:
            claim.postpone(NEXT, 0, session)
            return
        known = set(
            session.scalars(select(FetchedStudy.study_instance_uid).where(FetchedStudy.fetch_id == this.id))
        )
        session.add_all(
            FetchedStudy(fetch_id=this.id, study_instance_uid=one.study_instance_uid, expected=one.instances)
            for one in found
            if one.study_instance_uid not in known
        )
        told = {**summarise(session, found), "dropped": answers.dropped}
        row.options = {**row.options, "found": told, "preview": _preview(found), "failures": 0}
        at_once = bool(row.options.get("at_once"))
        row.state, row.reason = (RUNNING if at_once else LISTED), None
        body = {key: told[key] for key in ("studies", "here", "dropped")}
        zone.ledger.append(session, kind=FETCH_LISTED, subject_id=this.id, body=body)
        if at_once:
            claim.postpone(NEXT, 0, session)
        else:
            claim.finish(session)
    if at_once:
        zone.wake("fetch", claim.row_id)


def _preview(found: list[Found]) -> list[dict[str, str]]:
    return [dict(one.details) for one in found[:20]]


def _pull(zone: ClinicalZone, claim: Claim, this: _Fetch, archive: Archive) -> None:
    """Pull the next study, if it may be pulled now."""
    wait = _must_wait(zone, this)
    if wait is not None:
        _postpone(zone, claim, *wait)
        return
    study, due_in_s = _next_study(zone, this.id)
    if study is None and due_in_s is None:
        _end(zone, claim, DONE, "")
    elif study is None:
        _postpone(zone, claim, "waits before another try", min(due_in_s or 0, LOOK_AGAIN_S))
    else:
        fetch_study.pull(zone, claim, archive, study, this.peer.id)
        _reset_failures(zone, this)
        pause_s = float(this.options.get("pause_s", 0))
        _postpone(zone, claim, NEXT, pause_s)
        if not pause_s:
            zone.wake("fetch", claim.row_id)


def _must_wait(zone: ClinicalZone, this: _Fetch) -> tuple[str, float] | None:
    """Return why nothing is pulled now, and for how long."""
    hours, at = this.options.get("hours") or {}, now()
    if not schedules.is_open(hours, at):
        opens_in_s = (schedules.next_open(hours, at) - at).total_seconds()
        return f"waits for its hours ({schedules.text_of(hours)})", min(opens_in_s, LOOK_AGAIN_S)
    inbox = open_inbox(zone, "fetch")
    try:
        inbox.check_space()
    except InboxFullError:
        return "waits for free space", 60.0
    if inbox.count() > MAX_WAITING_ENTRIES:
        return "waits until what was received is filed", 20.0
    per_hour = int(this.options.get("per_hour", 0))
    if per_hour:
        pulled = (
            select(func.count(), func.min(FetchedStudy.updated_at))
            .where(FetchedStudy.fetch_id == this.id, FetchedStudy.attempts > 0)
            .where(FetchedStudy.updated_at > at - timedelta(hours=1))
        )
        with reading(zone.engine) as session:
            count, oldest = session.execute(pulled).one()
        if count >= per_hour:
            left_s = (oldest + timedelta(hours=1) - at).total_seconds()
            return f"waits: {per_hour} studies an hour", min(max(left_s, 1.0), LOOK_AGAIN_S)
    return None


def _next_study(zone: ClinicalZone, fetch_id: str) -> tuple[fetch_study.Wanted | None, float | None]:
    """Return the next study, or in how many seconds one is to be tried again; neither when all have ended."""
    waiting = select(FetchedStudy).where(FetchedStudy.fetch_id == fetch_id, FetchedStudy.state == QUEUED)
    # One that was begun and has no reason is what a killed worker left: it comes first.
    untried = waiting.where(FetchedStudy.reason.is_(None)).order_by(FetchedStudy.attempts.desc())
    with reading(zone.engine) as session:
        row = session.scalar(untried.order_by(FetchedStudy.updated_at, FetchedStudy.id).limit(1))
        if row is not None:
            return _wanted(row), None
        tried = session.scalars(waiting).all()
    if not tried:
        return None, None
    at = now()
    due = {row.id: (row.updated_at - at).total_seconds() + retry_in_s(row.attempts, row.id) for row in tried}
    first = min(tried, key=lambda row: due[row.id])
    return (_wanted(first), None) if due[first.id] <= 0 else (None, due[first.id])


def _wanted(row: FetchedStudy) -> fetch_study.Wanted:
    return fetch_study.Wanted(row.id, row.fetch_id, row.study_instance_uid, row.expected, row.attempts)


def _archive_failed(zone: ClinicalZone, claim: Claim, this: _Fetch, error: ArchiveError) -> None:
    """Wait for an archive that is away; what no other try can change ends the fetch, for a person to look."""
    failures = int(this.options.get("failures", 0)) + 1
    if not error.retryable or (this.state == LOOKING and failures >= LISTING_TRIES):
        _end(zone, claim, FAILED, str(error))
        return
    with writing(zone.engine) as session:
        row = session.get_one(Fetch, this.id)
        row.options, row.reason = {**row.options, "failures": failures}, str(error)
        claim.postpone(str(error), retry_in_s(failures, this.id), session)


def _reset_failures(zone: ClinicalZone, this: _Fetch) -> None:
    if this.options.get("failures"):
        with writing(zone.engine) as session:
            row = session.get_one(Fetch, this.id)
            row.options, row.reason = {**row.options, "failures": 0}, None


def _postpone(zone: ClinicalZone, claim: Claim, reason: str, wait_s: float) -> None:
    with writing(zone.engine) as session:
        row = session.scalar(select(Fetch).where(Fetch.id == claim.subject_id).with_for_update())
        if row is not None and row.state == RUNNING:
            row.reason = None if reason == NEXT else reason
        claim.postpone(reason, wait_s, session)


def _end(zone: ClinicalZone, claim: Claim, state: str, reason: str) -> None:
    """End a fetch with what came of it, unless a person was faster."""
    counted = (
        select(FetchedStudy.state, func.count())
        .where(FetchedStudy.fetch_id == claim.subject_id)
        .group_by(FetchedStudy.state)
    )
    with writing(zone.engine) as session:
        row = session.scalar(select(Fetch).where(Fetch.id == claim.subject_id).with_for_update())
        if row is None or row.state not in {LOOKING, RUNNING}:
            claim.finish(session)
            return
        counts = {str(row[0]): int(row[1]) for row in session.execute(counted)}
        failed = counts.get(FAILED, 0)
        if state == DONE and failed:
            reason = f"{failed} of {sum(counts.values())} studies did not come whole"
        row.state, row.reason, row.finished_at = state, reason or None, now()
        body = {"state": state, "done": counts.get(DONE, 0), "failed": failed, "left": counts.get(QUEUED, 0)}
        zone.ledger.append(session, kind=FETCH_ENDED, subject_id=row.id, body=body)
        claim.finish(session)
    _LOG.info(FETCH_ENDED, row_id=claim.subject_id, **body)
