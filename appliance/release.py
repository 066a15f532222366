"""The door out: a study revision is de-identified and crosses over; what cannot, waits with a reason."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from anonymizer.engine import Context, Quarantined, Released, deidentify_file, read_patient
from anonymizer.keys import ProjectKeys
from appliance import faces, logs, merges, quarantine, said, text_regions, vault
from appliance.crossing import INSTANCES, BundleWriter, InstanceItem
from appliance.db.base import now
from appliance.db.clinical import Instance, QuarantineItem, Result, Series, StudyRevision, VaultEntry
from appliance.db.engine import reading, writing
from appliance.review.scopes import STAGE, Standing, place
from appliance.work import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sqlalchemy.orm import DeclarativeBase, Session

    from appliance.node import ClinicalZone
    from appliance.review.scopes import Place
    from appliance.said import Said
    from appliance.work import Claim

STUDY_DEIDENTIFIED: Final = "study.deidentified"
UNFORESEEN: Final = "release.unforeseen_error"
INSTANCE_STOPPED: Final = "release.instance_stopped"
STUDY_RELEASED: Final = "release.done"
DISPUTED_S: Final = 60.0  # until the next look whether a person has decided
_RENEWALS: Final = 30  # in the length of a lease
_CHUNK: Final = 500

_logger = logs.logger(__name__)


@dataclass(frozen=True)
class _Source:
    """An instance of the revision."""

    id: str
    path: str
    calling_ae_title: str
    place: Place


@dataclass(frozen=True)
class _Terms:
    """What counts for a study: decisions of people, and what its rows say of the patient."""

    standing: Standing
    also: Said = ()

    @classmethod
    def of_study(cls, session: Session, study_id: str) -> _Terms:
        return cls(Standing.of_study(session, study_id), said.of_study(session, study_id))


@dataclass
class _Outcomes:
    """What became of each instance."""

    released: list[tuple[_Source, InstanceItem]] = field(default_factory=list)
    stopped: list[tuple[_Source, Quarantined]] = field(default_factory=list)
    profile_hash: str = ""


@dataclass
class Beat:
    """Renews the lease by time: one long multi-frame instance may outlast it, as may many short ones."""

    claim: Claim
    total: int
    done: int = 0
    renewed_at: float = -math.inf

    def __call__(self) -> None:
        """Renew the lease if it is time."""
        if time.monotonic() - self.renewed_at >= self.claim.lease_s / _RENEWALS:
            self.claim.heartbeat({"done": self.done, "of": self.total})
            self.renewed_at = time.monotonic()


def project_keys(zone: ClinicalZone) -> ProjectKeys:
    """Return the keys of the node's research project."""
    return ProjectKeys.derive(zone.keys.pseudonym_master, zone.settings.deidentification.project)


def context_of(
    zone: ClinicalZone, beat: Callable[[], None], also: Said = (), paths: Iterable[str] = ()
) -> Context:
    """Return what the node's settings say of de-identification, and its rows of the patient.

    Parameters
    ----------
    paths : iterable of str
        All instances of the series that are worked on, below the zone's folder: a face takes them all.
    """
    profile = text_regions.profile_in_force(zone)
    settings = zone.settings.deidentification
    return Context(
        project_keys(zone),
        settings.project,
        settings.max_date_shift_days,
        profile=profile,
        also=also,
        beat=beat,
        faces=faces.finder(profile, zone.root, paths, beat),
    )


def bundle_id_of(revision_id: str, project: str, decision_id: str = "") -> str:
    """Return the bundle's id: the same for the same revision, so that a repeated release is one bundle.

    A revision that is released anew after a person's decision makes a bundle of its own.
    """
    after = f"\0{decision_id}" if decision_id else ""
    return sha256(f"cloister bundle\0{revision_id}\0{project}{after}".encode()).hexdigest()[:32]


