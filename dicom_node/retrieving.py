"""The Retrieve SCP: C-MOVE and C-GET (PS3.4 C.4.2, C.4.3).

Instances go out in the transfer syntax they are stored in, byte for byte. Only where a peer does not take
that one, they are converted to an uncompressed one that it takes.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pynetdicom.dimse_primitives import C_GET, C_MOVE

from dicom_node import sending
from dicom_node.errors import HeaderError
from dicom_node.identifiers import PATIENT_ROOT, STUDY_ROOT, IdentifierError, encode, read_retrieval
from dicom_node.negotiation import IMPLICIT_VR_LITTLE_ENDIAN, Roles
from dicom_node.query import Level, Query, QueryError
from dicom_node.scu import EXPLICIT_VR_LITTLE_ENDIAN, AssociationError, associate
from dicom_node.services import RequestError, Service
from dicom_node.throttle import Throttle
from dicom_node.transcoding import TranscodingError, can_transcode, transcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pynetdicom.association import Association

    from dicom_node.ports import Caller, Catalogue, Decision
    from dicom_node.query import StoredInstance
    from dicom_node.scu import Destination
    from dicom_node.services import Exchange

PATIENT_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"

# PS3.4 tables C.4-2 and C.4-3.
SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
CANCELLED: Final = 0xFE00
SUBOPERATIONS_WITH_FAILURES: Final = 0xB000
TOO_MANY_MATCHES: Final = 0xA701
NO_SUBOPERATION_POSSIBLE: Final = 0xA702
DESTINATION_UNKNOWN: Final = 0xA801
IDENTIFIER_DOES_NOT_MATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000

MAX_INSTANCES: Final = 65_535  # the counts of the responses are 16-bit numbers
_MAX_CONTEXTS: Final = 128
_STORE_WARNINGS: Final = frozenset({0xB000, 0xB006, 0xB007})
_MAX_FAILED_BYTES: Final = 60_000  # of a list of UIDs, in the answer

_PLAIN: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

_LEVELS: Final = {
    PATIENT_ROOT_MOVE: PATIENT_ROOT,
    PATIENT_ROOT_GET: PATIENT_ROOT,
    STUDY_ROOT_MOVE: STUDY_ROOT,
    STUDY_ROOT_GET: STUDY_ROOT,
}


class RetrievalListener(Protocol):
    """Is told what was retrieved; it may wait for a database."""

    def on_retrieved(
        self, caller: Caller, destination: str, instances: Sequence[StoredInstance], completed: int
    ) -> None:
        """Take note that so many of these instances went to an AE title, asked for by a caller."""


@dataclass
class _Counts:
    remaining: int
    completed: int = 0
    warnings: int = 0
    failed: list[str] = field(default_factory=list)

    def note(self, instance: StoredInstance, status: int | None) -> None:
        """Count one sub-operation; None: nothing was answered."""
        self.remaining -= 1
        if status == SUCCESS:
            self.completed += 1
        elif status in _STORE_WARNINGS:
            self.warnings += 1
        else:
            self.failed.append(instance.sop_instance_uid)

    def fields(self, *, with_remaining: bool) -> dict[str, int]:
        """Return the counts as a response has them (PS3.7 9.1.3.1, 9.1.4.1)."""
        found = {
            "NumberOfCompletedSuboperations": self.completed,
            "NumberOfFailedSuboperations": len(self.failed),
            "NumberOfWarningSuboperations": self.warnings,
        }
        return {**found, "NumberOfRemainingSuboperations": self.remaining} if with_remaining else found


def get_service(catalogue: Catalogue, listener: RetrievalListener) -> Service:
    """Return the service that sends instances on the association that asks for them."""

    def answer(exchange: Exchange) -> None:
        instances = _wanted(exchange, catalogue)
        counts = _Counts(len(instances))
        try:
            for number, instance in enumerate(instances):
                if exchange.cancelled():
                    break
                message_id = number % 0xFFFF + 1
                counts.note(instance, _send(exchange.association, instance, message_id, None))
                if counts.remaining:
                    exchange.respond(PENDING, fields=counts.fields(with_remaining=True))
        finally:
            _tell(listener, exchange, exchange.caller.calling_ae_title, instances, counts)
        _conclude(exchange, counts)

    return Service(
        roles={PATIENT_ROOT_GET: Roles(), STUDY_ROOT_GET: Roles()},
        answers={C_GET: answer},
        permitted=_may_query,
        failure=UNABLE_TO_PROCESS,
        sends_instances=True,
    )


def move_service(
    catalogue: Catalogue,
    listener: RetrievalListener,
    destination_of: Callable[[str], Destination | None],
    ae_title: str,
) -> Service:
    """Return the service that sends instances to another application entity.

    Parameters
    ----------
    catalogue : Catalogue
    listener : RetrievalListener
    destination_of : callable
        Where an AE title is; None for one that nothing may be sent to.
    ae_title : str
        Ours.
    """

    def answer(exchange: Exchange) -> None:
        title = str(exchange.request.MoveDestination or "").strip()
        destination = destination_of(title) if title else None
        if destination is None:
            raise RequestError(DESTINATION_UNKNOWN, "no destination of this AE title")
        instances = _wanted(exchange, catalogue)
        counts = _Counts(len(instances))
        try:
            for batch in _batches(instances):
                _move(exchange, batch, destination, ae_title, counts)
        finally:
            _tell(listener, exchange, title, instances, counts)
        _conclude(exchange, counts)

    return Service(
        roles={PATIENT_ROOT_MOVE: Roles(), STUDY_ROOT_MOVE: Roles()},
        answers={C_MOVE: answer},
        permitted=_may_query,
        failure=UNABLE_TO_PROCESS,
    )


def _may_query(decision: Decision) -> bool:
    return decision.may_query


def _wanted(exchange: Exchange, catalogue: Catalogue) -> Sequence[StoredInstance]:
    try:
        level, keys = read_retrieval(exchange.data_set("Identifier"), _LEVELS[exchange.abstract_syntax])
        found = _instances(catalogue, level, keys)
    except (IdentifierError, QueryError, RequestError) as error:
        raise RequestError(IDENTIFIER_DOES_NOT_MATCH, str(error)) from error
    if len(found) > MAX_INSTANCES:
        raise RequestError(TOO_MANY_MATCHES, f"expected at most {MAX_INSTANCES} instances")
    return found


def _instances(catalogue: Catalogue, level: Level, keys: Mapping[str, str]) -> Sequence[StoredInstance]:
    """Return the instances under the unique keys; those of a patient by way of the patient's studies."""
    studies = keys.get("StudyInstanceUID", "")
    if "PatientID" in keys:
        match = {"PatientID": keys["PatientID"], "StudyInstanceUID": studies}
        found = catalogue.find(Query(Level.STUDY, match))
        studies = "\\".join(study["StudyInstanceUID"] for study in found)
        if not studies:
            return []
    if level in {Level.PATIENT, Level.STUDY}:
        listed = studies.split("\\")
        return [instance for study in listed for instance in catalogue.instances(study)]
    return catalogue.instances(studies, keys["SeriesInstanceUID"], keys.get("SOPInstanceUID", ""))


