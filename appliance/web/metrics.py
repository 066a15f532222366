"""Figures for Prometheus: counts and states, no patient's value, no row id."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from appliance import alarms, figures, silence
from appliance.db.clinical import (
    ClinicalJob,
    ClinicalLedgerEntry,
    Instance,
    ModelVersion,
    QuarantineItem,
    Result,
    Study,
    StudyRevision,
)
from appliance.db.engine import reading
from appliance.db.peers import Delivery, Peer, Traffic
from appliance.traffic import IN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstrumentedAttribute, Session

    from appliance.web.desk import Desk


def exposition(desk: Desk) -> tuple[bytes, str]:
    """Return the node's figures in Prometheus's text format, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(desk))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Node(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterable[Metric]:
        health = self._desk.health()
        yield GaugeMetricFamily("cloister_well", "1 when every check passed", value=float(health.well))
        checks = GaugeMetricFamily("cloister_check_ok", "1 when this check passed", labels=["check"])
        for check in health.checks:
            checks.add_metric([check.name], float(check.ok))
        yield checks
        disk = shutil.disk_usage(self._desk.settings.data_root)
        yield GaugeMetricFamily(
            "cloister_disk_free_bytes", "Free bytes under the data root", value=float(disk.free)
        )
        yield GaugeMetricFamily(
            "cloister_panel_sockets", "Open panel pages", value=float(self._desk.sockets.count())
        )
        with reading(self._desk.zone.engine) as session:
            yield from _tables(session)
            yield from _sources(session)
        folder = figures.folder_of(self._desk.settings)
        figures.flush(folder)
        yield from figures.families(figures.collected(folder))


def _tables(session: Session) -> Iterable[Metric]:
    yield _grouped(session, "cloister_studies", "Studies by state", ("state",), (Study.state,))
    yield _grouped(
        session,
        "cloister_jobs",
        "Clinical jobs by kind and state",
        ("kind", "state"),
        (ClinicalJob.kind, ClinicalJob.state),
    )
    yield _grouped(
        session,
        "cloister_deliveries",
        "Deliveries by state and proof",
        ("state", "proof"),
        (Delivery.state, Delivery.proof),
    )
    yield _grouped(
        session, "cloister_model_versions", "Model versions by state", ("state",), (ModelVersion.state,)
    )
    yield _grouped(session, "cloister_results", "Results by kind", ("kind",), (Result.kind,))
    for name, words, statement in (
        ("cloister_instances", "Stored instances", select(func.count(Instance.id))),
        ("cloister_study_revisions", "Assembled study revisions", select(func.count(StudyRevision.id))),
        (
            "cloister_quarantine_open",
            "Quarantined items that wait for a person",
            select(func.count(QuarantineItem.id)).where(QuarantineItem.resolved_at.is_(None)),
        ),
        (
            "cloister_ledger_entries",
            "Entries of the clinical ledger",
            select(func.count(ClinicalLedgerEntry.sequence)),
        ),
    ):
        yield GaugeMetricFamily(name, words, value=float(session.scalar(statement) or 0))


def _sources(session: Session) -> Iterable[Metric]:
    """Say what is known of peers that send; staff choose who they are, so their number is bounded."""
    silent = GaugeMetricFamily(
        "cloister_source_silent", "1 while a source is silent", labels=["ae_title", "station"]
    )
    for alarm in alarms.still_open(session, silence.SILENCE):
        silent.add_metric([str(alarm.detail["ae_title"]), str(alarm.detail["station_name"])], 1.0)
    yield silent
    unseen = sum(alarm.acknowledged_by is None for alarm in alarms.still_open(session))
    yield GaugeMetricFamily(
        "cloister_alarms_unseen", "Alarms that nobody has acknowledged", value=float(unseen)
    )
    last = GaugeMetricFamily(
        "cloister_source_last_instance_timestamp_seconds",
        "When a peer sent its last instance",
        labels=["peer"],
    )
    statement = (
        select(Peer.name, func.max(Traffic.last_at))
        .join(Traffic, Traffic.ae_title == Peer.ae_title)
        .where(Peer.may_send, Traffic.direction == IN, Traffic.station_name == "", Traffic.instances > 0)
        .group_by(Peer.name)
    )
    for name, moment in session.execute(statement):
        last.add_metric([name], moment.timestamp())
    yield last


def _grouped(
    session: Session,
    name: str,
    words: str,
    labels: tuple[str, ...],
    columns: tuple[InstrumentedAttribute[str], ...],
) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for row in session.execute(select(*columns, func.count()).group_by(*columns)):
        *values, number = row
        family.add_metric([str(value) for value in values], float(number))
    return family
