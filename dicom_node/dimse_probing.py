"""Connection tests over DIMSE: C-ECHO, what a peer would store, C-FIND, C-MOVE, and a real C-STORE."""

from __future__ import annotations

import socket
import ssl
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dicom_node import part10, scu, tls
from dicom_node.negotiation import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dicom_node.probing import Advice, Side, StepFailedError, Trail
from dicom_node.scu import EXPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pynetdicom.association import Association

    from dicom_node.scu import Destination

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
COMMITMENT: Final = "1.2.840.10008.1.20.1"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_SYNTAXES: Final = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
_UNKNOWN_DESTINATION: Final = 0xA801
_NOT_ALLOWED: Final = frozenset({0x0122, 0x0124})
_ANSWER_BYTES: Final = 16


def echo(trail: Trail, destination: Destination, calling: str) -> None:
    """Ask the peer whether it is there (PS3.7 9.1.5)."""
    contexts = [(VERIFICATION, _SYNTAXES)]
    with (
        _associated(trail, "association", destination, calling, contexts) as association,
        trail.step("echo") as note,
    ):
        (status,) = [_status(answer) for answer in _asked(lambda: [association.send_c_echo()])]
        if status != 0:
            advice = Advice(Side.PEER, "look at the log of its DICOM service")
            raise StepFailedError(_words(status), advice)
        note.seen = "answered with success"


def negotiate(
    trail: Trail, destination: Destination, calling: str, wanted: Mapping[str, Sequence[tuple[str, str]]]
) -> None:
    """Propose what we would send, and say what the peer takes; nothing is sent.

    Parameters
    ----------
    wanted : mapping
        Step to the names and SOP classes that are proposed for it.
    """
    proposed = {uid: list(_SYNTAXES) for pairs in wanted.values() for _, uid in pairs}
    with _associated(trail, "offer", destination, calling, list(proposed.items())) as association:
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        for step, pairs in wanted.items():
            with trail.step(step) as note:
                _judge(note, pairs, accepted)


def _judge(note: Any, pairs: Sequence[tuple[str, str]], accepted: set[str]) -> None:
    taken = [name for name, uid in pairs if uid in accepted]
    refused = [name for name, uid in pairs if uid not in accepted]
    if not taken:
        advice = Advice(Side.PEER, f"allow from this node: {', '.join(refused)}")
        raise StepFailedError(f"refuses {', '.join(refused)}", advice)
    note.seen = f"takes {', '.join(taken)}" + (f"; refuses {', '.join(refused)}" if refused else "")
    if refused:
        note.advice.append(
            Advice(Side.PEER, f"allow {', '.join(refused)} if results of that kind shall come")
        )


def find(trail: Trail, destination: Destination, calling: str) -> None:
    """Ask for a study that nobody has (PS3.4 C.4.1)."""
    contexts = [(STUDY_ROOT_FIND, _SYNTAXES)]
    with (
        _associated(trail, "query offer", destination, calling, contexts) as association,
        trail.step("query") as note,
    ):
        status, matched = None, False
        for answer, identifier in _asked(lambda: association.send_c_find(_nobodys_study(), STUDY_ROOT_FIND)):
            status, matched = _status(answer), identifier is not None
            if matched:
                break
        if matched:
            advice = Advice(Side.PEER, "it ignores the study that is asked for; a query may return all")
            raise StepFailedError("answers with a study that was not asked for", advice)
        if status != 0:
            advice = Advice(Side.PEER, "allow this node to query (C-FIND, study root)")
            raise StepFailedError(_words(status), advice)
        note.seen = "answered with success, and no match for a study that does not exist"


