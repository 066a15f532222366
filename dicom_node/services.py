"""Further services of our SCP, beside verification and storage: what they serve, and how requests reach them.

pynetdicom negotiates and carries the messages; each service answers its requests itself, in the thread of the
association, so that it decides how much is in memory and when a peer that is gone ends the work.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE, N_EVENT_REPORT
from pynetdicom.dsutils import decode

from dicom_node import commands, sending
from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydicom.dataset import Dataset
    from pynetdicom.association import Association

    from dicom_node.negotiation import Roles
    from dicom_node.ports import Caller, Decision

PROCESSING_FAILURE: Final = 0x0110
# Command fields of responses, and elements of their counts (PS3.7 9.3, E.1).
_COMPOSITE: Final[Mapping[type, int]] = MappingProxyType({C_FIND: 0x8020, C_GET: 0x8010, C_MOVE: 0x8021})
_COUNTS: Final = {
    "NumberOfRemainingSuboperations": 0x1020,
    "NumberOfCompletedSuboperations": 0x1021,
    "NumberOfFailedSuboperations": 0x1022,
    "NumberOfWarningSuboperations": 0x1023,
}
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class RequestError(DICOMNodeError):
    """A request that cannot be served; ``status`` is the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Exchange:
    """One request of a peer, and the way to answer it."""

    association: Association
    request: Any
    context: Any
    caller: Caller

    @property
    def abstract_syntax(self) -> str:
        """The SOP class that was negotiated."""
        return str(self.context.abstract_syntax)

    @property
    def explicit(self) -> bool:
        """Whether data sets carry their VRs."""
        return not self.context.transfer_syntax[0].is_implicit_VR

    def data_set(self, keyword: str) -> Dataset:
        """Return the data set of the request.

        Parameters
        ----------
        keyword : str
            pynetdicom's name of it.

        Raises
        ------
        RequestError
            When it cannot be decoded; with 0x0110, which the caller replaces by the status of its service.
        """
        stream = getattr(self.request, keyword, None)
        syntax = self.context.transfer_syntax[0]
        if stream is None:
            raise RequestError(PROCESSING_FAILURE, "no data set")
        try:
            found: Dataset = decode(
                BytesIO(stream.getvalue()), syntax.is_implicit_VR, syntax.is_little_endian
            )
        except Exception as error:  # edge of a request: bytes from the wire
            raise RequestError(PROCESSING_FAILURE, "the data set cannot be read") from error
        return found

    def respond(self, status: int, *, data: bytes = b"", fields: Mapping[str, Any] = _NONE) -> None:
        """Send a response.

        Parameters
        ----------
        status : int
        data : bytes
            Identifier in the transfer syntax of the context; none when empty, and none for DIMSE-N.
        fields : mapping
            Further fields, by pynetdicom's name.

        Raises
        ------
        SendingError
            When the association is over.
        """
        if type(self.request) in _COMPOSITE:
            command = commands.encode_response(
                _COMPOSITE[type(self.request)],
                self.abstract_syntax,
                int(self.request.MessageID),
                status,
                has_data_set=bool(data),
                numbers={_COUNTS[name]: fields[name] for name in _COUNTS if name in fields},
            )
            sending.send_message(self.association, self.context.context_id, command, data)
        else:
            self._respond_to_normalized(status, fields)

    def _respond_to_normalized(self, status: int, fields: Mapping[str, Any]) -> None:
        request = self.request
        response = type(request)()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = self.abstract_syntax
        named = getattr(request, "RequestedSOPInstanceUID", None)
        response.AffectedSOPInstanceUID = named or getattr(request, "AffectedSOPInstanceUID", None)
        response.Status = status
        for name, value in fields.items():
            setattr(response, name, value)
        sending.wait_for_room(self.association)
        self.association.dimse.send_msg(response, self.context.context_id)

    def cancelled(self) -> bool:
        """Say whether the peer took the request back (PS3.7 9.3.2.3)."""
        return bool(self.request.MessageID in self.association.dimse.cancel_req)

    @property
    def is_open(self) -> bool:
        """Whether the peer is still there."""
        return sending.is_open(self.association)


@dataclass(frozen=True)
class Service:
    """A service class of our SCP.

    Parameters
    ----------
    roles : mapping
        The roles that a requestor may take, by abstract syntax.
    answers : mapping
        What answers a request, by pynetdicom's primitive.
    permitted : callable
        Whether a caller may use it.
    failure : int
        Status when answering fails unforeseen.
    sends_instances : bool
        Whether instances go out on the peer's own association: it may be SCP of the storage classes then.
    """

    roles: Mapping[str, Roles]
    answers: Mapping[type, Callable[[Exchange], None]]
    permitted: Callable[[Decision], bool]
    failure: int = PROCESSING_FAILURE
    sends_instances: bool = False


@dataclass(frozen=True)
class Offer:
    """What one caller may use."""

    roles: Mapping[str, Roles]
    sends_instances: bool


def offer(services: Sequence[Service], decision: Decision) -> Offer:
    """Return what of the services is there for a caller."""
    permitted = [service for service in services if service.permitted(decision)]
    roles = {uid: roles for service in permitted for uid, roles in service.roles.items()}
    return Offer(roles, any(service.sends_instances for service in permitted))


def serve(
    services: Sequence[Service],
    association: Association,
    caller: Caller,
    otherwise: Callable[[Any, int], None],
    message: Any,
    context_id: int,
) -> Exception | None:
    """Answer a request of a further service; ``otherwise`` takes what belongs to none.

    The library looks at the SOP class that a message names; what was negotiated counts here.

    Returns
    -------
    Exception or None
        What went wrong unforeseen, after the peer has been told.
    """
    if message.MessageIDBeingRespondedTo is not None:  # an answer that nobody waits for any more
        otherwise(message, context_id)
        return None
    context = association._accepted_cx.get(context_id)  # noqa: SLF001
    named = getattr(message, "AffectedSOPClassUID", None) or getattr(message, "RequestedSOPClassUID", None)
    if context is None or named is None or str(named) != str(context.abstract_syntax):
        association.abort(block=False)
        return None
    service = _find(services, message, str(context.abstract_syntax))
    if service is None:
        otherwise(message, context_id)
        return None
    # An event comes from the SCP of a service, everything else from its SCU.
    if message.MessageID is None or not (isinstance(message, N_EVENT_REPORT) or context.as_scp):
        association.abort(block=False)
        return None
    error = _answer(service, Exchange(association, message, context, caller))
    association.dimse.cancel_req.pop(message.MessageID, None)
    association.dul._idle_timer.restart()  # noqa: SLF001 -- it waited for us, and was not idle
    return error


def _find(services: Sequence[Service], message: Any, abstract_syntax: str) -> Service | None:
    for service in services:
        if abstract_syntax in service.roles and type(message) in service.answers:
            return service
    return None


def _answer(service: Service, exchange: Exchange) -> Exception | None:
    try:
        service.answers[type(exchange.request)](exchange)
    except sending.SendingError:
        return None
    except Exception as error:  # noqa: BLE001 -- edge of a request
        foreseen = isinstance(error, RequestError)
        with contextlib.suppress(sending.SendingError):
            exchange.respond(error.status if isinstance(error, RequestError) else service.failure)
        return None if foreseen else error
    return None
