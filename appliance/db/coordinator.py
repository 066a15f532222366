"""Tables of a federation's coordinator: runs and finished rounds are the truth, engine jobs are not."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from appliance.db.base import LedgerMixin, UTCDateTime, new_id, now


class CoordinatorBase(DeclarativeBase):
    """Metadata of the coordinator's database."""


class RunState(StrEnum):
    """States of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    STOPPED = "stopped"
    PAUSED = "paused"


class Run(CoordinatorBase):
    """A federated training: a chain of engine jobs that together finish ``total_rounds``."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64))
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    plan_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=RunState.QUEUED, index=True)
    total_rounds: Mapped[int] = mapped_column(Integer)
    min_sites: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str | None] = mapped_column(Text)
    engine_job_id: Mapped[str | None] = mapped_column(String(64))
    engine_jobs: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)


class FinishedRound(CoordinatorBase):
    """One aggregated round; the checkpoint (safetensors) is written and fsynced before this row."""

    __tablename__ = "finished_round"
    __table_args__ = (UniqueConstraint("run_id", "number"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    number: Mapped[int] = mapped_column(Integer)  # 1-based; 0 is the initial model
    checkpoint_path: Mapped[str] = mapped_column(String(255))
    model_sha256: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Contribution(CoordinatorBase):
    """One site's update as counted in one finished round."""

    __tablename__ = "contribution"
    __table_args__ = (UniqueConstraint("run_id", "number", "site"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    site: Mapped[str] = mapped_column(String(40))
    samples: Mapped[int] = mapped_column(Integer)
    update_sha256: Mapped[str] = mapped_column(String(64))
    bytes_received: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    accepted: Mapped[bool] = mapped_column(default=True)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class CoordinatorLedgerEntry(LedgerMixin, CoordinatorBase):
    """The coordinator's ledger."""

    __tablename__ = "ledger_entry"


class MemberState(StrEnum):
    """States of a member of the federation."""

    ACTIVE = "active"
    LEFT = "left"
    EXPELLED = "expelled"


class Member(CoordinatorBase):
    """A site of the federation. Its certificate is good while it is active, and for this name alone."""

    __tablename__ = "member"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    state: Mapped[str] = mapped_column(String(16), default=MemberState.ACTIVE)
    # Raw Ed25519 public key of the site's research zone, as hex; what it signs is checked with this.
    signing_key: Mapped[str | None] = mapped_column(String(64))
    certificate_serial: Mapped[str] = mapped_column(String(40))  # hex
    previous_serial: Mapped[str | None] = mapped_column(String(40))  # good until its own end, for a renewal
    certificate_ends_at: Mapped[datetime] = mapped_column(UTCDateTime)
    joined_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    left_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Invitation(CoordinatorBase):
    """A one-time right to enrol under one name; of the code's secret only the hash stands here."""

    __tablename__ = "invitation"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    site: Mapped[str] = mapped_column(String(40), index=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    failed_attempts: Mapped[int] = mapped_column(Integer, default=0)
    used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    withdrawn_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ConsortiumBlock(CoordinatorBase):
    """A block of the consortium's ledger; written with what it tells of, in one transaction."""

    __tablename__ = "consortium_block"
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    body: Mapped[str] = mapped_column(Text)
    signature: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Countersignature(CoordinatorBase):
    """The newest head that a site countersigned."""

    __tablename__ = "countersignature"
    site: Mapped[str] = mapped_column(String(40), primary_key=True)
    size: Mapped[int] = mapped_column(Integer)
    root: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)