def move(trail: Trail, destination: Destination, calling: str, port: int) -> None:
    """Have a study that nobody has sent to us; peers that look destinations up first say if they know us."""
    contexts = [(STUDY_ROOT_MOVE, _SYNTAXES)]
    ours = f"add {calling} with this node's address and port {port} to its destinations"
    with (
        _associated(trail, "retrieve offer", destination, calling, contexts) as association,
        trail.step("retrieve") as note,
    ):
        status = None
        for answer, _ in _asked(lambda: association.send_c_move(_nobodys_study(), calling, STUDY_ROOT_MOVE)):
            status = _status(answer)
        if status == _UNKNOWN_DESTINATION:
            raise StepFailedError(
                "status 0xA801: it does not know us as a destination", Advice(Side.PEER, ours)
            )
        if status is None or status in _NOT_ALLOWED:
            allow = Advice(Side.PEER, f"allow this node to retrieve (C-MOVE, study root), and {ours}")
            raise StepFailedError(_words(status), allow)
        # Archives differ in what they look up first: Orthanc answers 0xC000 to a study that it does not have.
        note.seen = (
            f"{_words(status)}: it takes retrieve requests of this node; whether it knows {calling} as a"
            " destination shows with a study that it has"
        )
        if status != 0:
            note.advice.append(Advice(Side.PEER, f"if a real retrieve fails, {ours}"))


def store(trail: Trail, destination: Destination, calling: str, folder: Path) -> None:
    """Send one tiny instance that says that it is a test, and have it stored."""
    path = write_test_instance(folder / "connection-test.dcm")
    with trail.step("store") as note:
        (outcome,) = scu.store([path], destination, calling)
        if not outcome.ok:
            advice = Advice(Side.PEER, "allow this node to store Secondary Capture, and look at its log")
            raise StepFailedError(outcome.reason, advice)
        note.seen = f"{outcome.reason}: a Secondary Capture of the patient CONNECTION^TEST, to be deleted"


def write_test_instance(path: Path) -> Path:
    """Write a Secondary Capture of 8 by 8 pixels (PS3.3 A.8.1), clearly nobody's."""
    from pydicom.dataset import Dataset, FileMetaDataset  # noqa: PLC0415 -- seldom needed
    from pydicom.uid import UID  # noqa: PLC0415

    at = datetime.now(UTC).astimezone()
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID(SECONDARY_CAPTURE), UID(new_uid())
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(new_uid()), UID(new_uid())
    ds.PatientName, ds.PatientID = "CONNECTION^TEST", "CONNECTION-TEST"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "TEST", "1", "1"
    ds.StudyDate, ds.StudyTime = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    ds.StudyDescription = ds.SeriesDescription = "Connection test, to be deleted"
    ds.Modality, ds.ConversionType, ds.PatientOrientation = "OT", "SYN", ""
    ds.Manufacturer, ds.InstanceCreatorUID = "Cloister", part10.IMPLEMENTATION_CLASS_UID
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = bytes(0xFF if (row + column) % 2 else 0 for row in range(8) for column in range(8))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    ds.file_meta.ImplementationClassUID = UID(part10.IMPLEMENTATION_CLASS_UID)
    ds.save_as(path, enforce_file_format=True)
    return path


