"""Filing: what the inbox holds becomes files in their place and rows of study, series and instance.

Every step can be killed and repeated: a file is placed under a name that its inbox entry decides, rows are
committed, and only then the entry leaves the inbox. An entry that the disk fails stays and is tried again; it
holds up no other. The indexer process alone files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError

from appliance import cataloguing, figures, logs, merges, placing, quarantine, traffic
from appliance.db.base import now
from appliance.db.clinical import Instance, QuarantineItem, Result, Series, Study, StudyState
from appliance.db.engine import reading, writing
from dicom_node.errors import HeaderError
from dicom_node.inbox import DamagedEntry, Inbox, InboxEntry, sync_folder
from dicom_node.index import InstanceHeader, read_header
from dicom_node.sop_classes import StorageClasses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone
    from dicom_node.inbox import Listing

BATCH: Final = 200
PLAN_S: Final = 2.0  # what is planned by then is filed, before more headers are read

INSTANCE_QUARANTINED: Final = "instance.quarantined"
INDEXED: Final = "intake.indexed"
QUARANTINED: Final = "intake.quarantined"
HEADER_FAILED: Final = "intake.header_failed"
DEFERRED: Final = "intake.deferred"

UID_MISMATCH: Final = "uid_mismatch"
NOT_FILED: Final = "not_filed"
UNREADABLE_HEADER: Final = "unreadable_header"

_logger = logs.logger(__name__)


@dataclass(frozen=True)
class IndexCounts:
    """What one batch did."""

    filed: int = 0
    duplicates: int = 0
    quarantined: int = 0
    own_results: int = 0

    @property
    def total(self) -> int:
        """How many entries left the inbox."""
        return self.filed + self.duplicates + self.quarantined + self.own_results


@dataclass(frozen=True)
class _Readable:
    """An entry whose header could be read, and where its file goes."""

    entry: InboxEntry
    header: InstanceHeader
    path: str


@dataclass(frozen=True)
class _Stopped:
    """An entry that goes to quarantine."""

    entry: InboxEntry | DamagedEntry
    code: str
    reason: str
    study_id: str | None = None
    instance_id: str | None = None


_Outcome = str | _Stopped
_FILED: Final = "filed"
_DUPLICATE: Final = "duplicate"
_OWN_RESULT: Final = "own_result"


def open_inbox(zone: ClinicalZone, writer: str = "scp") -> Inbox:
    """Return the zone's inbox; each process that receives into it is a writer of another name."""
    dicom = zone.settings.dicom
    return Inbox(
        zone.root / "inbox",
        min_free_bytes=dicom.min_free_mib << 20,
        max_instance_bytes=dicom.max_instance_mib << 20,
        classes=StorageClasses(
            retired=dicom.retired_sop_classes,
            private=None if dicom.private_sop_classes == "all" else frozenset(dicom.private_sop_classes),
        ),
        writer=writer,
    )


def index_batch(
    zone: ClinicalZone, inbox: Inbox, limit: int = BATCH, alive: Callable[[], None] = lambda: None
) -> IndexCounts:
    """File the oldest entries of the inbox: at most ``limit``, and no more than can be read in a short while.

    Parameters
    ----------
    zone : ClinicalZone
    inbox : Inbox
    limit : int
        Entries at most.
    alive : callable
        Called between entries: a sign of life.

    Returns
    -------
    IndexCounts
        Of the entries that left the inbox; none did when nothing waits.

    Raises
    ------
    OSError
        When the disk failed every entry that waits.
    """
    batch = _Batch(zone, inbox, alive)
    plans = batch.plan(inbox.listing(limit))
    outcomes = batch.settle(plans, _file_all(zone, inbox, plans)) if plans else []
    if batch.failed is not None and not outcomes:
        raise batch.failed
    counts = IndexCounts(
        filed=outcomes.count(_FILED),
        duplicates=outcomes.count(_DUPLICATE),
        own_results=outcomes.count(_OWN_RESULT),
        quarantined=sum(isinstance(outcome, _Stopped) for outcome in outcomes),
    )
    if outcomes:
        _logger.info(
            INDEXED, filed=counts.filed, duplicates=counts.duplicates, quarantined=counts.quarantined
        )
    return counts


