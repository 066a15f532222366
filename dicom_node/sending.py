"""Stored instances as C-STORE requests over an association that is there already (PS3.7 9.1.1).

The data set goes out as it lies in the file, byte for byte, piece by piece: nothing is decoded, and a slow
peer holds no more than a few pieces in memory.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from dicom_node import commands, part10
from dicom_node.errors import DICOMNodeError, HeaderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pynetdicom.association import Association

_MAX_PDU_BYTES: Final = 131072
_QUEUED_PDUS: Final = 8
_QUEUED_MESSAGES: Final = 64
_POLL_S: Final = 0.0005
_QUICK_S: Final = 0.005
_NO_ANSWER_S: Final = 60.0
_ESTABLISHED: Final = "Sta6"


class SendingError(DICOMNodeError):
    """An instance could not be sent, or was not answered; ``ended`` says whether the association is over."""

    def __init__(self, message: str, *, ended: bool) -> None:
        super().__init__(message)
        self.ended = ended


@dataclass(frozen=True)
class Outgoing:
    """A data set to be sent: so many bytes from where the content stands."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    content: BinaryIO
    size_bytes: int


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


def send_message(association: Association, context_id: int, command: bytes, data: bytes = b"") -> None:
    """Send a command set and, unless it is empty, a data set.

    Raises
    ------
    SendingError
        When the association is over.
    """
    wait_for_room(association, _QUEUED_MESSAGES)
    room = _room(association)
    for content, kind in ((command, 1), (data, 0)):
        for start in range(0, len(content), room):
            last = start + room >= len(content)
            piece = _piece(context_id, kind, content[start : start + room], last=last)
            association.dul.send_pdu(piece)


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
    on_bytes: Callable[[int], None] | None = None,
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
    on_bytes : callable, optional
        Told before so many bytes of the data set leave; it may hold them back, and what it raises ends the
        association.

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
        file.seek(meta.data_offset)
        size = path.stat().st_size - meta.data_offset
        outgoing = Outgoing(meta.uid(0x0002), meta.uid(0x0003), meta.uid(0x0010), file, size)
        return send_outgoing(
            association,
            outgoing,
            message_id=message_id,
            priority=priority,
            originator=originator,
            on_bytes=on_bytes,
        )


def send_outgoing(
    association: Association,
    outgoing: Outgoing,
    *,
    message_id: int = 1,
    priority: int = 0,
    originator: tuple[str, int] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Send a data set from wherever it is; else as :func:`send_store`."""
    sop_class, sop_instance = outgoing.sop_class_uid, outgoing.sop_instance_uid
    if not (sop_class and sop_instance and outgoing.transfer_syntax_uid and outgoing.size_bytes > 0):
        raise HeaderError("bad_file_meta", "expected SOP class, instance, transfer syntax and a data set")
    if not is_open(association):
        raise SendingError("the association ended early", ended=True)
    context_id = accepted_context(association, sop_class, outgoing.transfer_syntax_uid)
    if context_id is None:
        raise SendingError("no presentation context for this SOP class and transfer syntax", ended=False)
    command = commands.encode_store_request(sop_class, sop_instance, message_id, priority, originator)
    with paused(association):
        send_message(association, context_id, command)
        try:
            _stream(association, context_id, outgoing.content, outgoing.size_bytes, on_bytes)
        except SendingError:
            raise
        except Exception:
            association.abort(block=False)  # half an instance cannot be taken back
            raise
        return _answer(association, message_id)


def _stream(
    association: Association,
    context_id: int,
    file: BinaryIO,
    size: int,
    on_bytes: Callable[[int], None] | None,
) -> None:
    room = _room(association)
    while size:
        wait_for_room(association)
        fragment = file.read(min(room, size))
        if not fragment:
            raise OSError("a file became shorter while it was read")
        size -= len(fragment)
        if on_bytes is not None:
            on_bytes(len(fragment))
        association.dul.send_pdu(_piece(context_id, 0, fragment, last=not size))


def _room(association: Association) -> int:
    """Return how much of a message fits into a PDU of the peer's."""
    return min(association.dimse.maximum_pdu_size or _MAX_PDU_BYTES, _MAX_PDU_BYTES) - 6


def _piece(context_id: int, kind: int, fragment: bytes, *, last: bool) -> P_DATA:
    piece = P_DATA()
    piece.presentation_data_value_list = [[context_id, bytes([kind | (2 if last else 0)]) + fragment]]
    return piece


def _answer(association: Association, message_id: int) -> int:
    response = _wait_for_message(association)
    answered: Any = getattr(response, "MessageIDBeingRespondedTo", None)
    if not isinstance(response, C_STORE) or answered != message_id or response.Status is None:
        association.abort(block=False)
        raise SendingError("no answer to the C-STORE", ended=True)
    return int(response.Status)


def _wait_for_message(association: Association) -> Any:
    """Wait for the next message; a peer that sends it in two pieces gets its acknowledgement between at once.

    With Nagle's algorithm on its side and a delayed acknowledgement on ours each answer would take 40 ms. The
    kernel forgets the option when we send, so it is set while the answer is awaited.
    """
    deadline = time.monotonic() + (association.dimse_timeout or _NO_ANSWER_S)
    while time.monotonic() < deadline:
        connection = association.dul.socket.socket if association.dul.socket is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            return association.dimse.msg_queue.get(timeout=_QUICK_S)[1]
        except queue.Empty:
            if not is_open(association):
                return None
    return None
