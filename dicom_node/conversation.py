"""Requests of ours over an association that we opened: C-FIND, C-MOVE and C-GET.

pynetdicom negotiates and releases; what the peer sends in between is read by :mod:`dicom_node.responses`.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import time
from typing import TYPE_CHECKING, Any, Final

from pynetdicom.fsm import InvalidEventError

from dicom_node import commands, sending
from dicom_node.archive import ArchiveError
from dicom_node.responses import ESTABLISHED, Message, ResponseReader
from dicom_node.scu import AssociationError, associate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pynetdicom.association import Association

    from dicom_node.inbox import Announcement
    from dicom_node.receiving import Reception
    from dicom_node.scu import Destination

_IDLE: Final = "Sta1"
_WAITING_MESSAGES: Final = 64
_END_S: Final = 2.0


class Conversation:
    """One association of ours, used by one thread.

    Parameters
    ----------
    association : Association
        Just established; nothing was exchanged on it.
    begin : callable, optional
        Takes the instances that come on it. Without it none may come.
    timeout_s : float
        How long the peer may stall inside a message.
    """

    def __init__(
        self, association: Association, begin: Callable[[Announcement], Reception] | None, timeout_s: float
    ) -> None:
        self._association = association
        self._messages: queue.Queue[Message | None] = queue.Queue(_WAITING_MESSAGES)
        self._message_id = 0
        self._asking: int | None = None
        self._over = False
        self._reader = ResponseReader(association, self._messages, begin, timeout_s)
        association.network_timeout = None  # silence is judged by those who ask
        association.dul._read_pdu_data = self._reader.read  # noqa: SLF001 -- in the upper layer's own thread
        machine = association.dul.state_machine
        machine.do_action = functools.partial(_act, association.dul, machine.do_action)

    @property
    def is_open(self) -> bool:
        """Whether the peer is still there."""
        return not self._over and sending.is_open(self._association)

    def ask(
        self,
        field: int,
        sop_class_uid: str,
        identifier: Callable[[bool], bytes],
        move_destination: str = "",
    ) -> None:
        """Send a request; :meth:`next` then gives the responses.

        Parameters
        ----------
        field : int
            Command Field.
        sop_class_uid : str
        identifier : callable
            Gives the data set; is told whether it carries VRs.
        move_destination : str
            AE title, of a C-MOVE.

        Raises
        ------
        SendingError
            When the association is over, or the SOP class was not accepted.
        """
        accepted = self._association._accepted_cx.values()  # noqa: SLF001
        context = next((one for one in accepted if str(one.abstract_syntax) == sop_class_uid), None)
        if context is None:
            raise sending.SendingError("the peer does not offer this service", ended=False)
        self._message_id = self._message_id % 0xFFFF + 1
        self._asking = self._message_id
        command = commands.encode_request(field, sop_class_uid, self._asking, 0, move_destination)
        data = identifier(not context.transfer_syntax[0].is_implicit_VR)
        sending.send_message(self._association, int(context.context_id), command, data)

    def next(self, wait_s: float) -> Message | None:
        """Return the next response to what was asked last, or None when there is none within a time."""
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=min(left_s, 0.5))
            except queue.Empty:
                if not self.is_open:
                    return None
                continue
            if message is None:
                self._over = True
                return None
            if message.response.message_id == self._asking:
                return message
        return None

    def cancel(self) -> None:
        """Take the request back; the peer still gives a last response (PS3.7 9.3.2.3)."""
        if self._asking is not None:
            for context_id in self._association._accepted_cx:  # noqa: SLF001 -- any that is there
                with contextlib.suppress(sending.SendingError):
                    cancel = commands.encode_cancel(self._asking)
                    sending.send_message(self._association, int(context_id), cancel)
                return

    def done(self) -> None:
        """Note that the last response was there: the association may be released."""
        self._asking = None

    def close(self) -> None:
        """Release the association; one on which answers may still come is aborted."""
        association = self._association
        if self._asking is None and association.is_established:
            association.release()
            return
        self._reader.closing = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._messages.get_nowait()
        if self._state == ESTABLISHED:
            association.abort(block=False)
            deadline = time.monotonic() + _END_S
            while self._state != _IDLE and association.dul.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
        with contextlib.suppress(AttributeError, OSError):
            association.dul.socket._shutdown_socket()  # noqa: SLF001 -- wakes a read that waits for its peer
        association.kill()

    @property
    def _state(self) -> str:
        return str(self._association.dul.state_machine.current_state)


@contextlib.contextmanager
def converse(
    destination: Destination,
    calling_ae_title: str,
    contexts: Sequence[tuple[str, list[str]]],
    *,
    extended: Sequence[Any] = (),
    begin: Callable[[Announcement], Reception] | None = None,
) -> Iterator[Conversation]:
    """Open an association for requests, and end it whatever happens.

    Raises
    ------
    ArchiveError
        When there is none, or it ends before a request is out.
    """
    try:
        association = associate(destination, calling_ae_title, contexts, extended=extended)
    except AssociationError as error:
        raise ArchiveError(str(error), step="connect", retryable=error.retryable) from error
    talk = Conversation(association, begin, destination.timeout_s)
    try:
        yield talk
    except sending.SendingError as error:
        raise ArchiveError(str(error), step="connect", retryable=error.ended) from error
    finally:
        talk.close()


def _act(dul: Any, act: Callable[[str], None], event: str) -> None:
    """Let two ends at once, such as an abort of ours and one of the peer's, end the thread in good order."""
    try:
        act(event)
    except InvalidEventError:
        dul.socket.close()
        dul.kill_dul()