def new_uid() -> str:
    """Return a UID that nobody has (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def _nobodys_study() -> Any:
    from pydicom.dataset import Dataset  # noqa: PLC0415 -- seldom needed

    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyInstanceUID = "STUDY", new_uid()
    return ds


@contextmanager
def _associated(
    trail: Trail,
    name: str,
    destination: Destination,
    calling: str,
    contexts: Sequence[tuple[str, list[str]]],
) -> Iterator[Association]:
    """Open an association as a step; release it whatever happens inside."""
    with trail.step(name) as note:
        try:
            association = scu.associate(destination, calling, contexts)
        except scu.AssociationError as error:
            raise _no_association(error, destination, calling) from error
        note.seen = f"{destination.ae_title} accepts {calling}"
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


# PS3.8 table 9-21: source and reason of a rejection.
def _no_association(error: scu.AssociationError, destination: Destination, calling: str) -> StepFailedError:
    if error.refused_contexts:
        advice = Advice(Side.PEER, "switch the service on for this node")
        return StepFailedError("accepts the association, and not the service that is asked for", advice)
    if error.rejection is not None:
        return StepFailedError(str(error), *_rejection_advice(error.rejection, destination, calling))
    if str(error).startswith("TLS"):
        advice = Advice(Side.HERE, "see the step TLS")
        return StepFailedError(str(error), advice)
    return _silence(destination, calling)


def _rejection_advice(
    rejection: tuple[int, int, int], destination: Destination, calling: str
) -> tuple[Advice, ...]:
    result, source, reason = rejection
    if (source, reason) == (1, 3):
        return (Advice(Side.PEER, f"add {calling}, with this node's address, to its known AE titles"),)
    if (source, reason) == (1, 7):
        return (
            Advice(Side.HERE, f"correct the AE title of this peer; it is not {destination.ae_title}"),
            Advice(Side.PEER, f"or give its service the AE title {destination.ae_title}"),
        )
    if result == 2 or source == 3:
        return (Advice(Side.PEER, "it is busy: raise its number of associations, or wait"),)
    return (Advice(Side.PEER, f"allow {calling} from this node's address; its log says why it refuses"),)


def _silence(destination: Destination, calling: str) -> StepFailedError:
    """Say what it is that listens there and gives no DICOM answer, by looking at the answer's first bytes."""
    answer, closed = _first_bytes(destination, calling)
    port = Advice(Side.HERE, "correct the port of this peer")
    if answer.startswith(b"HTTP/"):
        return StepFailedError("a web server answers on this port, not a DICOM service", port)
    if answer[:2] == b"\x15\x03":
        return StepFailedError(
            "the port speaks TLS", Advice(Side.HERE, "mark this peer as one with TLS, or correct the port")
        )
    if answer[:1] == b"\x07":
        return StepFailedError(
            "aborts at the association request",
            Advice(Side.PEER, f"allow {calling} from this node's address; its log says why it aborts"),
        )
    if answer:
        return StepFailedError("answers with something that is not DICOM", port)
    if closed:
        return StepFailedError(
            "closes the connection without an answer",
            Advice(Side.PEER, f"allow this node's address and {calling}; or it wants TLS"),
            Advice(Side.HERE, "check port and TLS of this peer"),
        )
    return StepFailedError(
        f"accepts the connection and says nothing for {destination.timeout_s:.0f} s",
        Advice(Side.PEER, "restart its DICOM service: it hangs, or serves one association at a time"),
        port,
    )


def _first_bytes(destination: Destination, calling: str) -> tuple[bytes, bool]:
    """Return the first bytes of the answer to an association request, and whether the peer closed."""
    from pynetdicom.pdu import A_ASSOCIATE_RQ  # noqa: PLC0415 -- seldom needed

    request = A_ASSOCIATE_RQ()
    request.from_primitive(_request(destination, calling))
    try:
        plain = socket.create_connection((destination.host, destination.port), destination.timeout_s)
        with plain, _wrapped(plain, destination) as connection:
            connection.settimeout(destination.timeout_s)
            connection.sendall(request.encode())
            answer = connection.recv(_ANSWER_BYTES)
            return answer, not answer
    except TimeoutError:
        return b"", False
    except (OSError, ssl.SSLError, tls.TLSError):
        return b"", True


def _wrapped(plain: socket.socket, destination: Destination) -> socket.socket:
    if destination.tls is None:
        return plain
    name = destination.tls.server_name or destination.host
    return tls.client_context(destination.tls).wrap_socket(plain, server_hostname=name)


def _request(destination: Destination, calling: str) -> Any:
    from pynetdicom import build_context  # noqa: PLC0415 -- seldom needed
    from pynetdicom.pdu_primitives import (  # noqa: PLC0415
        A_ASSOCIATE,
        ImplementationClassUIDNotification,
        MaximumLengthNotification,
    )

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, destination.ae_title
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
    primitive.user_information = [length, implementation]
    context = build_context(VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    return primitive


def _asked(ask: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield a peer's answers; an association that ends early is a failure of its own."""
    try:
        yield from ask()
    except (RuntimeError, ValueError, AttributeError) as error:
        advice = Advice(Side.PEER, "it ended the association: look at the log of its DICOM service")
        raise StepFailedError("the association ended before the answer", advice) from error


def _status(answer: Any) -> int | None:
    return int(answer.Status) if answer is not None and "Status" in answer else None


def _words(status: int | None) -> str:
    if status is None:
        return "no answer: the association ended or the time was up"
    return "success" if status == 0 else f"status 0x{status:04X}"
