"""Storage Commitment, both sides (PS3.4 annex J): the request, who keeps it, and the report on it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DICOMSequence
from pynetdicom import build_role, evt
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT

from dicom_node.errors import DICOMNodeError
from dicom_node.negotiation import IMPLICIT_VR_LITTLE_ENDIAN, Roles
from dicom_node.reporting import send_event_report
from dicom_node.scu import EXPLICIT_VR_LITTLE_ENDIAN, AssociationError, associate
from dicom_node.sending import SendingError, is_open
from dicom_node.services import RequestError, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicom_node.ports import Caller, Decision
    from dicom_node.scu import Destination
    from dicom_node.services import Exchange

STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"  # well-known, PS3.4 J.3.5
REQUEST_COMMITMENT: Final = 1
ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2

# PS3.7 annex C.
SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
NO_SUCH_EVENT: Final = 0x0113
INVALID_ARGUMENT: Final = 0x0115
CLASS_INSTANCE_CONFLICT: Final = 0x0119
NO_SUCH_ACTION: Final = 0x0123
RESOURCE_LIMITATION: Final = 0x0213

MAX_ITEMS: Final = 25_000
_UID: Final = re.compile(r"[0-9][0-9.]{0,63}\Z")
_SYNTAXES: Final = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]

_T = TypeVar("_T")
Item = tuple[str, str]  # SOP class and SOP Instance UID


class CommitmentError(DICOMNodeError):
    """A commitment message that cannot be read; the text names the attribute."""


@dataclass(frozen=True)
class Report:
    """What was committed, and what was not with its reason (PS3.3 C.14)."""

    transaction_uid: str
    committed: tuple[Item, ...]
    failed: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class CommitmentOutcome:
    """What became of a request of ours; ``report`` is None where it is still to come."""

    accepted: bool
    retryable: bool
    reason: str
    report: Report | None = None


class CommitmentKeeper(Protocol):
    """Keeps what peers ask of us. Its functions may wait for a database."""

    def keep(self, caller: Caller, transaction_uid: str, items: Sequence[Item]) -> str:
        """Note a request durably and return its key.

        Raises
        ------
        Exception
            When it cannot be noted: the peer is told so, and asks again.
        """

    def report(self, key: str, send: Callable[[Report], bool], is_there: Callable[[], bool]) -> None:
        """Report on the association of the request, if that can be done within a moment.

        Parameters
        ----------
        key : str
        send : callable
            Sends the report; says whether the peer took it.
        is_there : callable
            Whether the peer still waits on this association.
        """

    def on_commitment_report(self, caller: Caller, report: Report) -> bool:
        """Take note of what a peer committed for us; return whether we had asked this one for that."""


def commitment_service(keeper: CommitmentKeeper, ae_title: str) -> Service:
    """Return the service that commits what it holds, and hears what others committed.

    Parameters
    ----------
    keeper : CommitmentKeeper
    ae_title : str
        Ours, from which committed instances can be retrieved.
    """

    def on_action(exchange: Exchange) -> None:
        _on_action(exchange, keeper, ae_title)

    def on_event(exchange: Exchange) -> None:
        if exchange.request.EventTypeID not in {ALL_COMMITTED, SOME_FAILED}:
            raise RequestError(NO_SUCH_EVENT, "no event of this type")
        report = _readable(lambda: read_report(exchange.data_set("EventInformation")))
        taken = keeper.on_commitment_report(exchange.caller, report)
        exchange.respond(SUCCESS if taken else NO_SUCH_INSTANCE)

    return Service(
        roles={STORAGE_COMMITMENT: Roles(scu=True, scp=True)},
        answers={N_ACTION: on_action, N_EVENT_REPORT: on_event},
        permitted=_permitted,
    )


def _permitted(decision: Decision) -> bool:
    return decision.may_store or decision.may_report


def _on_action(exchange: Exchange, keeper: CommitmentKeeper, ae_title: str) -> None:
    if str(exchange.request.RequestedSOPInstanceUID) != COMMITMENT_INSTANCE:
        raise RequestError(NO_SUCH_INSTANCE, "expected the well-known instance")
    if exchange.request.ActionTypeID != REQUEST_COMMITMENT:
        raise RequestError(NO_SUCH_ACTION, "expected action type 1")
    transaction_uid, items = _readable(lambda: read_request(exchange.data_set("ActionInformation")))
    if len(items) > MAX_ITEMS:
        raise RequestError(RESOURCE_LIMITATION, f"expected at most {MAX_ITEMS} instances")
    key = keeper.keep(exchange.caller, transaction_uid, items)
    exchange.respond(SUCCESS)
    association = exchange.association

    def send(report: Report) -> bool:
        kind, ds = write_report(report, ae_title)
        return send_event_report(association, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, kind, ds) == SUCCESS

    def is_there() -> bool:
        return is_open(association) and association.dimse.msg_queue.empty()

    keeper.report(key, send, is_there)


def _readable(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (CommitmentError, RequestError) as error:
        raise RequestError(INVALID_ARGUMENT, str(error)) from error


def send_report(destination: Destination, calling_ae_title: str, report: Report) -> None:
    """Report to a peer on an association of our own, in which we are the SCP (PS3.4 J.3.3).

    Raises
    ------
    AssociationError
        When there is no association.
    SendingError
        When the peer did not take the report.
    """
    role = build_role(STORAGE_COMMITMENT, scp_role=True)
    contexts = [(STORAGE_COMMITMENT, _SYNTAXES)]
    association = associate(destination, calling_ae_title, contexts, extended=[role])
    try:
        kind, ds = write_report(report, calling_ae_title)
        status = send_event_report(association, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, kind, ds)
    finally:
        if association.is_established:
            association.release()
    if status != SUCCESS:
        answered = "no answer" if status is None else f"status 0x{status:04X}"
        raise SendingError(f"the report was not taken: {answered}", ended=True)


def request_commitment(
    destination: Destination,
    calling_ae_title: str,
    transaction_uid: str,
    items: Sequence[Item],
    wait_s: float,
) -> CommitmentOutcome:
    """Ask a peer to commit what it stored, and wait a while for its report on the same association.

    Parameters
    ----------
    destination : Destination
    calling_ae_title : str
        Ours.
    transaction_uid : str
        New for each request; a report on another association names it.
    items : sequence
        SOP class and SOP Instance UID of each instance.
    wait_s : float
        How long to keep the association for the report.
    """
    arrived, reports = threading.Event(), list[Report]()

    def on_event(event: Any) -> tuple[int, None]:
        try:
            report = read_report(event.event_information)
        except Exception:  # noqa: BLE001 -- edge of a request: bytes from the wire
            return INVALID_ARGUMENT, None
        if report.transaction_uid != transaction_uid:
            return NO_SUCH_INSTANCE, None
        reports.append(report)
        arrived.set()
        return SUCCESS, None

    try:
        association = associate(
            destination,
            calling_ae_title,
            [(STORAGE_COMMITMENT, _SYNTAXES)],
            handlers=[(evt.EVT_N_EVENT_REPORT, on_event)],
        )
    except AssociationError as error:
        return CommitmentOutcome(accepted=False, retryable=error.retryable, reason=str(error))
    try:
        status, _ = association.send_n_action(
            write_request(transaction_uid, items), REQUEST_COMMITMENT, STORAGE_COMMITMENT, COMMITMENT_INSTANCE
        )
        code = status.get("Status")
        if code == SUCCESS:
            _wait(arrived, association, wait_s)
    except (RuntimeError, ValueError):
        code = None
    finally:
        if association.is_established:
            association.release()
    if code == SUCCESS:
        return CommitmentOutcome(True, False, "accepted", reports[0] if reports else None)  # noqa: FBT003
    answered = "no answer to the N-ACTION" if code is None else f"0x{code:04X}: refused by the peer"
    return CommitmentOutcome(accepted=False, retryable=True, reason=answered)


def _wait(arrived: threading.Event, association: Any, wait_s: float) -> None:
    for _ in range(int(wait_s / 0.05)):
        if arrived.wait(0.05) or not is_open(association):
            return


def read_request(ds: Dataset) -> tuple[str, list[Item]]:
    """Return transaction UID and instances of an N-ACTION (PS3.4 table J.3-1).

    Raises
    ------
    CommitmentError
    """
    return _uid(ds, "TransactionUID"), [_item(one) for one in _sequence(ds, "ReferencedSOPSequence", least=1)]


def read_report(ds: Dataset) -> Report:
    """Return what an N-EVENT-REPORT says (PS3.4 table J.3-2).

    Raises
    ------
    CommitmentError
    """
    failed = _sequence(ds, "FailedSOPSequence", least=0)
    reasons = [one.get("FailureReason") for one in failed]
    if not all(isinstance(reason, int) for reason in reasons):
        raise CommitmentError("FailureReason: expected a number")
    return Report(
        _uid(ds, "TransactionUID"),
        tuple(_item(one) for one in _sequence(ds, "ReferencedSOPSequence", least=0)),
        tuple((*_item(one), int(reason)) for one, reason in zip(failed, reasons, strict=True)),
    )


def write_request(transaction_uid: str, items: Sequence[Item]) -> Dataset:
    """Return the action information that asks for these instances."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = DICOMSequence(_reference(*item) for item in items)
    return ds


