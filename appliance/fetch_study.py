"""One study of a fetch: what the archive has of it, what is here, and the rest pulled."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import logs
from appliance.completion import STUDY_COMPLETE
from appliance.db.base import now
from appliance.db.clinical import Instance, Result, Series, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, FetchedStudy
from appliance.fetching import DONE, FAILED, QUEUED, RUNNING
from appliance.filing import open_inbox
from dicom_node.archive import ArchiveError, Progress

if TYPE_CHECKING:
    from appliance.archives import Archive
    from appliance.node import ClinicalZone
    from appliance.work import Claim
    from dicom_node.archive import Listed

TRIES: Final = 5
BEAT_EVERY_S: Final = 10.0
FILED_WITHIN_S: Final = 120.0
LOOK_EVERY_S: Final = 0.2
STUDY_FETCHED: Final = "study.fetched"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A study that is to be pulled."""

    id: str
    fetch_id: str
    study_instance_uid: str
    expected: int | None
    attempts: int


@dataclass
class _Stopped:
    """Whether a person stopped the fetch meanwhile."""

    it: bool = False


def pull(zone: ClinicalZone, claim: Claim, archive: Archive, wanted: Wanted, peer_id: str) -> None:
    """Pull a study, or what is missing of it.

    Raises
    ------
    ArchiveError
        When the archive is away, or refuses for good: no fault of this study.
    """
    listed = _inventory(archive, wanted)
    uids = {one.sop_instance_uid for one in listed}
    before = stored(zone, wanted.study_instance_uid)
    if _whole(uids, before, wanted.expected):
        _note(zone, wanted, DONE, None, len(uids) or wanted.expected, len(uids & before) or len(before))
        return
    _begin(zone, wanted)
    try:
        refused, stopped = _retrieve(zone, claim, archive, wanted, listed, before)
    except ArchiveError as error:
        if error.step == "connect" or not error.retryable:
            raise
        _await_filing(zone, claim, wanted, uids)
        _conclude(zone, wanted, uids, peer_id, str(error))
        return
    _await_filing(zone, claim, wanted, uids)
    if stopped:
        _conclude(zone, wanted, uids, peer_id, "stopped in the midst", counts=False)
        return
    _conclude(zone, wanted, uids, peer_id, ", ".join(f"{number} {why}" for why, number in refused.items()))


def stored(zone: ClinicalZone, study_uid: str) -> set[str]:
    """Return the SOP Instance UIDs that we hold of a study, results of ours among them."""
    instances = (
        select(Instance.sop_instance_uid)
        .join(Series, Series.id == Instance.series_id)
        .join(Study, Study.id == Series.study_id)
        .where(Study.study_instance_uid == study_uid)
    )
    results = (
        select(Result.sop_instance_uid)
        .join(Study, Study.id == Result.study_id)
        .where(Study.study_instance_uid == study_uid)
    )
    with reading(zone.engine) as session:
        return {*session.scalars(instances), *session.scalars(results)}


def _inventory(archive: Archive, wanted: Wanted) -> tuple[Listed, ...]:
    """Return the archive's list of instances; empty where it answers no such questions."""
    try:
        return archive.inventory(wanted.study_instance_uid)
    except ArchiveError as error:
        if error.step == "query" and not error.retryable:
            return ()
        raise


def _whole(uids: set[str], held: set[str], expected: int | None) -> bool:
    if uids:
        return uids <= held
    return expected is not None and 0 < expected <= len(held)


def _retrieve(
    zone: ClinicalZone,
    claim: Claim,
    archive: Archive,
    wanted: Wanted,
    listed: tuple[Listed, ...],
    before: set[str],
) -> tuple[Counter[str], bool]:
    """Retrieve the study, or where some of it is here the series that lack something."""
    stopped = _Stopped()
    watch = _Watch(zone, claim, wanted, stopped)
    missing = [one for one in listed if one.sop_instance_uid not in before]
    series = [""]
    if listed and len(missing) < len(listed):
        series = list(dict.fromkeys(one.series_instance_uid for one in missing))
    refused: Counter[str] = Counter()
    for uid in series:
        classes = {one.sop_class_uid for one in missing if uid in {"", one.series_instance_uid}}
        known = sorted(classes) if "" not in classes else []
        done = archive.retrieve(wanted.study_instance_uid, uid, known, watch)
        refused.update(done.refused)
        if done.progress.failed:
            refused["not sent by the archive"] += max(done.progress.failed - sum(done.refused.values()), 0)
        if done.cancelled:
            stopped.it = stopped.it or watch.told_to_stop
            break
    return +refused, stopped.it


