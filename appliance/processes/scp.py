"""The storage SCP: receives into the inbox and waits for nothing else."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from appliance import figures, logs, node
from appliance.processes import base
from appliance.processes.siblings import Siblings
from appliance.traffic import IN, Flow, Meter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.callers import DatabaseCallers
    from appliance.peers import CallerRecorder
    from appliance.places import SharedPlaces
    from appliance.settings import DICOMSettings
    from dicom_node.inbox import InboxEntry
    from dicom_node.ports import Caller
    from dicom_node.scp import SCPConfig
    from dicom_node.tls import TLSOptions

PERIOD_S: Final = 1.0
TLS: Final = "scp_tls"  # name of the published port
LISTENING: Final = "scp.listening"
DRAINING: Final = "scp.draining"
ASSOCIATION_ACCEPTED: Final = "scp.association_accepted"
ASSOCIATION_REJECTED: Final = "scp.association_rejected"
INSTANCE_REFUSED: Final = "scp.instance_refused"
FAILED: Final = "scp.failed"
DATABASE_AWAY: Final = "scp.database_away"

_LOG = logs.logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("scp", _body, argv, lambda settings: settings.dicom.drain_s + base.STOP_WITHIN_S)


class Reporter:
    """Listener of the SCP: counts in memory, logs codes, and hands callers to the recorder."""

    def __init__(self, recorder: CallerRecorder, meter: Meter) -> None:
        self._recorder = recorder
        self._meter = meter
        self._lock = threading.Lock()
        self._counts = {"received": 0, "refused": 0, "bytes": 0}

    def counts(self) -> dict[str, int]:
        """Return what happened since the start."""
        with self._lock:
            return dict(self._counts)

    def on_accepted(self, caller: Caller) -> None:
        """Note a known caller."""
        self._recorder.accepted(caller)
        self._meter.note(Flow(IN, caller.calling_ae_title, associations=1))
        figures.observe(figures.ASSOCIATIONS, 1, "accepted")
        _LOG.info(ASSOCIATION_ACCEPTED)

    def on_rejected(self, caller: Caller, reason: str) -> None:
        """Note a caller that was turned away; who it was is in the database, not in the log."""
        self._recorder.rejected(caller, reason)
        self._meter.note(Flow(IN, caller.calling_ae_title, rejected=1))
        figures.observe(figures.ASSOCIATIONS, 1, "rejected")
        _LOG.warning(ASSOCIATION_REJECTED, reason=reason)

    def on_received(self, entry: InboxEntry) -> None:
        """Count."""
        figures.observe(figures.RECEIVE_SECONDS, entry.receiving_s)
        figures.observe(figures.RECEIVE_BYTES, entry.size_bytes)
        with self._lock:
            self._counts["received"] += 1
            self._counts["bytes"] += entry.size_bytes

    def on_refused(self, caller: Caller, status: int, reason: str) -> None:
        """Count and log."""
        self._meter.note(Flow(IN, caller.calling_ae_title, failures=1))
        with self._lock:
            self._counts["refused"] += 1
        figures.observe(figures.REFUSED, 1, f"{status:04x}")
        _LOG.warning(INSTANCE_REFUSED, status=f"{status:04x}", reason=reason)

    def on_failed(self, caller: Caller, error: Exception) -> None:
        """Log an unforeseen error."""
        del caller
        _LOG.error(FAILED, exc_info=error)


def _body(process: base.Process) -> None:
    from appliance import dimse, proofs  # noqa: PLC0415 - signals and logs first
    from appliance.callers import SNAPSHOT, DatabaseCallers  # noqa: PLC0415
    from appliance.intake import open_inbox  # noqa: PLC0415
    from appliance.names import Names  # noqa: PLC0415
    from appliance.peers import CallerRecorder  # noqa: PLC0415
    from appliance.space import WithSpace  # noqa: PLC0415
    from dicom_node.scp import StorageSCP  # noqa: PLC0415

    zone = node.open_clinical(process.settings)
    dicom = process.settings.dicom
    names = Names()
    names.start()
    callers = DatabaseCallers(zone.engine, names, zone.root / SNAPSHOT)
    recorder = CallerRecorder(zone.engine)
    meter = Meter(zone.engine)
    reporter = Reporter(recorder, meter)
    _talk_to_database(callers, recorder, meter)
    inbox = open_inbox(zone, process.name)
    policy = WithSpace(callers, dicom, inbox.root)
    services = dimse.services(zone, partial(proofs.take_report, zone))
    scp = StorageSCP(_config(process), inbox, policy, reporter, services, _places(process))
    port = scp.start()
    siblings = Siblings("scp", process, 1 if process.number else dicom.processes)
    try:
        if not process.number:
            node.publish_port(process.settings, "scp", port)
            node.publish_port(process.settings, TLS, scp.tls_port)
        _LOG.info(LISTENING, port=port)
        while not process.stopping.is_set():
            siblings.look()
            _talk_to_database(callers, recorder, meter)
            detail: dict[str, Any] = {**reporter.counts(), "associations": scp.association_count}
            process.beat(**siblings.add_to(detail))
            process.stopping.wait(PERIOD_S)
    finally:
        _LOG.info(DRAINING, associations=scp.association_count)
        siblings.tell_to_stop()
        scp.stop(drain_s=0.0 if process.orphaned else dicom.drain_s)
        siblings.stop()
        _talk_to_database(callers, recorder, meter)


def _config(process: base.Process) -> SCPConfig:
    """Return how this process listens: all but the first on the ports that the first has."""
    from dicom_node.scp import SCPConfig  # noqa: PLC0415 - signals and logs first

    settings, dicom = process.settings, process.settings.dicom
    ports = dicom.port, dicom.tls_port
    if process.number:
        ports = node.bound_port(settings, "scp", wait_s=0), node.bound_port(settings, TLS, wait_s=0)
    return SCPConfig(
        ae_title=dicom.ae_title,
        host=dicom.host,
        port=ports[0],
        max_associations=dicom.max_associations,
        network_timeout_s=dicom.network_timeout_s,
        plain=dicom.plain,
        tls=_tls(dicom),
        tls_port=ports[1],
        shared=dicom.processes > 1,
    )


def _places(process: base.Process) -> SharedPlaces | None:
    """Return the places that the receivers share; one that is alone needs none."""
    from appliance.places import SharedPlaces  # noqa: PLC0415 - signals and logs first

    if process.settings.dicom.processes == 1:
        return None
    return SharedPlaces(node.run_dir(process.settings) / "places")


def _tls(dicom: DICOMSettings) -> TLSOptions | None:
    from dicom_node.tls import TLSOptions  # noqa: PLC0415 - signals and logs first

    if not dicom.tls_port:
        return None
    return TLSOptions(
        certificate=dicom.tls_certificate,
        key=dicom.tls_key,
        ca=dicom.tls_ca,
        client_certificates=dicom.tls_client_certificates,
    )


def _talk_to_database(callers: DatabaseCallers, recorder: CallerRecorder, meter: Meter) -> None:
    """Renew who may send and write who was turned away; without a database receiving goes on as before."""
    try:
        callers.refresh()
        recorder.flush()
        meter.flush()
    except SQLAlchemyError as error:
        _LOG.warning(DATABASE_AWAY, error=type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