def write_report(report: Report, ae_title: str) -> tuple[int, Dataset]:
    """Return event type and event information."""
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    if report.committed:
        ds.RetrieveAETitle = ae_title
        ds.ReferencedSOPSequence = DICOMSequence(_reference(*item) for item in report.committed)
    if report.failed:
        ds.FailedSOPSequence = DICOMSequence(_reference(*item) for item in report.failed)
    return (SOME_FAILED if report.failed else ALL_COMMITTED), ds


def _reference(sop_class_uid: str, sop_instance_uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


def _sequence(ds: Dataset, keyword: str, *, least: int) -> list[Dataset]:
    try:
        found = list(ds.get(keyword) or ())
    except Exception as error:  # bytes from the wire, decoded at this moment
        raise CommitmentError(f"{keyword}: cannot be read") from error
    if len(found) < least or not all(isinstance(one, Dataset) for one in found):
        raise CommitmentError(f"{keyword}: expected at least {least} items")
    return found


def _item(ds: Dataset) -> Item:
    return _uid(ds, "ReferencedSOPClassUID"), _uid(ds, "ReferencedSOPInstanceUID")


def _uid(ds: Dataset, keyword: str) -> str:
    try:
        value = str(ds.get(keyword) or "")
    except Exception as error:  # bytes from the wire, decoded at this moment
        raise CommitmentError(f"{keyword}: cannot be read") from error
    if not _UID.match(value):
        raise CommitmentError(f"{keyword}: expected a UID")
    return value