def release_study(zone: ClinicalZone, claim: Claim) -> None:
    """De-identify the instances of a study revision and hand them over. Ends the claim.

    Killed at any point and repeated, it gives the same: the output of an instance, the bundle's id and all
    row keys depend on the input alone. The vault knows every pseudonym before its bundle is published; the
    bundle is published before the job is done.

    Parameters
    ----------
    zone : ClinicalZone
        The clinical zone.
    claim : Claim
        A job whose subject is a row of ``study_revision``.
    """
    project = zone.settings.deidentification.project
    with reading(zone.engine) as session:
        revision = session.get(StudyRevision, claim.subject_id)
        sources = [] if revision is None else _sources(session, revision)
        disputed = revision is not None and merges.is_disputed(session, revision.study_id)
        terms = _Terms(Standing([])) if revision is None else _Terms.of_study(session, revision.study_id)
    if revision is None:
        claim.die("the study revision does not exist")
        return
    if disputed:
        claim.postpone(merges.DISPUTED, DISPUTED_S)
        return
    _, _, decision_id = claim.row.dedupe_key.removeprefix(f"{STAGE}:").partition(":")
    bundle_id = bundle_id_of(revision.id, project, decision_id)
    writer = BundleWriter(zone.settings.crossing_out, bundle_id)
    outcomes = _of_one_patient(_deidentify(zone, claim, sources, writer, terms), writer)
    claim.heartbeat()
    if outcomes.released:
        _seal_identities(zone, project, outcomes)
        writer.publish(INSTANCES, project, [item for _, item in outcomes.released])
    else:
        writer.discard()
    with writing(zone.engine) as session:
        _store(zone, session, revision.id, bundle_id, outcomes, terms.standing)
        claim.finish(session)
    _logger.info(
        STUDY_RELEASED,
        revision_id=revision.id,
        released=len(outcomes.released),
        quarantined=len(outcomes.stopped),
    )


def _sources(session: Session, revision: StudyRevision) -> list[_Source]:
    """Return what the study held when it was assembled, without results of our own that came back.

    What came later belongs to the next revision: repeated, this one makes the same bundle.
    """
    own = select(Result.sop_instance_uid)
    rows = session.execute(
        select(Instance, Series)
        .join(Series)
        .where(
            Series.study_id == revision.study_id,
            Instance.sop_instance_uid.not_in(own),
            Instance.received_at <= revision.assembled_at,
        )
        .order_by(Instance.id)
    )
    return [
        _Source(instance.id, instance.path, instance.calling_ae_title, place(instance, series))
        for instance, series in rows
    ]


def _deidentify(
    zone: ClinicalZone, claim: Claim, sources: Sequence[_Source], writer: BundleWriter, terms: _Terms
) -> _Outcomes:
    beat = Beat(claim, len(sources))
    context = context_of(zone, beat, terms.also, [source.path for source in sources])
    outcomes = _Outcomes(profile_hash=context.profile.hash)
    for number, source in enumerate(sources):
        beat.done = number
        beat()
        name = f"{source.id}.dcm"
        outcome = _as_decided(zone.root / source.path, writer.folder / name, context, source, terms.standing)
        if isinstance(outcome, Quarantined):
            _logger.info(INSTANCE_STOPPED, instance_id=source.id, reason_code=outcome.reason_code)
            outcomes.stopped.append((source, outcome))
        else:
            outcomes.released.append((source, _item(name, outcome)))
    return outcomes


def _as_decided(
    path: Path, target: Path, context: Context, source: _Source, standing: Standing
) -> Released | Quarantined:
    """De-identify one instance; where it is stopped for a reason that a person decided on, as decided."""
    outcome = deidentify_one(path, target, context, source.id)
    while isinstance(outcome, Quarantined):
        verdict = context.verdict | standing.release(source.place, outcome.reason_code)
        if verdict == context.verdict:
            break
        context = replace(context, verdict=verdict)
        outcome = deidentify_one(path, target, context, source.id)
    return outcome


def deidentify_one(path: Path, target: Path, context: Context, instance_id: str) -> Released | Quarantined:
    """De-identify one instance; an error that nobody foresaw stops this instance alone, and is shown."""
    try:
        return deidentify_file(path, target, context)
    except (OSError, LeaseLostError):
        raise
    except Exception:
        _logger.exception(UNFORESEEN, instance_id=instance_id)
        target.unlink(missing_ok=True)
        return Quarantined("internal_error", "the anonymizer failed on this instance; see the log")


def _item(name: str, outcome: Released) -> InstanceItem:
    return InstanceItem(
        file=name,
        sha256=outcome.sha256,
        size_bytes=outcome.size_bytes,
        pseudonym=outcome.pseudonym,
        study_instance_uid=outcome.study_instance_uid,
        series_instance_uid=outcome.series_instance_uid,
        sop_instance_uid=outcome.sop_instance_uid,
        sop_class_uid=outcome.sop_class_uid,
        modality=outcome.modality,
    )


