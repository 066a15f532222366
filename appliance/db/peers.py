"""Tables of the clinical zone: other application entities, and what goes between them and this node."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from appliance.db.base import UTCDateTime, new_id, now
from appliance.db.clinical import ClinicalBase


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
    may_query: Mapped[bool] = mapped_column(Boolean, default=False)  # C-FIND, C-MOVE, C-GET of what we hold
    is_archive: Mapped[bool] = mapped_column(Boolean, default=False)  # we query it and fetch from it
    protocol: Mapped[str] = mapped_column(String(16), default="dimse")  # dimse, dicomweb
    url: Mapped[str] = mapped_column(String(255), default="")  # base of a DICOMweb peer's services
    credential: Mapped[str] = mapped_column(String(64), default="")  # name of a file among the zone's secrets
    tls: Mapped[bool] = mapped_column(Boolean, default=False)
    certificate_sha256: Mapped[str] = mapped_column(String(64), default="")  # that it must show, if given
    max_associations: Mapped[int] = mapped_column(
        Integer, default=0
    )  # at once; 0: the node's own bound alone
    max_instances_per_minute: Mapped[int] = mapped_column(Integer, default=0)  # received; 0: no bound
    max_kib_per_s: Mapped[int] = mapped_column(Integer, default=0)  # sent or fetched; 0: no bound
    quiet_period_s: Mapped[float | None] = mapped_column(
        Float
    )  # of its studies; None: as the node's settings
    max_wait_s: Mapped[float | None] = mapped_column(Float)
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64), default="")  # to send in; "": as stored
    commitment: Mapped[bool] = mapped_column(Boolean, default=False)  # ask it to commit what it stored
    schedule: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # when it may be sent to; {}: always
    watch_silence: Mapped[bool] = mapped_column(Boolean, default=True)
    failures: Mapped[int] = mapped_column(Integer, default=0)  # in a row, that concern it and no one result
    rests_until: Mapped[datetime | None] = mapped_column(UTCDateTime)  # nothing is sent to it before
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
    tls: Mapped[bool] = mapped_column(Boolean, default=False)
    certificate_sha256: Mapped[str] = mapped_column(String(64), default="")  # that it showed last
    count: Mapped[int] = mapped_column(Integer, default=1)
    first_seen_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_seen_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class Traffic(ClinicalBase):
    """What one application entity, and one station behind it, sent or was sent in one hour."""

    __tablename__ = "traffic"
    __table_args__ = (UniqueConstraint("hour", "direction", "ae_title", "station_name"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    hour: Mapped[datetime] = mapped_column(UTCDateTime, index=True)  # its beginning
    direction: Mapped[str] = mapped_column(String(8))  # in, out
    ae_title: Mapped[str] = mapped_column(String(16))
    station_name: Mapped[str] = mapped_column(String(64), default="")  # "": all of them, with associations
    associations: Mapped[int] = mapped_column(Integer, default=0)
    rejected: Mapped[int] = mapped_column(Integer, default=0)
    instances: Mapped[int] = mapped_column(Integer, default=0)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    last_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


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
    proof: Mapped[str] = mapped_column(String(16), default="")  # stored, committed, read_back
    proved_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    transaction_uid: Mapped[str] = mapped_column(
        String(64), default="", index=True
    )  # of the commitment asked for
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class CommitmentRequest(ClinicalBase):
    """A storage commitment that a peer asked of us (PS3.4 annex J); a job of kind ``report`` answers it."""

    __tablename__ = "commitment_request"
    __table_args__ = (UniqueConstraint("calling_ae_title", "transaction_uid"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    transaction_uid: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    called_ae_title: Mapped[str] = mapped_column(String(16), default="")
    address: Mapped[str] = mapped_column(String(64), default="")
    items: Mapped[list[Any]] = mapped_column(JSON, default=list)  # pairs of SOP class and instance UID
    state: Mapped[str] = mapped_column(String(16), default="open", index=True)  # open, reported, dead
    failed_count: Mapped[int] = mapped_column(Integer, default=0)
    reason: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    reported_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class PerformedProcedureStep(ClinicalBase):
    """A modality's performed procedure step (PS3.4 annex F.7): says when a study is complete."""

    __tablename__ = "performed_procedure_step"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    study_instance_uids: Mapped[list[str]] = mapped_column(JSON, default=list)
    status: Mapped[str] = mapped_column(String(16))  # IN PROGRESS, COMPLETED, DISCONTINUED
    calling_ae_title: Mapped[str] = mapped_column(String(16), default="")
    instances: Mapped[list[str]] = mapped_column(JSON, default=list)  # SOP Instance UIDs it performed
    settled: Mapped[bool] = mapped_column(Boolean, default=False)  # looked at for the last time
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)


class Fetch(ClinicalBase):
    """Studies to be pulled from an archive; a job of kind ``fetch`` works on this row."""

    __tablename__ = "fetch"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    peer_id: Mapped[str] = mapped_column(ForeignKey("peer.id"), index=True)
    query: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)  # matching keys by keyword
    options: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # method, hours, limit
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    requested_by: Mapped[str] = mapped_column(String(64), default="node")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class FetchedStudy(ClinicalBase):
    """One study of a fetch, and how far it is."""

    __tablename__ = "fetched_study"
    __table_args__ = (UniqueConstraint("fetch_id", "study_instance_uid"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    fetch_id: Mapped[str] = mapped_column(ForeignKey("fetch.id", ondelete="CASCADE"), index=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)  # queued, done, failed
    expected: Mapped[int | None] = mapped_column(Integer)  # instances, where the archive says so
    received: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    reason: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)