def _pairs(instances: Iterable[StoredInstance]) -> dict[tuple[str, str], None]:
    """Return SOP class and transfer syntax of each presentation context that the instances need."""
    pairs = {(item.sop_class_uid, item.transfer_syntax_uid): None for item in instances}
    others = {(uid, plain): None for uid, syntax in pairs for plain in _PLAIN if can_transcode(syntax, plain)}
    return pairs | others


def _batches(instances: Sequence[StoredInstance]) -> list[list[StoredInstance]]:
    """Split so that the presentation contexts of each part fit into one association."""
    batches: list[list[StoredInstance]] = []
    pairs: dict[tuple[str, str], None] = {}
    for instance in instances:
        more = pairs | _pairs([instance])
        if not batches or len(more) > _MAX_CONTEXTS:
            batches.append([])
            more = _pairs([instance])
        pairs = more
        batches[-1].append(instance)
    return batches


def _move(
    exchange: Exchange,
    batch: Sequence[StoredInstance],
    destination: Destination,
    ae_title: str,
    counts: _Counts,
) -> None:
    if exchange.cancelled() or not exchange.is_open:
        return
    try:
        association = associate(destination, ae_title, [(uid, [syntax]) for uid, syntax in _pairs(batch)])
    except AssociationError:
        for instance in batch:
            counts.note(instance, None)
        return
    originator = (exchange.caller.calling_ae_title, int(exchange.request.MessageID))
    pace = Throttle(destination.max_kib_per_s).take
    try:
        for number, instance in enumerate(batch):
            if exchange.cancelled() or not exchange.is_open:
                break
            counts.note(instance, _send(association, instance, number % 0xFFFF + 1, originator, pace))
            if counts.remaining:
                exchange.respond(PENDING, fields=counts.fields(with_remaining=True))
    finally:
        if association.is_established:
            association.release()


def _send(
    association: Association,
    instance: StoredInstance,
    message_id: int,
    originator: tuple[str, int] | None,
    pace: Callable[[int], None] | None = None,
) -> int | None:
    syntax = _conversion(association, instance)
    send = functools.partial(
        sending.send_store, association, message_id=message_id, originator=originator, on_bytes=pace
    )
    try:
        if not syntax:
            return send(instance.path)
        with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
            converted = Path(folder, "converted.dcm")
            transcode(instance.path, converted, syntax)
            return send(converted)
    except sending.SendingError as error:
        if error.ended and association.is_acceptor:
            raise
        return None
    except (OSError, HeaderError, TranscodingError):
        return None


def _conversion(association: Association, instance: StoredInstance) -> str:
    """Return the transfer syntax to convert to, where the peer does not take the one that is stored."""
    stored = instance.transfer_syntax_uid
    accepted = sending.accepted_syntaxes(association, instance.sop_class_uid)
    if stored in accepted:
        return ""
    return next((uid for uid in _PLAIN if uid in accepted and can_transcode(stored, uid)), "")


def _tell(
    listener: RetrievalListener,
    exchange: Exchange,
    destination: str,
    instances: Sequence[StoredInstance],
    counts: _Counts,
) -> None:
    if counts.completed or counts.warnings:
        listener.on_retrieved(exchange.caller, destination, instances, counts.completed + counts.warnings)


def _conclude(exchange: Exchange, counts: _Counts) -> None:
    failed = _failed_list(counts.failed, explicit=exchange.explicit)
    if counts.remaining:
        exchange.respond(CANCELLED, data=failed, fields=counts.fields(with_remaining=True))
        return
    if not counts.failed and not counts.warnings:
        status = SUCCESS
    elif counts.completed or counts.warnings:
        status = SUBOPERATIONS_WITH_FAILURES
    else:
        status = NO_SUBOPERATION_POSSIBLE
    exchange.respond(status, data=failed, fields=counts.fields(with_remaining=False))


def _failed_list(failed: Sequence[str], *, explicit: bool) -> bytes:
    """Return the identifier that lists what was not sent, cut where its length would end."""
    if not failed:
        return b""
    kept: list[str] = []
    size = 0
    for uid in failed:
        size += len(uid) + 1
        if size > _MAX_FAILED_BYTES:
            break
        kept.append(uid)
    return encode({"FailedSOPInstanceUIDList": "\\".join(kept)}, explicit=explicit)