@dataclass
class _Batch:
    """The steps of one batch that touch files, entry by entry; ``failed`` is what the disk said first."""

    zone: ClinicalZone
    inbox: Inbox
    alive: Callable[[], None]
    failed: OSError | None = None

    def plan(self, listing: Listing) -> list[_Readable | _Stopped]:
        """Read headers for a short while, and link the files of unknown instances to their place."""
        plans: list[_Readable | _Stopped] = [
            _Stopped(item, item.code, "no receiver finished this file") for item in listing.damaged
        ]
        for entry_id, error in listing.failed.items():
            self._defer(entry_id, error)
        until = time.monotonic() + PLAN_S
        for entry in listing.entries:
            if time.monotonic() >= until:
                break
            self.alive()
            try:
                plans.append(_plan(entry, self.inbox))
            except OSError as error:
                self._defer(entry.id, error)
        return self._place(plans)

    def _place(self, plans: Sequence[_Readable | _Stopped]) -> list[_Readable | _Stopped]:
        """Place files durably, before any row speaks of them; leave out what the disk does not take."""
        known = _known(self.zone, plans)
        placed, folders = [], set()
        for plan in plans:
            if isinstance(plan, _Readable) and plan.header.sop_instance_uid not in known:
                target = self.zone.root / plan.path
                self.alive()
                try:
                    placing.make_folder(self.zone.root, target.parent)
                    placing.link(plan.entry.path, target)
                except OSError as error:
                    self._defer(plan.entry.id, error)
                    continue
                folders.add(target.parent)
            placed.append(plan)
        for folder in folders:
            sync_folder(folder)
        return placed

    def settle(self, plans: Sequence[_Readable | _Stopped], outcomes: Sequence[_Outcome]) -> list[_Outcome]:
        """Let entries leave the inbox; return the outcomes of those that did."""
        settled = []
        for plan, outcome in zip(plans, outcomes, strict=True):
            self.alive()
            try:
                _settle(self.zone, self.inbox, plan, outcome)
            except OSError as error:
                self._defer(plan.entry.id, error)
            else:
                settled.append(outcome)
                if outcome == _FILED and isinstance(plan, _Readable):
                    waited = now() - plan.entry.received_at
                    figures.observe(figures.FILING_SECONDS, waited.total_seconds())
        return settled

    def _defer(self, entry_id: str, error: OSError) -> None:
        _logger.warning(DEFERRED, entry_id=entry_id, exc_info=error)
        self.failed = self.failed or error


def _plan(entry: InboxEntry, inbox: Inbox) -> _Readable | _Stopped:
    try:
        header = read_header(entry.path, max_inflated_bytes=inbox.max_instance_bytes)
    except HeaderError as error:
        return _Stopped(entry, error.code, str(error))
    except (OSError, MemoryError):
        raise
    except Exception:
        # The edge between this process and hostile bytes: what nobody foresaw stops one entry, not filing.
        _logger.exception(HEADER_FAILED, entry_id=entry.id)
        return _Stopped(entry, UNREADABLE_HEADER, "reading its header failed; the node's log says where")
    if (header.sop_instance_uid, header.sop_class_uid) != (entry.sop_instance_uid, entry.sop_class_uid):
        return _Stopped(
            entry, UID_MISMATCH, "the request names another SOP class or instance than the data set"
        )
    folder = entry.received_at.strftime("instances/%Y%m%d/%H")
    return _Readable(entry, header, f"{folder}/{entry.id}.dcm")


def _file_all(zone: ClinicalZone, inbox: Inbox, plans: Sequence[_Readable | _Stopped]) -> list[_Outcome]:
    """Commit the rows. An entry that the database refuses goes to quarantine alone."""
    try:
        return _commit(zone, inbox, plans)
    except (DataError, IntegrityError):
        if len(plans) == 1:
            stopped = _Stopped(plans[0].entry, NOT_FILED, "the database refused its values")
            return _commit(zone, inbox, [stopped])
    outcomes: list[_Outcome] = []
    for plan in plans:
        outcomes.extend(_file_all(zone, inbox, [plan]))
    return outcomes


def _known(zone: ClinicalZone, plans: Sequence[_Readable | _Stopped]) -> set[str]:
    """Return which of the SOP Instance UIDs have rows already."""
    uids = [plan.header.sop_instance_uid for plan in plans if isinstance(plan, _Readable)]
    with reading(zone.engine) as session:
        return set(
            session.scalars(select(Instance.sop_instance_uid).where(Instance.sop_instance_uid.in_(uids)))
        )


