"""The verification and storage SCU (PS3.4 annexes A and B): results on their way out.

Instances are sent in the transfer syntax they are stored in, straight from the file. Only where a peer
refuses explicit VR little endian, the uncompressed data set is sent in the default transfer syntax, which
every peer must take (PS3.5 10.1).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dicom_node import part10
from dicom_node import tls as secure
from dicom_node.errors import DICOMNodeError, HeaderError
from dicom_node.negotiation import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pynetdicom.association import Association

EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
_MAX_CONTEXTS: Final = 128  # PS3.8 9.3.2.2: odd ids from 1 to 255
_MAX_PDU_BYTES: Final = 131072

# PS3.4 table B.2-1 and PS3.7 annex C: what another try can change, and what it cannot.
_WARNINGS: Final = frozenset({0xB000, 0xB006, 0xB007})
_NOT_SENT: Final = "the instance could not be sent"
_REJECTED: Final = (1, 2)  # permanent, transient (PS3.8 table 9-21)
_PERMANENT: Final = frozenset({0x0117, 0x0122, 0x0124, 0x0211, 0x0212})


@dataclass(frozen=True)
class Destination:
    """A peer that takes instances."""

    ae_title: str
    host: str
    port: int
    timeout_s: float = 30
    tls: secure.TLSOptions | None = None  # None: no TLS
    max_kib_per_s: int = 0  # of what a C-MOVE sends there; 0: no bound


@dataclass(frozen=True)
class EchoOutcome:
    """Answer to a C-ECHO."""

    ok: bool
    reason: str
    round_trip_s: float


@dataclass(frozen=True)
class StoreOutcome:
    """What became of one instance; ``status`` is None when there was no answer."""

    path: Path
    status: int | None
    ok: bool
    retryable: bool
    reason: str


class PausingCheckpoint(threading.Event):
    """The checkpoint at which pynetdicom's reactor pauses while a service waits for its answer.

    The library's own leaves a gap: the reactor has passed the checkpoint and does not say so yet, the service
    believes it paused and sends, and the reactor takes the answer away. Here passing and saying so are one.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self._step = threading.Lock()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Pass when open, and say so."""
        while super().wait(timeout):
            with self._step:
                if self.is_set():
                    self._association._is_paused = False  # noqa: SLF001 -- what the library does next itself
                    return True
        return False

    def clear(self) -> None:
        """Close."""
        with self._step:
            super().clear()


class AssociationError(DICOMNodeError):
    """No association; ``retryable`` says whether another try may have one.

    ``rejection`` is result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21), None where there was
    none; ``refused_contexts`` says that the peer accepted the association and no presentation context of it.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        rejection: tuple[int, int, int] | None = None,
        refused_contexts: bool = False,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.rejection = rejection
        self.refused_contexts = refused_contexts


