"""The services of the node's SCP beside verification and storage, joined with the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import figures, logs, peers, traffic
from appliance.catalogue import DatabaseCatalogue
from appliance.commitment import DatabaseKeeper
from appliance.completion import DatabaseSteps
from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from dicom_node import finding, retrieving
from dicom_node.commitment import commitment_service
from dicom_node.procedure_steps import availability_service, procedure_step_service

if TYPE_CHECKING:
    from appliance.node import ClinicalZone
    from dicom_node.commitment import Report
    from dicom_node.ports import Caller
    from dicom_node.query import StoredInstance
    from dicom_node.scu import Destination
    from dicom_node.services import Exchange, Service

STUDY_RETRIEVED: Final = "study.retrieved"
RETRIEVED: Final = "scp.retrieved"

_LOG = logs.logger(__name__)


OnReport = Callable[["Caller", "Report"], bool]


def unasked(caller: Caller, report: Report) -> bool:
    """Refuse a report that nobody waits for."""
    del caller, report
    return False


def services(zone: ClinicalZone, on_commitment_report: OnReport = unasked) -> list[Service]:
    """Return the further services of a clinical zone's SCP.

    Parameters
    ----------
    zone : ClinicalZone
    on_commitment_report : callable
        Takes who reports, and the report on what was committed for us; says whether we had asked for it.
    """
    catalogue, recorder = DatabaseCatalogue(zone), Retrievals(zone)
    ae_title, steps = zone.settings.dicom.ae_title, DatabaseSteps(zone)

    def destination(title: str) -> Destination | None:
        return destination_of(zone, title)

    offered = [
        finding.find_service(catalogue, ae_title),
        retrieving.get_service(catalogue, recorder),
        retrieving.move_service(catalogue, recorder, destination, ae_title),
        commitment_service(DatabaseKeeper(zone, on_commitment_report), ae_title),
        procedure_step_service(steps),
        availability_service(steps),
    ]
    return [_timed(service) for service in offered]


def _timed(service: Service) -> Service:
    """Return the service, with its answers timed."""

    def timed(kind: type, answer: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
        @wraps(answer)
        def answer_timed(exchange: Exchange) -> None:
            with figures.timed(figures.DIMSE_SECONDS, kind.__name__.replace("_", "-")):
                answer(exchange)

        return answer_timed

    return replace(service, answers={kind: timed(kind, answer) for kind, answer in service.answers.items()})


def destination_of(zone: ClinicalZone, ae_title: str) -> Destination | None:
    """Return where an enabled destination with this AE title takes instances; None where there is none."""
    wanted = (Peer.enabled, Peer.is_destination, Peer.protocol == "dimse", Peer.port > 0)
    with reading(zone.engine) as session:
        peer = session.scalar(
            select(Peer).where(*wanted, Peer.ae_title == ae_title).order_by(Peer.id).limit(1)
        )
        if peer is None:
            return None
        return peers.destination_of(peer, zone.settings.dicom, zone.settings.dicom.network_timeout_s)


class Retrievals:
    """Writes to the ledger which studies left the node, and how much of them."""

    def __init__(self, zone: ClinicalZone) -> None:
        self._zone = zone

    def on_retrieved(
        self, caller: Caller, destination: str, instances: Sequence[StoredInstance], completed: int
    ) -> None:
        """Record a retrieval; who asked and who received are peers, by their row ids."""
        studies = {instance.study_instance_uid for instance in instances}
        asked = len(instances)
        with writing(self._zone.engine) as session:
            titles = select(Peer.id, Peer.ae_title).where(
                Peer.ae_title.in_([caller.calling_ae_title, destination])
            )
            known = {title: row_id for row_id, title in session.execute(titles)}
            body = {
                "by": known.get(caller.calling_ae_title),
                "to": known.get(destination),
                "asked": asked,
                "sent": completed,
            }
            for uid in sorted(studies):
                row_id = session.scalar(select(Study.id).where(Study.study_instance_uid == uid))
                if row_id is not None:
                    self._zone.ledger.append(session, kind=STUDY_RETRIEVED, subject_id=row_id, body=body)
            traffic.add(session, [_sent(destination, instances, completed)])
        _LOG.info(RETRIEVED, asked=asked, sent=completed)


def _sent(destination: str, instances: Sequence[StoredInstance], completed: int) -> traffic.Flow:
    """Return what went out; where some could not be sent, their size is left out by the average."""
    asked = len(instances)
    size = sum(instance.size_bytes for instance in instances) * completed // asked
    return traffic.Flow(
        traffic.OUT,
        destination,
        associations=1,
        instances=completed,
        size_bytes=size,
        failures=asked - completed,
    )
