"""The rows around inference: what a study revision holds, and what its results are stored as."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, true, update

from appliance import logs
from appliance.db.clinical import Instance, ModelState, ModelVersion, Result, Series, Study, StudyRevision
from appliance.db.peers import Delivery, Peer
from appliance.queueing import queue_delivery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

RESULT_CREATED: Final = "result.created"
RESULT_SUPERSEDED: Final = "result.superseded"
INFERENCE_DONE: Final = "inference.done"
INFERENCE_OUTDATED: Final = "inference.outdated"
DESTINATION_UNKNOWN: Final = "inference.destination_unknown"
WITHHELD: Final = "withheld"
_WITHHELD_REASON: Final = "superseded by the result of a later study revision"

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Source:
    """An instance of the study revision."""

    id: str
    path: str
    sop_instance_uid: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """A model version that serves."""

    id: str
    name: str
    version: str
    state: str
    package_sha256: str
    path: str
    modalities: tuple[str, ...]

    @property
    def shadow(self) -> bool:
        """Whether its results stay here."""
        return self.state == ModelState.SHADOW


@dataclass(frozen=True)
class Earlier:
    """A result that the study has already."""

    id: str
    kind: str
    model_name: str
    model_version_id: str
    revision_id: str
    revision_number: int
    package_sha256: str
    sop_class_uid: str
    sop_instance_uid: str
    sources_sha256: str
    shadow: bool
    superseded: bool


@dataclass(frozen=True)
class Facts:
    """All that inference must know of a study revision."""

    revision_id: str
    number: int
    study_id: str
    study_instance_uid: str
    patient_id: str
    assembled_at: datetime
    outdated: bool
    destinations: tuple[str, ...]
    sources: tuple[Source, ...]
    models: tuple[Model, ...]
    earlier: tuple[Earlier, ...]

    def has_result(self, model: Model, sources_sha256: str) -> bool:
        """Whether this model version answered for these very instances, in the same role."""
        return any(
            item.model_version_id == model.id
            and item.sources_sha256 == sources_sha256
            and item.shadow == model.shadow
            and not item.superseded
            for item in self.earlier
        )

    def predecessors(self, model: Model) -> tuple[Earlier, ...]:
        """Return the reports of the latest earlier revision: a report of this model replaces them."""
        found = [
            item
            for item in self.earlier
            if item.kind == "sr"
            and item.model_name == model.name
            and item.shadow == model.shadow
            and item.revision_number < self.number
        ]
        latest = max((item.revision_number for item in found), default=0)
        return tuple(item for item in found if item.revision_number == latest)


@dataclass(frozen=True)
class MadeFile:
    """A result on disk; ``path`` is relative to the clinical root."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: str


@dataclass(frozen=True)
class Made:
    """What one model made of a study revision."""

    model: Model
    files: tuple[MadeFile, ...]
    probability: float | None  # None of what marks segments
    finding: dict[str, Any]


def load(session: Session, revision_id: str) -> Facts | None:
    """Read what inference needs; None when there is no such revision."""
    found = session.execute(
        select(StudyRevision, Study)
        .join(Study, Study.id == StudyRevision.study_id)
        .where(StudyRevision.id == revision_id)
    ).first()
    if found is None:
        return None
    revision, study = found
    return Facts(
        revision_id=revision.id,
        number=revision.number,
        study_id=study.id,
        study_instance_uid=study.study_instance_uid,
        patient_id=study.patient_id,
        assembled_at=revision.assembled_at,
        outdated=_later_revision(session, study.id, revision.number),
        destinations=tuple(dict(revision.rule_outcome or {}).get("destinations", ())),
        sources=_sources(session, study.id, revision.assembled_at),
        models=_models(session, dict(revision.rule_outcome or {})),
        earlier=_earlier(session, study.id),
    )


def fingerprint(sources: Iterable[Source]) -> str:
    """Return a hash over which instances, with which bytes."""
    lines = sorted(f"{source.sop_instance_uid} {source.sha256}" for source in sources)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def store(
    session: Session,
    ledger: Ledger,
    facts: Facts,
    made: Sequence[Made],
    priority: int,
    *,
    not_applicable: int = 0,
) -> list[str]:
    """Store results and deliveries, supersede what they replace; return the ids of the new delivery jobs.

    Runs in the caller's writing transaction. If a later revision was assembled meanwhile, nothing is stored.
    ``not_applicable`` is how many models could read nothing of the study.
    """
    if _later_revision(session, facts.study_id, facts.number):
        record_outdated(session, ledger, facts)
        return []
    jobs: list[str] = []
    for item in made:
        for file in item.files:
            jobs += _store_result(session, ledger, facts, item, file, priority)
        _supersede(session, ledger, facts, item.model)
    body = {"models": len(made), "results": sum(len(item.files) for item in made)}
    if not_applicable:
        body["not_applicable"] = not_applicable
    ledger.append(session, kind=INFERENCE_DONE, subject_id=facts.revision_id, body=body)
    return jobs


def record_outdated(session: Session, ledger: Ledger, facts: Facts) -> None:
    """Note that a later revision took over before this one was answered."""
    ledger.append(session, kind=INFERENCE_OUTDATED, subject_id=facts.revision_id)


