"""Tables of the research zone: de-identified studies, labels, rounds. No identity lives here."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from appliance.db.base import JobMixin, LedgerMixin, UTCDateTime, WorkMixin, new_id, now


class ResearchBase(DeclarativeBase):
    """Metadata of the research database."""


class Subject(ResearchBase):
    """A person, known by pseudonym alone."""

    __tablename__ = "subject"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    pseudonym: Mapped[str] = mapped_column(String(64), unique=True)
    opted_out: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ResearchInstance(ResearchBase):
    """A de-identified instance; ``path`` is relative to the research storage root."""

    __tablename__ = "research_instance"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    subject_id: Mapped[str] = mapped_column(ForeignKey("subject.id", ondelete="CASCADE"), index=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), index=True)  # the mapped UID
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    crossing_id: Mapped[str] = mapped_column(String(32), index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Crossing(ResearchBase):
    """One bundle that came through the spool; the id is the bundle's own, so an import happens once."""

    __tablename__ = "crossing"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))  # instances, labels
    item_count: Mapped[int] = mapped_column(Integer)
    imported_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Label(ResearchBase):
    """A label of a study (or of a subject when ``study_instance_uid`` is empty), by pseudonym."""

    __tablename__ = "label"
    __table_args__ = (UniqueConstraint("pseudonym", "study_instance_uid", "name", "source"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    pseudonym: Mapped[str] = mapped_column(String(64), index=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), default="")  # the mapped UID
    name: Mapped[str] = mapped_column(String(64), index=True)
    value: Mapped[int] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class DatasetVersion(ResearchBase):
    """What a round was trained on: the sorted (instance hash, label, split) list, by hash."""

    __tablename__ = "dataset_version"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    content_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    label_name: Mapped[str] = mapped_column(String(64))
    counts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    skipped: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # reason -> count
    path: Mapped[str] = mapped_column(String(255))  # the list as JSON lines
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ProtocolState(StrEnum):
    """A protocol's standing at this site."""

    PENDING = "pending"
    APPROVED = "approved"
    SUSPENDED = "suspended"
    REFUSED = "refused"
    PAUSED = "paused"
    LEFT = "left"


class Protocol(ResearchBase):
    """A federation plan that asks to run here; nothing runs before a person approved this very hash."""

    __tablename__ = "protocol"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    plan_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    run_id: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(64))
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16), default=ProtocolState.PENDING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    decided_by: Mapped[str | None] = mapped_column(String(64))
    decided_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    approved_at: Mapped[datetime | None] = mapped_column(UTCDateTime)  # last; stays when the state changes
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Preflight(ResearchBase):
    """What the local cohort looked like to a protocol's task: counts, no instance and no person."""

    __tablename__ = "preflight"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocol.id"), index=True)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Round(WorkMixin, ResearchBase):
    """One local round (or evaluation of a global model): the unit of work of the federation at this site.

    Unique by run, round, kind, site, hash of the global model and of the plan, never by the engine's job id,
    so that a repeated request finds the finished update. Paths are relative to the research storage root.
    """

    __tablename__ = "round"
    __table_args__ = (
        UniqueConstraint("run_id", "number", "kind", "site", "global_model_sha256", "plan_sha256"),
        Index("ix_round_due", "state", "next_try_at"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(String(64), index=True)
    number: Mapped[int] = mapped_column(Integer)  # 1-based
    kind: Mapped[str] = mapped_column(String(16))  # train, finalize
    site: Mapped[str] = mapped_column(String(40))
    plan_sha256: Mapped[str] = mapped_column(String(64))
    global_model_sha256: Mapped[str] = mapped_column(String(64))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocol.id"))
    input_path: Mapped[str] = mapped_column(String(255))  # safetensors of the global model
    output_path: Mapped[str | None] = mapped_column(String(255))  # safetensors of the local update
    output_sha256: Mapped[str | None] = mapped_column(String(64))
    dataset_version_id: Mapped[str | None] = mapped_column(String(32))
    samples: Mapped[int] = mapped_column(Integer, default=0)
    metrics: Mapped[dict[str, Any]] = mapped_column(
        JSON, default=dict
    )  # of the incoming global model, local validation
    train_seconds: Mapped[float | None] = mapped_column()
    compute_seconds: Mapped[float] = mapped_column(default=0.0)  # of all attempts
    cases: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # counts: eligible, used, skipped
    halted_by: Mapped[str | None] = mapped_column(String(16))  # why its work was stopped: a code of the gate
    noise_source: Mapped[str] = mapped_column(String(16), default="")  # of the update's noise: secure
    update_norm: Mapped[float | None] = mapped_column()  # L2, as it counts: unpacked, before encryption
    receipt_id: Mapped[str | None] = mapped_column(String(32))


class Receipt(ResearchBase):
    """What left this building in one round, signed."""

    __tablename__ = "receipt"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    round_id: Mapped[str] = mapped_column(ForeignKey("round.id"), unique=True)
    body: Mapped[dict[str, Any]] = mapped_column(JSON)
    body_sha256: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class PrivacyBudget(ResearchBase):
    """What staff allow everybody here to lose, epsilon at delta; the row of the highest number counts."""

    __tablename__ = "privacy_budget"
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True, default=new_id)
    epsilon: Mapped[float] = mapped_column()
    delta: Mapped[float] = mapped_column()
    set_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class PrivacySpending(ResearchBase):
    """What a round was charged: so many Gaussian releases about a sample of the people here. Rows stay."""

    __tablename__ = "privacy_spending"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    round_id: Mapped[str] = mapped_column(ForeignKey("round.id"), index=True)
    run_id: Mapped[str] = mapped_column(String(64), index=True)
    mechanism: Mapped[str] = mapped_column(String(32))
    noise_multiplier: Mapped[float] = mapped_column()
    sampling_rate: Mapped[float] = mapped_column()
    releases: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class CandidateModel(ResearchBase):
    """A model package exported here from a global model, on its way to the clinical zone."""

    __tablename__ = "candidate_model"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(String(64), unique=True)
    round_id: Mapped[str] = mapped_column(ForeignKey("round.id"))
    package_sha256: Mapped[str | None] = mapped_column(String(64))
    parity_max_abs: Mapped[float | None] = mapped_column()
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ResearchJob(JobMixin, ResearchBase):
    """Work of the research zone other than rounds. Kinds: preflight."""

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_due", "state", "next_try_at"),)


class ResearchLedgerEntry(LedgerMixin, ResearchBase):
    """The research zone's ledger."""

    __tablename__ = "ledger_entry"


class ConsortiumBlock(ResearchBase):
    """A block of the consortium's ledger, as it came and was checked; a replica of the whole chain."""

    __tablename__ = "consortium_block"
    __table_args__ = (UniqueConstraint("replica", "sequence"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    replica: Mapped[int] = mapped_column(Integer)  # one more whenever a person took up another history
    sequence: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    signature: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ConsortiumHead(ResearchBase):
    """The newest head of a replica that this site countersigned, with the coordinator's signature."""

    __tablename__ = "consortium_head"
    replica: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(Integer, default=0)
    root: Mapped[str] = mapped_column(String(64), default="")
    signature: Mapped[str] = mapped_column(String(128), default="")
    countersignature: Mapped[str] = mapped_column(String(128), default="")
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class StudyShare(ResearchBase):
    """De-identified studies that go to another site, or came from one; the consortium's ledger has each step.

    ``pending`` is a signed step that the coordinator does not have yet.
    """

    __tablename__ = "study_share"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    manifest_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    giver: Mapped[str] = mapped_column(String(40))
    receiver: Mapped[str] = mapped_column(String(40))
    step: Mapped[str] = mapped_column(String(16), default="")  # of the ledger, as this site knows it
    pending: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    path: Mapped[str] = mapped_column(String(255), default="")  # of received files, relative to the zone
    decided_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ConsortiumFinding(ResearchBase):
    """What was found wrong with the consortium's ledger; nothing runs here while one is open."""

    __tablename__ = "consortium_finding"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    replica: Mapped[int] = mapped_column(Integer)
    sequence: Mapped[int] = mapped_column(Integer)
    code: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(
        JSON, default=dict
    )  # the block that was refused, as it came
    found_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    resolved_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    resolved_by: Mapped[str | None] = mapped_column(String(64))