class _Watch:
    """Keeps the lease, writes progress, and listens to what a person says meanwhile."""

    def __init__(self, zone: ClinicalZone, claim: Claim, wanted: Wanted, stopped: _Stopped) -> None:
        self._zone = zone
        self._claim = claim
        self._wanted = wanted
        self._stopped = stopped
        self._beat_at = 0.0
        self._count = 0
        self.told_to_stop = False

    def arrived(self) -> int:
        """Count what is filed of the study, and what waits to be filed."""
        statement = (
            select(func.count())
            .select_from(Instance)
            .join(Series, Series.id == Instance.series_id)
            .join(Study, Study.id == Series.study_id)
            .where(Study.study_instance_uid == self._wanted.study_instance_uid)
        )
        with reading(self._zone.engine) as session:
            self._count = int(session.scalar(statement) or 0)
        return self._count

    def goes_on(self, progress: Progress) -> bool:
        """Note progress now and then; stop when the fetch was paused or cancelled."""
        with reading(self._zone.engine) as session:
            state = session.scalar(select(Fetch.state).where(Fetch.id == self._wanted.fetch_id))
        if state != RUNNING:
            self.told_to_stop = True
            return False
        if time.monotonic() - self._beat_at >= BEAT_EVERY_S:
            self._beat_at = time.monotonic()
            done = max(self._count, progress.completed)
            total = self._wanted.expected or (progress.completed + (progress.remaining or 0))
            self._claim.heartbeat({"stage": "instances", "done": done, "total": max(total, done)})
            with writing(self._zone.engine) as session:
                row = session.get(FetchedStudy, self._wanted.id)
                if row is not None:
                    row.received = max(row.received, done)
        return True


def _await_filing(zone: ClinicalZone, claim: Claim, wanted: Wanted, uids: set[str]) -> None:
    """Wait until what came is filed: it waits in the inbox a moment."""
    inbox, came_until = open_inbox(zone, "fetch"), now()
    deadline = time.monotonic() + FILED_WITHIN_S
    beat_at = time.monotonic()
    while time.monotonic() < deadline:
        oldest = (
            inbox.oldest_received_at()
        )  # before the look: what leaves the inbox in between is found there
        if (
            (uids and uids <= stored(zone, wanted.study_instance_uid))
            or oldest is None
            or oldest > came_until
        ):
            return
        if time.monotonic() - beat_at >= BEAT_EVERY_S:
            beat_at = time.monotonic()
            claim.heartbeat()
        time.sleep(LOOK_EVERY_S)


def _begin(zone: ClinicalZone, wanted: Wanted) -> None:
    """Note that the study is asked for: from now on it comes because of us."""
    with writing(zone.engine) as session:
        row = session.get_one(FetchedStudy, wanted.id)
        row.attempts, row.reason = wanted.attempts + 1, None


def _note(
    zone: ClinicalZone, wanted: Wanted, state: str, reason: str | None, expected: int | None, received: int
) -> None:
    with writing(zone.engine) as session:
        row = session.get_one(FetchedStudy, wanted.id)
        row.state, row.reason, row.expected, row.received = state, reason, expected, received


def _conclude(
    zone: ClinicalZone, wanted: Wanted, uids: set[str], peer_id: str, trouble: str, *, counts: bool = True
) -> None:
    """Judge by what is here, whatever was said."""
    held = stored(zone, wanted.study_instance_uid)
    received = len(uids & held) if uids else len(held)
    expected = len(uids) or wanted.expected
    whole = _whole(uids, held, wanted.expected) or (expected is None and bool(held) and not trouble)
    if whole:
        state, reason = DONE, None
    else:
        said = "no instance of it came" if not received else f"{received} of {expected or '?'} instances came"
        reason = f"{said} ({trouble})" if trouble else said
        state = FAILED if counts and wanted.attempts + 1 >= TRIES else QUEUED
    with writing(zone.engine) as session:
        row = session.get_one(FetchedStudy, wanted.id)
        row.state, row.reason, row.expected, row.received = state, reason, expected, received
        if not counts and not whole:
            row.reason = None  # it goes on when a person resumes it
        study = session.scalar(
            select(Study).where(Study.study_instance_uid == wanted.study_instance_uid).with_for_update()
        )
        if study is None or state == QUEUED:
            return
        body = {"fetch_id": wanted.fetch_id, "peer_id": peer_id, "received": received, "expected": expected}
        zone.ledger.append(session, kind=STUDY_FETCHED, subject_id=study.id, body=body)
        if whole and uids and not study.complete:
            study.complete = True
            zone.ledger.append(session, kind=STUDY_COMPLETE, subject_id=study.id, body={"by": "fetch"})