def _sources(session: Session, study_id: str, until: datetime) -> tuple[Source, ...]:
    """Return what the study held when it was assembled, without what we made ourselves."""
    own = select(Result.sop_instance_uid)
    statement = (
        select(Instance.id, Instance.path, Instance.sop_instance_uid, Instance.sha256)
        .join(Series, Series.id == Instance.series_id)
        .where(
            Series.study_id == study_id,
            Instance.sop_instance_uid.not_in(own),
            Instance.received_at <= until,
        )
        .order_by(Series.series_instance_uid, Instance.sop_instance_uid)
    )
    return tuple(Source(*row) for row in session.execute(statement))


def _models(session: Session, outcome: Mapping[str, Any]) -> tuple[Model, ...]:
    """Return the models that serve: all of them, or those that the rules named."""
    serving = ModelVersion.state.in_((ModelState.ACTIVE, ModelState.SHADOW))
    names = () if outcome.get("inference") is True else outcome.get("models") or ()
    rows = session.scalars(
        select(ModelVersion)
        .where(serving, ModelVersion.name.in_(names) if names else true())
        .order_by(ModelVersion.name, ModelVersion.created_at)
    )
    return tuple(
        Model(
            id=row.id,
            name=row.name,
            version=row.version,
            state=row.state,
            package_sha256=row.package_sha256,
            path=row.path,
            modalities=tuple(row.modalities.split("\\")),
        )
        for row in rows
    )


def _earlier(session: Session, study_id: str) -> tuple[Earlier, ...]:
    rows = session.execute(
        select(Result, ModelVersion, StudyRevision.number)
        .join(ModelVersion, ModelVersion.id == Result.model_version_id)
        .join(StudyRevision, StudyRevision.id == Result.study_revision_id)
        .where(Result.study_id == study_id)
    )
    return tuple(
        Earlier(
            id=result.id,
            kind=result.kind,
            model_name=model.name,
            model_version_id=model.id,
            revision_id=result.study_revision_id,
            revision_number=number,
            package_sha256=model.package_sha256,
            sop_class_uid=result.sop_class_uid,
            sop_instance_uid=result.sop_instance_uid,
            sources_sha256=str(result.finding.get("sources_sha256", "")),
            shadow=result.shadow,
            superseded=result.superseded,
        )
        for result, model, number in rows
    )


def _later_revision(session: Session, study_id: str, number: int) -> bool:
    statement = select(StudyRevision.id).where(
        StudyRevision.study_id == study_id, StudyRevision.number > number
    )
    return session.scalar(statement.limit(1)) is not None


def _store_result(
    session: Session, ledger: Ledger, facts: Facts, item: Made, file: MadeFile, priority: int
) -> list[str]:
    known = session.scalar(select(Result).where(Result.sop_instance_uid == file.sop_instance_uid))
    if known is not None:
        result = known
        result.shadow = item.model.shadow
    else:
        result = Result(
            study_id=facts.study_id,
            study_revision_id=facts.revision_id,
            model_version_id=item.model.id,
            kind=file.kind,
            sop_class_uid=file.sop_class_uid,
            sop_instance_uid=file.sop_instance_uid,
            path=file.path,
            probability=item.probability,
            finding=item.finding,
            shadow=item.model.shadow,
        )
        session.add(result)
        session.flush()
    ledger.append(
        session,
        kind=RESULT_CREATED,
        subject_id=result.id,
        body={
            "study_revision_id": facts.revision_id,
            "model_version_id": item.model.id,
            "package_sha256": item.model.package_sha256,
            "kind": file.kind,
            "shadow": item.model.shadow,
        },
    )
    return [] if item.model.shadow else _deliveries(session, facts, result, priority)


def _deliveries(session: Session, facts: Facts, result: Result, priority: int) -> list[str]:
    jobs = []
    for name in facts.destinations:
        peer = session.scalar(select(Peer).where(Peer.name == name, Peer.is_destination, Peer.enabled))
        if peer is None:
            _LOG.warning(DESTINATION_UNKNOWN, study_revision_id=facts.revision_id, result_id=result.id)
            continue
        statement = select(Delivery).where(Delivery.result_id == result.id, Delivery.peer_id == peer.id)
        delivery = session.scalar(statement)
        if delivery is None:
            delivery = Delivery(result_id=result.id, peer_id=peer.id)
            session.add(delivery)
            session.flush()
        job_id = queue_delivery(session, delivery.id, priority)
        if job_id is not None:
            jobs.append(job_id)
    return jobs


def _supersede(session: Session, ledger: Ledger, facts: Facts, model: Model) -> None:
    """Mark what the model said of earlier revisions, and stop what of it still waits to be sent."""
    ids = [
        item.id
        for item in facts.earlier
        if item.model_name == model.name
        and item.shadow == model.shadow
        and item.revision_number < facts.number
        and not item.superseded
    ]
    if not ids:
        return
    session.execute(update(Result).where(Result.id.in_(ids)).values(superseded=True))
    withheld = session.execute(
        update(Delivery)
        .where(Delivery.result_id.in_(ids), Delivery.state == "queued")
        .values(state=WITHHELD, reason=_WITHHELD_REASON)
        .returning(Delivery.id)
    ).all()
    for result_id in ids:
        body = {"study_revision_id": facts.revision_id, "model_version_id": model.id}
        ledger.append(session, kind=RESULT_SUPERSEDED, subject_id=result_id, body=body)
    _LOG.info(
        RESULT_SUPERSEDED, study_revision_id=facts.revision_id, results=len(ids), withheld=len(withheld)
    )
