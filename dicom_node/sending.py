"""Stored instances as C-STORE requests over an association that is there already (PS3.7 9.1.1).

The data set goes out as it lies in the file, byte for byte, piece by piece: nothing is decoded, and a slow
peer holds no more than a few pieces in memory.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from dicom_node import part10
from dicom_node.errors import DICOMNodeError, HeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pynetdicom.association import Association

_MAX_PDU_BYTES: Final = 131072
_QUEUED_PDUS: Final = 8
_POLL_S: Final = 0.0005
_ESTABLISHED: Final = "Sta6"


class SendingError(DICOMNodeError):
    """An instance could not be sent, or was not answered; ``ended`` says whether the association is over."""

    def __init__(self, message: str, *, ended: bool) -> None:
        super().__init__(message)
        self.ended = ended


def is_open(association: Association) -> bool:
    """Say whether messages can still be exchanged."""
    dul = association.dul
    return bool(dul.is_alive() and dul.state_machine.current_state == _ESTABLISHED)


def accepted_context(association: Association, sop_class_uid: str, transfer_syntax_uid: str) -> int | None:
    """Return the presentation context in which we may send this, if one was accepted."""
    for number, context in association._accepted_cx.items():  # noqa: SLF001 -- as the library itself looks
        same = str(context.abstract_syntax) == sop_class_uid
        if same and str(context.transfer_syntax[0]) == transfer_syntax_uid and context.as_scu:
            return int(number)
    return None


def accepted_syntaxes(association: Association, sop_class_uid: str) -> list[str]:
    """Return the transfer syntaxes in which we may send instances of this SOP class."""
    return [
        str(context.transfer_syntax[0])
        for context in association._accepted_cx.values()  # noqa: SLF001 -- as above
        if str(context.abstract_syntax) == sop_class_uid and context.as_scu
    ]


def wait_for_room(association: Association, queued: int = _QUEUED_PDUS) -> None:
    """Wait until no more than so many PDUs wait for the peer to take them.

    Raises
    ------
    SendingError
        When the association ends before that.
    """
    while len(association.dul.to_provider_queue.queue) > queued:
        if not is_open(association):
            raise SendingError("the association ended early", ended=True)
        time.sleep(_POLL_S)


@contextlib.contextmanager
def paused(association: Association) -> Iterator[None]:
    """Keep the association's own loop from taking answers away; as acceptor we are that loop."""
    if not association.is_requestor:
        yield
        return
    association._reactor_checkpoint.clear()  # noqa: SLF001 -- as the library's own send functions do
    try:
        while not association._is_paused:  # noqa: SLF001
            time.sleep(_POLL_S)
        yield
    finally:
        association._reactor_checkpoint.set()  # noqa: SLF001


def send_store(
    association: Association,
    path: Path,
    *,
    message_id: int = 1,
    priority: int = 0,
    originator: tuple[str, int] | None = None,
) -> int:
    """Send the data set of a Part 10 file and return the status that the peer answers (PS3.4 table B.2-1).

    Parameters
    ----------
    association : Association
        Established; as requestor, or as acceptor while a request of the peer is being answered.
    path : Path
        Its file meta information decides SOP class, instance and transfer syntax.
    message_id : int
    priority : int
        0 medium, 1 high, 2 low.
    originator : tuple of str and int, optional
        AE title and message id of the C-MOVE request that this instance answers.

    Raises
    ------
    SendingError
        When no presentation context was accepted for it, or the association ended before the answer.
    OSError
        When the file cannot be read.
    HeaderError
        When the file has no usable file meta information.
    """
    with path.open("rb") as file:
        meta = part10.decode(file.read(part10.MAX_META_BYTES))
    sop_class, sop_instance = meta.uid(0x0002), meta.uid(0x0003)
    if not (sop_class and sop_instance and meta.uid(0x0010)):
        raise HeaderError("bad_file_meta", "expected SOP class, instance and transfer syntax")
    if not is_open(association):
        raise SendingError("the association ended early", ended=True)
    context_id = accepted_context(association, sop_class, meta.uid(0x0010))
    if context_id is None:
        raise SendingError("no presentation context for this SOP class and transfer syntax", ended=False)
    request = C_STORE()
    request.MessageID, request.Priority = message_id, priority
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_instance
    if originator is not None:
        request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID = originator
    request._dataset_path = (path, meta.data_offset)  # noqa: SLF001 -- its way to stream a file
    return _exchange(association, request, context_id)


def _exchange(association: Association, request: C_STORE, context_id: int) -> int:
    with paused(association):
        _stream(association, request, context_id)
        return _answer(association, int(request.MessageID))


def _stream(association: Association, request: C_STORE, context_id: int) -> None:
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    room = association.dimse.maximum_pdu_size or _MAX_PDU_BYTES
    try:
        for piece in message.encode_msg(context_id, min(room, _MAX_PDU_BYTES)):
            wait_for_room(association)
            association.dul.send_pdu(piece)
    except OSError:
        association.abort(block=False)  # half an instance cannot be taken back
        raise


def _answer(association: Association, message_id: int) -> int:
    _, response = association.dimse.get_msg(block=True)
    answered: Any = getattr(response, "MessageIDBeingRespondedTo", None)
    if not isinstance(response, C_STORE) or answered != message_id or response.Status is None:
        association.abort(block=False)
        raise SendingError("no answer to the C-STORE", ended=True)
    return int(response.Status)