def _commit(zone: ClinicalZone, inbox: Inbox, plans: Sequence[_Readable | _Stopped]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    entries = [plan.entry for plan in plans if isinstance(plan.entry, InboxEntry)]
    with writing(zone.engine) as session:
        fresh = traffic.fresh(session, entries)
        for plan in plans:
            outcome = _file_one(session, plan) if isinstance(plan, _Readable) else plan
            if isinstance(outcome, _Stopped):
                _quarantine(zone, session, inbox, outcome)
            outcomes.append(outcome)
        traffic.count_received(session, _received(plans, fresh))
    return outcomes


def _received(plans: Sequence[_Readable | _Stopped], fresh: set[str]) -> Iterator[tuple[InboxEntry, str]]:
    for plan in plans:
        if isinstance(plan.entry, InboxEntry) and plan.entry.id in fresh:
            yield plan.entry, plan.header.station_name if isinstance(plan, _Readable) else ""


def _file_one(session: Session, plan: _Readable) -> _Outcome:
    header, entry = plan.header, plan.entry
    known = session.scalar(select(Instance).where(Instance.sop_instance_uid == header.sop_instance_uid))
    if known is not None:
        same = known.sha256 == entry.sha256 and known.transfer_syntax_uid == entry.transfer_syntax_uid
        return _DUPLICATE if same else _conflicting(entry, merges.of_other_bytes(session, header, known))
    if (
        session.scalar(select(Result.id).where(Result.sop_instance_uid == header.sop_instance_uid))
        is not None
    ):
        return _OWN_RESULT
    study = session.scalar(select(Study).where(Study.study_instance_uid == header.study_instance_uid))
    series = None if study is None else _known_series(session, study, header)
    if (conflict := merges.of_new(session, header, study, series)) is not None:
        return _conflicting(entry, conflict)
    study = study or _new_study(session, plan)
    series = series or Series(study_id=study.id, series_instance_uid=header.series_instance_uid)
    cataloguing.describe_series(series, header)
    session.add(series)
    session.flush()
    session.add(_instance(plan, series))
    _update_study(study, plan)
    session.flush()
    return _FILED


def _conflicting(entry: InboxEntry, conflict: merges.Conflict) -> _Stopped:
    return _Stopped(entry, conflict.code, conflict.reason, conflict.study_id, conflict.instance_id)


def _known_series(session: Session, study: Study, header: InstanceHeader) -> Series | None:
    return session.scalar(
        select(Series).where(
            Series.study_id == study.id, Series.series_instance_uid == header.series_instance_uid
        )
    )


def _instance(plan: _Readable, series: Series) -> Instance:
    header, entry = plan.header, plan.entry
    instance = Instance(
        id=entry.id,
        series_id=series.id,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=entry.transfer_syntax_uid,
        path=plan.path,
        size_bytes=entry.size_bytes,
        sha256=entry.sha256,
        calling_ae_title=entry.calling_ae_title,
        received_at=entry.received_at,
    )
    cataloguing.describe_instance(instance, header)
    return instance


def _new_study(session: Session, plan: _Readable) -> Study:
    header, entry = plan.header, plan.entry
    study = Study(
        study_instance_uid=header.study_instance_uid,
        issuer_of_patient_id=header.issuer_of_patient_id,
        patient_id=header.patient_id,
        calling_ae_title=entry.calling_ae_title,
        state=StudyState.RECEIVING,
        instance_count=0,
        revision=0,
        modalities="",
        first_received_at=entry.received_at,
        last_received_at=entry.received_at,
        pending_since=entry.received_at,
    )
    session.add(study)
    session.flush()
    return study


def _update_study(study: Study, plan: _Readable) -> None:
    header, received_at = plan.header, plan.entry.received_at
    study.instance_count += 1
    study.first_received_at = min(study.first_received_at, received_at)
    study.last_received_at = max(study.last_received_at, received_at)
    if study.state not in {StudyState.RECEIVING, StudyState.QUARANTINED}:  # late: all of it is done again
        study.complete, study.pending_since = False, None
    study.pending_since = min(study.pending_since or received_at, received_at)
    study.state = StudyState.RECEIVING
    study.issuer_of_patient_id = study.issuer_of_patient_id or header.issuer_of_patient_id
    cataloguing.describe_study(study, header)
    modalities = {*study.modalities.split("\\"), header.modality} - {""}
    joined = "\\".join(sorted(modalities))
    if len(joined) <= 64:
        study.modalities = joined


def _quarantine(zone: ClinicalZone, session: Session, inbox: Inbox, stopped: _Stopped) -> None:
    """Write the row that a person will see; the file moves after the commit, to the path in the row."""
    key = f"index:{stopped.entry.id[-32:]}"
    item = session.scalar(select(QuarantineItem).where(QuarantineItem.dedupe_key == key))
    if item is not None and item.resolution != quarantine.FILING:
        return
    path = inbox.quarantine_path(stopped.entry, stopped.code)
    item = item or QuarantineItem(stage="index", dedupe_key=key)
    item.reason_code, item.reason = stopped.code, stopped.reason
    item.study_id, item.instance_id = stopped.study_id, stopped.instance_id
    item.path = str(path.relative_to(zone.root))
    item.calling_ae_title = getattr(stopped.entry, "calling_ae_title", "")
    item.resolution = ""
    session.add(item)
    session.flush()
    zone.ledger.append(session, kind=INSTANCE_QUARANTINED, subject_id=item.id, body={"code": stopped.code})
    _logger.warning(QUARANTINED, quarantine_id=item.id, code=stopped.code)


def _settle(zone: ClinicalZone, inbox: Inbox, plan: _Readable | _Stopped, outcome: _Outcome) -> None:
    """Let an entry leave the inbox, now that rows and files hold it."""
    if isinstance(outcome, _Stopped):
        inbox.quarantine(outcome.entry, outcome.code)
    elif isinstance(plan, _Readable):
        inbox.remove(plan.entry)
    if isinstance(plan, _Readable) and outcome != _FILED:
        with reading(zone.engine) as session:
            held = session.get(Instance, plan.entry.id) is not None
        if not held:
            (zone.root / plan.path).unlink(missing_ok=True)
