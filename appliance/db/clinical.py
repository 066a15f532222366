"""Tables of the clinical zone: identities, studies, results, models that serve.

Those of :mod:`appliance.db.peers` and :mod:`appliance.db.people` are of the same database; none here refers
to them.
"""

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


class StudyState(StrEnum):
    """Where a study stands on its way."""

    RECEIVING = "receiving"
    ASSEMBLED = "assembled"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"  # by a rule, with its reason


class Study(ClinicalBase):
    """A study as received, with its true identity."""

    __tablename__ = "study"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    issuer_of_patient_id: Mapped[str] = mapped_column(String(64), default="")
    patient_id: Mapped[str] = mapped_column(String(64), default="", index=True)
    patient_name: Mapped[str] = mapped_column(String(400), default="", index=True)
    patient_birth_date: Mapped[str] = mapped_column(String(16), default="")
    patient_sex: Mapped[str] = mapped_column(String(16), default="")
    study_date: Mapped[str] = mapped_column(String(16), default="", index=True)
    study_time: Mapped[str] = mapped_column(String(16), default="")
    accession_number: Mapped[str] = mapped_column(String(64), default="", index=True)
    referring_physician_name: Mapped[str] = mapped_column(String(400), default="")
    dicom_study_id: Mapped[str] = mapped_column(String(64), default="")  # StudyID (0020,0010)
    study_description: Mapped[str] = mapped_column(String(64), default="")
    modalities: Mapped[str] = mapped_column(String(64), default="")  # backslash-separated, sorted
    calling_ae_title: Mapped[str] = mapped_column(String(16), default="")
    state: Mapped[str] = mapped_column(String(16), default=StudyState.RECEIVING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    instance_count: Mapped[int] = mapped_column(Integer, default=0)
    revision: Mapped[int] = mapped_column(Integer, default=0)  # 0 until first assembled
    complete: Mapped[bool] = mapped_column(Boolean, default=False)  # said by its sender or by staff: no wait
    on_hold: Mapped[bool] = mapped_column(Boolean, default=False)  # no retention rule deletes it
    first_received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    pending_since: Mapped[datetime | None] = mapped_column(
        UTCDateTime
    )  # first reception that no revision holds
    series: Mapped[list[Series]] = relationship(back_populates="study", cascade="all, delete-orphan")
    revisions: Mapped[list[StudyRevision]] = relationship(
        back_populates="study", cascade="all, delete-orphan"
    )


class Series(ClinicalBase):
    """A series of a study."""

    __tablename__ = "series"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    modality: Mapped[str] = mapped_column(String(16), default="")
    body_part_examined: Mapped[str] = mapped_column(String(16), default="")
    series_number: Mapped[str] = mapped_column(String(16), default="")
    series_description: Mapped[str] = mapped_column(String(64), default="")
    protocol_name: Mapped[str] = mapped_column(String(64), default="")
    station_name: Mapped[str] = mapped_column(String(64), default="")
    institution_name: Mapped[str] = mapped_column(String(64), default="")
    manufacturer: Mapped[str] = mapped_column(String(64), default="")
    manufacturer_model_name: Mapped[str] = mapped_column(String(64), default="")
    performed_procedure_step_start_date: Mapped[str] = mapped_column(String(16), default="")
    performed_procedure_step_start_time: Mapped[str] = mapped_column(String(16), default="")
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
    instance_number: Mapped[str] = mapped_column(String(16), default="")
    rows: Mapped[int | None] = mapped_column(Integer)
    columns: Mapped[int | None] = mapped_column(Integer)
    bits_allocated: Mapped[int | None] = mapped_column(Integer)
    number_of_frames: Mapped[int | None] = mapped_column(Integer)
    catalogued: Mapped[int] = mapped_column(Integer, default=0, index=True)  # edition of the columns above
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
    # open still: "", filing, proposed, releasing; else: filed, released, reviewed, discarding, discarded; a
    # code of why may follow a colon
    resolution: Mapped[str] = mapped_column(String(32), default="", index=True)


class DecisionState(StrEnum):
    """Where a person's decision on quarantined instances stands."""

    DRAFTED = "drafted"  # tried out, not decided
    PROPOSED = "proposed"  # waits for a second person
    STANDING = "standing"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class Decision(ClinicalBase):
    """What a person decided of quarantined instances, for one, a series, or all of a machine."""

    __tablename__ = "decision"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    quarantine_item_id: Mapped[str] = mapped_column(String(32), index=True)  # on which it was made
    reason_code: Mapped[str] = mapped_column(String(48))
    outcome: Mapped[str] = mapped_column(String(16), default="")  # release, keep; empty while drafted
    scope: Mapped[str] = mapped_column(String(16), default="")  # instance, series, machine
    state: Mapped[str] = mapped_column(String(16), default=DecisionState.DRAFTED, index=True)
    verdict: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # of anonymizer.verdicts
    machine: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # what an instance of it has
    trial: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # what came of trying it out
    study_id: Mapped[str | None] = mapped_column(String(32), index=True)
    series_id: Mapped[str | None] = mapped_column(String(32))
    instance_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    decided_by: Mapped[str | None] = mapped_column(String(32))
    decided_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    confirmed_by: Mapped[str | None] = mapped_column(String(32))
    ended_by: Mapped[str | None] = mapped_column(String(32))  # who refused or withdrew it
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Rule(ClinicalBase):
    """A study rule: conditions and actions as data."""

    __tablename__ = "rule"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    position: Mapped[int] = mapped_column(Integer, default=0)
    # of appliance.grammar; empty means any study
    condition: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # of appliance.actions; empty means nothing
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
    kind: Mapped[str] = mapped_column(String(16))  # sr, sc, seg
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(String(255))
    probability: Mapped[float | None] = mapped_column(Float)
    finding: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    shadow: Mapped[bool] = mapped_column(Boolean, default=False)
    superseded: Mapped[bool] = mapped_column(Boolean, default=False)
    series_instance_uid: Mapped[str] = mapped_column(String(64), default="", index=True)
    series_number: Mapped[str] = mapped_column(String(16), default="")
    series_description: Mapped[str] = mapped_column(String(64), default="")
    modality: Mapped[str] = mapped_column(String(16), default="")
    instance_number: Mapped[str] = mapped_column(String(16), default="")
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64), default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    rows: Mapped[int | None] = mapped_column(Integer)
    columns: Mapped[int | None] = mapped_column(Integer)
    bits_allocated: Mapped[int | None] = mapped_column(Integer)
    number_of_frames: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class TextRegion(ClinicalBase):
    """Where a machine writes text into its pictures, as staff drew it: a row of the anonymizer's table."""

    __tablename__ = "text_region"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    modality: Mapped[str] = mapped_column(String(16))
    manufacturer: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int] = mapped_column(Integer)
    columns: Mapped[int] = mapped_column(Integer)
    boxes: Mapped[list[list[int]]] = mapped_column(JSON)  # left, top, right, bottom; the last two outside
    note: Mapped[str] = mapped_column(String(200), default="")
    created_by: Mapped[str] = mapped_column(String(32))
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


class Alarm(ClinicalBase):
    """Something that staff should look at: raised once, until it is over."""

    __tablename__ = "alarm"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(32), index=True)  # silence, space
    subject: Mapped[str] = mapped_column(String(80))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    raised_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    acknowledged_by: Mapped[str | None] = mapped_column(String(32))
    over_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)


class RetentionRule(ClinicalBase):
    """When received studies are deleted: what is delivered and past its time, never anything else."""

    __tablename__ = "retention_rule"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    condition: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # as of a study rule
    keep_days: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ClinicalJob(JobMixin, ClinicalBase):
    """Work of the clinical zone. Kinds: those of :mod:`appliance.broker`."""

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_due", "state", "next_try_at"),)


class ClinicalLedgerEntry(LedgerMixin, ClinicalBase):
    """The clinical zone's ledger."""

    __tablename__ = "ledger_entry"
