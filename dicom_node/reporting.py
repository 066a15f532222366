"""N-EVENT-REPORT requests over an association that is there already (PS3.7 10.1.1)."""

from __future__ import annotations

import time
from io import BytesIO
from typing import TYPE_CHECKING, Final

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from dicom_node import sending

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association

_WAIT_S: Final = 15.0
_POLL_S: Final = 0.005


def send_event_report(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    event_type: int,
    information: Dataset,
    wait_s: float = _WAIT_S,
) -> int | None:
    """Send an event and return the status of the answer; None where none comes.

    Parameters
    ----------
    association : Association
        Established; as requestor, or as acceptor in the thread that answers its requests.
    sop_class_uid, sop_instance_uid : str
    event_type : int
    information : Dataset
    wait_s : float
        How long to wait for the answer; another message of the peer ends the wait.

    Raises
    ------
    SendingError
        When the association is over, or has no presentation context for the SOP class.
    """
    if not sending.is_open(association):
        raise sending.SendingError("the association ended early", ended=True)
    contexts = [one for one in association.accepted_contexts if str(one.abstract_syntax) == sop_class_uid]
    if not contexts:
        raise sending.SendingError("no presentation context for this service", ended=False)
    request = N_EVENT_REPORT()
    request.MessageID, request.EventTypeID = 1, event_type
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class_uid, sop_instance_uid
    request.EventInformation = BytesIO(_encode(information, contexts[0].transfer_syntax[0].is_implicit_VR))
    with sending.paused(association):
        association.dimse.send_msg(request, contexts[0].context_id)
        return _answer(association, wait_s)


def _encode(ds: Dataset, implicit: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, True
    write_dataset(buffer, ds)
    return buffer.getvalue()


def _answer(association: Association, wait_s: float) -> int | None:
    deadline = time.monotonic() + wait_s
    while True:
        # Looked at before the messages: a peer may answer and leave at once.
        over = time.monotonic() >= deadline or not sending.is_open(association)
        _, message = association.dimse.peek_msg()
        if message is not None:
            if not isinstance(message, N_EVENT_REPORT) or message.MessageIDBeingRespondedTo is None:
                return None  # a request: the peer has other plans for this association
            association.dimse.get_msg()
            return None if message.Status is None else int(message.Status)
        if over:
            return None
        time.sleep(_POLL_S)