def _of_one_patient(outcomes: _Outcomes, writer: BundleWriter) -> _Outcomes:
    """Stop a study whose instances name different patients: one of them is filed wrongly."""
    if len({item.pseudonym for _, item in outcomes.released}) <= 1:
        return outcomes
    reason = Quarantined("several_patients", "the instances of the study name different patients")
    for _, item in outcomes.released:
        (writer.folder / item.file).unlink()
    stopped = [*outcomes.stopped, *((source, reason) for source, _ in outcomes.released)]
    return _Outcomes([], stopped, outcomes.profile_hash)


def _seal_identities(zone: ClinicalZone, project: str, outcomes: _Outcomes) -> None:
    """Store who is behind each new pseudonym, sealed."""
    first = {item.pseudonym: source for source, item in outcomes.released}
    with writing(zone.engine) as session:
        for pseudonym, source in first.items():
            if session.get(VaultEntry, (pseudonym, project)) is not None:
                continue
            patient_id, issuer = read_patient((zone.root / source.path).read_bytes())
            identity = vault.Identity(project, patient_id, issuer)
            vault.store_identity(zone, session, (pseudonym, project), identity)


def _store(
    zone: ClinicalZone,
    session: Session,
    revision_id: str,
    bundle_id: str,
    outcomes: _Outcomes,
    standing: Standing,
) -> None:
    revision = session.get_one(StudyRevision, revision_id)
    for source, outcome in outcomes.stopped:
        _quarantine(session, revision.study_id, source, outcome, standing)
    _close(session, [source.id for source, _ in outcomes.released])
    revision.released_count = len(outcomes.released)
    revision.quarantined_count = len(outcomes.stopped)
    revision.deidentification_state = _state(outcomes)
    body = {
        "released": len(outcomes.released),
        "quarantined": len(outcomes.stopped),
        "profile": outcomes.profile_hash,
        "decisions": sorted(standing.used),
        "bundle": bundle_id if outcomes.released else None,
        "content": sha256("".join(sorted(i.sha256 for _, i in outcomes.released)).encode()).hexdigest(),
    }
    zone.ledger.append(session, kind=STUDY_DEIDENTIFIED, subject_id=revision_id, body=body)


def _quarantine(
    session: Session, study_id: str, source: _Source, outcome: Quarantined, standing: Standing
) -> None:
    """Leave an instance to a person, unless one has decided that such instances stay inside."""
    key = f"{STAGE}:{source.id}:{outcome.reason_code}"
    insert_once(
        session,
        QuarantineItem,
        "dedupe_key",
        stage=STAGE,
        reason_code=outcome.reason_code,
        reason=outcome.reason,
        study_id=study_id,
        instance_id=source.id,
        dedupe_key=key,
        path=source.path,
        calling_ae_title=source.calling_ae_title,
    )
    open_items = update(QuarantineItem).where(
        QuarantineItem.stage == STAGE,
        QuarantineItem.instance_id == source.id,
        QuarantineItem.resolved_at.is_(None),
    )
    still = open_items.where(QuarantineItem.dedupe_key == key)
    if standing.keeps(source.place, outcome.reason_code):
        session.execute(still.values(resolved_at=now(), resolution=quarantine.SEEN))
    else:
        decided = QuarantineItem.resolution == quarantine.RELEASING
        session.execute(still.where(decided).values(resolution="", reason=outcome.reason))
        others = open_items.where(decided, QuarantineItem.dedupe_key != key)
        session.execute(others.values(resolved_at=now(), resolution=quarantine.SEEN))


def _close(session: Session, instance_ids: Sequence[str]) -> None:
    """Close what was open of instances that have left, and what waited for another reason at first."""
    for start in range(0, len(instance_ids), _CHUNK):
        session.execute(
            update(QuarantineItem)
            .where(
                QuarantineItem.stage == STAGE,
                QuarantineItem.instance_id.in_(instance_ids[start : start + _CHUNK]),
                QuarantineItem.resolved_at.is_(None),
            )
            .values(resolved_at=now(), resolution=quarantine.RELEASED)
        )


def _state(outcomes: _Outcomes) -> str:
    if not outcomes.stopped and outcomes.released:
        return "released"
    return "partial" if outcomes.released else "quarantined"


def insert_once(session: Session, model: type[DeclarativeBase], key: str, **values: object) -> bool:
    """Insert a row unless one with the same unique key exists; return whether it was inserted."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    table = model.__table__
    statement = insert(model).values(**values).on_conflict_do_nothing(index_elements=[key])
    return session.execute(statement.returning(*table.primary_key)).first() is not None
