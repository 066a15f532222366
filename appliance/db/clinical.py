"""Tables of the clinical zone: identities, studies, results, people, models that serve."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from appliance.db.base import JobMixin, LedgerMixin, UTCDateTime, new_id, now


class ClinicalBase(DeclarativeBase):
    """Metadata of the clinical database."""


class Peer(ClinicalBase):
    """A DICOM application entity that may send to us, receive from us, or both."""

    __tablename__ = "peer"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    ae_title: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(255))  # for a sender: address or network in CIDR form
    port: Mapped[int] = mapped_column(Integer, default=0)
    may_send: Mapped[bool] = mapped_column(Boolean, default=False)
    is_destination: Mapped[bool] = mapped_column(Boolean, default=False)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    last_seen_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class RejectedCaller(ClinicalBase):
    """A caller that was refused, for staff to allow or to ignore."""

    __tablename__ = "rejected_caller"
    __table_args__ = (UniqueConstraint("calling_ae_title", "called_ae_title", "address"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    called_ae_title: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(64))
    count: Mapped[int] = mapped_column(Integer, default=1)
    first_seen_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_seen_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class StudyState(StrEnum):
    """Where a study stands on its way."""

    RECEIVING = "receiving"
    ASSEMBLED = "assembled"
    QUARANTINED = "quarantined"


class Study(ClinicalBase):
    """A study as received, with its true identity."""

    __tablename__ = "study"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    issuer_of_patient_id: Mapped[str] = mapped_column(String(64), default="")
    patient_id: Mapped[str] = mapped_column(String(64), default="", index=True)
    patient_name: Mapped[str] = mapped_column(String(400), default="")
    study_date: Mapped[str] = mapped_column(String(16), default="")
    study_description: Mapped[str] = mapped_column(String(64), default="")
    modalities: Mapped[str] = mapped_column(String(64), default="")  # backslash-separated, sorted
    calling_ae_title: Mapped[str] = mapped_column(String(16), default="")
    state: Mapped[str] = mapped_column(String(16), default=StudyState.RECEIVING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    instance_count: Mapped[int] = mapped_column(Integer, default=0)
    revision: Mapped[int] = mapped_column(Integer, default=0)  # 0 until first assembled
    first_received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    series: Mapped[list[Series]] = relationship(back_populates="study", cascade="all, delete-orphan")
    revisions: Mapped[list[StudyRevision]] = relationship(
        back_populates="study", cascade="all, delete-orphan"
    )


class Series(ClinicalBase):
    """A series of a study."""

    __tablename__ = "series"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16), default="")
    body_part_examined: Mapped[str] = mapped_column(String(16), default="")
    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list[Instance]] = relationship(back_populates="series", cascade="all, delete-orphan")
    __table_args__ = (UniqueConstraint("study_id", "series_instance_uid"),)


class Instance(ClinicalBase):
    """One stored instance; ``path`` is relative to the clinical storage root."""

    __tablename__ = "instance"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    series_id: Mapped[str] = mapped_column(ForeignKey("series.id", ondelete="CASCADE"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(16), default="")
    received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    series: Mapped[Series] = relationship(back_populates="instances")


class StudyRevision(ClinicalBase):
    """A study as assembled at one moment; late instances make the next revision."""

    __tablename__ = "study_revision"
    __table_args__ = (UniqueConstraint("study_id", "number"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    instance_count: Mapped[int] = mapped_column(Integer)
    assembled_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    rule_outcome: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # matched rules, with the reason
    deidentification_state: Mapped[str] = mapped_column(
        String(16), default=""
    )  # "", released, partial, quarantined
    released_count: Mapped[int] = mapped_column(Integer, default=0)
    quarantined_count: Mapped[int] = mapped_column(Integer, default=0)
    study: Mapped[Study] = relationship(back_populates="revisions")


class QuarantineItem(ClinicalBase):
    """Something that was stopped, with the reason; ``path`` is relative to the clinical storage root."""

    __tablename__ = "quarantine_item"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    stage: Mapped[str] = mapped_column(String(24), index=True)  # index, assemble, deidentify, deliver
    reason_code: Mapped[str] = mapped_column(String(48))
    reason: Mapped[str] = mapped_column(Text)  # never a patient's value
    study_id: Mapped[str | None] = mapped_column(String(32), index=True)
    instance_id: Mapped[str | None] = mapped_column(String(32), index=True)
    dedupe_key: Mapped[str] = mapped_column(String(200), unique=True)
    path: Mapped[str | None] = mapped_column(String(255))
    calling_ae_title: Mapped[str] = mapped_column(String(16), default="")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    resolved_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Rule(ClinicalBase):
    """A study rule: conditions and actions as data."""

    __tablename__ = "rule"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    position: Mapped[int] = mapped_column(Integer, default=0)
    # modality, body_part, calling_ae_title: lists; description: a regular expression; absent means any
    condition: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # research, inference: booleans; destinations: names of peers; priority: 0 is the most urgent
    action: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ModelState(StrEnum):
    """Life of a model version (DESIGN: Models)."""

    CANDIDATE = "candidate"
    EVALUATED = "evaluated"
    SHADOW = "shadow"
    ACTIVE = "active"
    RETIRED = "retired"
    REFUSED = "refused"


class ModelVersion(ClinicalBase):
    """A model package that came through the door in; ``path`` is relative to the clinical storage root."""

    __tablename__ = "model_version"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[str] = mapped_column(String(64))
    package_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default=ModelState.CANDIDATE, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    signer: Mapped[str] = mapped_column(String(64), default="")
    modalities: Mapped[str] = mapped_column(String(64), default="")
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    provenance: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    decided_by: Mapped[str | None] = mapped_column(String(32))
    decided_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Result(ClinicalBase):
    """A DICOM instance that inference made; ``path`` is relative to the clinical storage root."""

    __tablename__ = "result"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    study_revision_id: Mapped[str] = mapped_column(
        ForeignKey("study_revision.id", ondelete="CASCADE"), index=True
    )
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))  # sr, sc
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(String(255))
    probability: Mapped[float | None] = mapped_column(Float)
    finding: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    shadow: Mapped[bool] = mapped_column(Boolean, default=False)
    superseded: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Delivery(ClinicalBase):
    """A result on its way to one destination; the work itself is a job of kind ``deliver`` on this row."""

    __tablename__ = "delivery"
    __table_args__ = (UniqueConstraint("result_id", "peer_id"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    result_id: Mapped[str] = mapped_column(ForeignKey("result.id", ondelete="CASCADE"), index=True)
    peer_id: Mapped[str] = mapped_column(ForeignKey("peer.id"), index=True)
    state: Mapped[str] = mapped_column(
        String(16), default="queued", index=True
    )  # queued, delivered, withheld, dead
    reason: Mapped[str | None] = mapped_column(Text)
    delivered_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class VaultEntry(ClinicalBase):
    """Pseudonym to identity, encrypted (AES-256-GCM) with the vault's own key file."""

    __tablename__ = "vault_entry"
    pseudonym: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(40), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16))
    nonce: Mapped[str] = mapped_column(String(32))
    ciphertext: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class User(ClinicalBase):
    """A person who signs in to the panel."""

    __tablename__ = "user"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))  # argon2id
    rights: Mapped[list[str]] = mapped_column(JSON, default=list)  # appliance.auth.rights.Right
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    failed_attempts: Mapped[int] = mapped_column(Integer, default=0)
    locked_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class UserSession(ClinicalBase):
    """A signed-in browser; only the hash of its cookie is stored."""

    __tablename__ = "user_session"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ClinicalJob(JobMixin, ClinicalBase):
    """Work of the clinical zone. Kinds: deidentify, infer, deliver, evaluate."""

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_due", "state", "next_try_at"),)


class ClinicalLedgerEntry(LedgerMixin, ClinicalBase):
    """The clinical zone's ledger."""

    __tablename__ = "ledger_entry"