@dataclass(frozen=True)
class _Instance:
    """A file to send, and the presentation context it needs."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str


def echo(destination: Destination, calling_ae_title: str) -> EchoOutcome:
    """Ask a peer whether it is there (PS3.7 9.1.5)."""
    started = time.monotonic()
    try:
        association = associate(destination, calling_ae_title, [(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])])
    except AssociationError as error:
        return EchoOutcome(ok=False, reason=str(error), round_trip_s=time.monotonic() - started)
    try:
        status = association.send_c_echo()
    except (RuntimeError, ValueError):
        return EchoOutcome(
            ok=False, reason="no answer to the C-ECHO", round_trip_s=time.monotonic() - started
        )
    finally:
        _release(association)
    code = status.get("Status") if status else None
    reason = (
        "answered" if code == 0 else "no answer to the C-ECHO" if code is None else f"status 0x{code:04X}"
    )
    return EchoOutcome(ok=code == 0, reason=reason, round_trip_s=time.monotonic() - started)


def store(
    paths: Iterable[Path],
    destination: Destination,
    calling_ae_title: str,
    on_bytes: Callable[[int], None] | None = None,
) -> list[StoreOutcome]:
    """Send Part 10 files; one outcome for each, in their order. Nothing is raised for a peer's fault.

    Parameters
    ----------
    paths : iterable of Path
        Files with file meta information; it decides SOP class and transfer syntax.
    destination : Destination
    calling_ae_title : str
        Ours.
    on_bytes : callable, optional
        Told before so many bytes of a data set leave; it may hold them back.
    """
    outcomes: dict[Path, StoreOutcome] = {}
    instances: list[_Instance] = []
    ordered = list(paths)
    for path in ordered:
        try:
            instances.append(_read(path))
        except (OSError, HeaderError):
            outcomes[path] = StoreOutcome(
                path, None, ok=False, retryable=False, reason="the file cannot be read"
            )
    for batch in _batches(instances):
        for outcome in _store_batch(batch, destination, calling_ae_title, on_bytes):
            outcomes[outcome.path] = outcome
    return [outcomes[path] for path in ordered]


def _read(path: Path) -> _Instance:
    with path.open("rb") as file:
        meta = part10.decode(file.read(part10.MAX_META_BYTES))
    if not (meta.uid(0x0002) and meta.uid(0x0003) and meta.uid(0x0010)):
        raise HeaderError(
            "bad_file_meta", "file meta information without SOP class, instance or transfer syntax"
        )
    return _Instance(path, meta.uid(0x0002), meta.uid(0x0010))


def _contexts(instances: Sequence[_Instance]) -> list[tuple[str, list[str]]]:
    """Return a presentation context for each pair of SOP class and transfer syntax: none is converted."""
    pairs = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in instances)
    explicit = {sop_class for sop_class, syntax in pairs if syntax == EXPLICIT_VR_LITTLE_ENDIAN}
    pairs.update(dict.fromkeys((sop_class, IMPLICIT_VR_LITTLE_ENDIAN) for sop_class in sorted(explicit)))
    return [(sop_class, [syntax]) for sop_class, syntax in pairs]


def _batches(instances: Sequence[_Instance]) -> list[list[_Instance]]:
    """Split so that the presentation contexts of each part fit into one association."""
    batches: list[list[_Instance]] = []
    for item in instances:
        if not batches or len(_contexts([*batches[-1], item])) > _MAX_CONTEXTS:
            batches.append([])
        batches[-1].append(item)
    return batches


def _store_batch(
    batch: Sequence[_Instance],
    destination: Destination,
    calling_ae_title: str,
    on_bytes: Callable[[int], None] | None,
) -> list[StoreOutcome]:
    try:
        association = associate(destination, calling_ae_title, _contexts(batch))
    except AssociationError as error:
        return [
            StoreOutcome(item.path, None, ok=False, retryable=error.retryable, reason=str(error))
            for item in batch
        ]
    try:
        return [_store_one(association, item, number, on_bytes) for number, item in enumerate(batch)]
    finally:
        _release(association)


def _store_one(
    association: Association, item: _Instance, number: int, on_bytes: Callable[[int], None] | None
) -> StoreOutcome:
    from dicom_node import sending  # noqa: PLC0415 -- brings the network library

    if not association.is_established:
        return StoreOutcome(item.path, None, ok=False, retryable=True, reason="the association ended early")
    accepted = sending.accepted_syntaxes(association, item.sop_class_uid)
    if item.transfer_syntax_uid in accepted:
        try:
            status = sending.send_store(
                association, item.path, message_id=number % 0xFFFF + 1, on_bytes=on_bytes
            )
        except sending.SendingError as error:
            return StoreOutcome(item.path, None, ok=False, retryable=True, reason=str(error))
        except (OSError, HeaderError):
            return StoreOutcome(item.path, None, ok=False, retryable=True, reason=_NOT_SENT)
        return outcome_of(item.path, status)
    if item.transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN and IMPLICIT_VR_LITTLE_ENDIAN in accepted:
        if on_bytes is not None:
            on_bytes(item.path.stat().st_size)
        return _store_implicit(association, item, number)
    reason = "the peer accepts neither this SOP class nor this transfer syntax together"
    return StoreOutcome(item.path, None, ok=False, retryable=False, reason=reason)


def _store_implicit(association: Association, item: _Instance, number: int) -> StoreOutcome:
    """Send the data set encoded anew, in the transfer syntax that every peer must take."""
    from pydicom import dcmread  # noqa: PLC0415 -- seldom needed

    try:
        answer = association.send_c_store(dcmread(item.path), msg_id=number % 0xFFFF + 1)
    except (RuntimeError, ValueError, AttributeError, OSError):
        return StoreOutcome(item.path, None, ok=False, retryable=True, reason=_NOT_SENT)
    if "Status" not in answer:
        return StoreOutcome(item.path, None, ok=False, retryable=True, reason="no answer to the C-STORE")
    return outcome_of(item.path, int(answer.Status))


def outcome_of(path: Path, status: int) -> StoreOutcome:
    """Read a C-STORE status (PS3.4 table B.2-1). An error comment is not repeated: it may hold values."""
    if status == 0 or status in _WARNINGS:
        reason = "stored" if status == 0 else f"stored with warning 0x{status:04X}"
        return StoreOutcome(path, status, ok=True, retryable=False, reason=reason)
    if 0xA700 <= status <= 0xA7FF:
        return StoreOutcome(
            path, status, ok=False, retryable=True, reason=f"0x{status:04X}: peer out of resources"
        )
    permanent = status in _PERMANENT or 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF
    return StoreOutcome(
        path, status, ok=False, retryable=not permanent, reason=f"0x{status:04X}: refused by the peer"
    )


def associate(
    destination: Destination,
    calling_ae_title: str,
    contexts: Sequence[tuple[str, list[str]]],
    *,
    extended: Sequence[Any] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Association:
    """Open an association, with TLS where the destination asks for it and never without it then.

    Parameters
    ----------
    destination : Destination
    calling_ae_title : str
        Ours.
    contexts : sequence
        Abstract syntax and transfer syntaxes of each presentation context.
    extended : sequence
        Items of extended negotiation: role selection, user identity.
    handlers : sequence
        pynetdicom's events and what handles them.

    Raises
    ------
    AssociationError
        Saying why there is none, and whether another try may have one.
    """
    from pynetdicom import AE, _config, build_context, evt  # noqa: PLC0415 -- heavy, and only needed to send

    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_SEND_CHUNKED_DATASET = True
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    ae = AE(ae_title=calling_ae_title)
    ae.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = part10.IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = destination.timeout_s
    ae.dimse_timeout = ae.network_timeout = destination.timeout_s
    try:
        context = None if destination.tls is None else secure.client_context(destination.tls)
    except secure.TLSError as error:
        raise AssociationError(str(error), retryable=True) from error
    try:
        association = ae.associate(
            destination.host,
            destination.port,
            contexts=[build_context(abstract, syntaxes) for abstract, syntaxes in contexts],
            ae_title=destination.ae_title,
            max_pdu=_MAX_PDU_BYTES,
            ext_neg=list(extended) or None,
            evt_handlers=[(evt.EVT_CONN_OPEN, _prepare), *handlers],
            tls_args=None if context is None else (context, _server_name(destination)),
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise AssociationError(
            f"no connection ({type(error).__name__})", retryable=isinstance(error, OSError)
        ) from error
    if association.is_established:
        return association
    if context is not None and context.failure is not None:
        raise AssociationError(f"TLS: {secure.explain(context.failure)}", retryable=True)
    raise _refusal(association)


def _server_name(destination: Destination) -> str:
    named = "" if destination.tls is None else destination.tls.server_name
    return named or destination.host


def _refusal(association: Association) -> AssociationError:
    """Say why there is no association; a permanent rejection is for people to solve."""
    # Where the peer rejects and closes faster than the library looks, the answer still waits unread.
    answer = association.acceptor.primitive or association.dul.peek_next_pdu()
    if getattr(answer, "result", 0) in _REJECTED:
        words = getattr(answer, "reason_str", "no reason given")
        return AssociationError(
            f"association rejected: {words}",
            retryable=answer.result != 1,
            rejection=(int(answer.result), int(answer.result_source or 0), int(answer.diagnostic or 0)),
        )
    if association.acceptor.primitive is not None:
        return AssociationError(
            "the peer accepts none of the presentation contexts", retryable=False, refused_contexts=True
        )
    return AssociationError("no connection, or no answer to the association request", retryable=True)


def _prepare(event: Any) -> None:
    """Switch Nagle's algorithm off: a request is several small PDUs, and the answer depends on the last."""
    event.assoc._reactor_checkpoint = PausingCheckpoint(event.assoc)  # noqa: SLF001 -- before the reactor starts
    connection = event.assoc.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The library leaves none: a peer that stalls inside a PDU would hold its thread without end.
    connection.settimeout(event.assoc.network_timeout)


def _release(association: Association) -> None:
    if association.is_established:
        association.release()
