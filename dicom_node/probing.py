"""Connection tests: one step after the other, up to the first that fails, with what to change and where.

Names, addresses and certificates of machines are shown, since staff need them; no patient's value is read.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from dicom_node import tls
from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.scu import Destination

SOON_S: Final = 30 * 24 * 3600
_ALERT_WAIT_S: Final = 0.6  # with TLS 1.3 a server refuses a missing certificate after the handshake


class StepState(StrEnum):
    """How a step ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Side(StrEnum):
    """Where something has to change."""

    PEER = "on the peer"
    HERE = "on this node"
    NETWORK = "on the network between"


@dataclass(frozen=True)
class Advice:
    """What to change on one side."""

    side: Side
    text: str


@dataclass(frozen=True)
class Step:
    """One step of a test: what was seen, and what to change if it is not as it should be."""

    name: str
    state: StepState
    seen: str
    advice: tuple[Advice, ...] = ()
    took_s: float = 0.0


class StepFailedError(DICOMNodeError):
    """Ends a test at its step."""

    def __init__(self, seen: str, *advice: Advice) -> None:
        super().__init__(seen)
        self.seen = seen
        self.advice = advice


@dataclass
class Trail:
    """The steps of a test, as they are gone."""

    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return all(step.state is not StepState.FAILED for step in self.steps)

    @contextmanager
    def step(self, name: str) -> Iterator[Note]:
        """Go one step; a :class:`StepFailedError` inside is noted and ends the test."""
        note = Note()
        started = time.monotonic()
        try:
            yield note
        except StepFailedError as failed:
            took_s = time.monotonic() - started
            self.steps.append(Step(name, StepState.FAILED, failed.seen, failed.advice, took_s))
            raise
        took_s = time.monotonic() - started
        state = StepState.WARNING if note.advice else StepState.OK
        self.steps.append(Step(name, state, note.seen, tuple(note.advice), took_s))


@dataclass
class Note:
    """What a step that went well has seen; an advice makes it a warning."""

    seen: str = ""
    advice: list[Advice] = field(default_factory=list)


def reach(trail: Trail, destination: Destination) -> None:
    """Resolve the name, connect, and shake hands where the peer is one with TLS.

    Raises
    ------
    StepFailedError
        At the step that failed; it is noted in the trail.
    """
    with trail.step("name") as note:
        addresses = _resolve(destination)
        note.seen = f"{destination.host} is {', '.join(addresses)}"
        if addresses == [destination.host]:
            note.seen = f"{destination.host} is an address"
    with trail.step("connection") as note:
        _connect(destination).close()
        note.seen = f"port {destination.port} accepts connections"
    if destination.tls is not None:
        with trail.step("tls") as note:
            _inspect(destination, destination.tls, note)


def listens(host: str, port: int, *, timeout_s: float) -> bool:
    """Whether something listens."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def _resolve(destination: Destination) -> list[str]:
    """Resolve in a thread of its own: the system's resolver may take longer than anybody waits."""
    found: list[Any] = []

    def ask() -> None:
        try:
            kind = socket.SOCK_STREAM
            found.append(socket.getaddrinfo(destination.host, destination.port, type=kind))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(destination.timeout_s)
    here = Advice(Side.HERE, "correct the host of this peer, or enter its address instead of its name")
    network = Advice(Side.NETWORK, "let this node's name server (DNS) know the name")
    if not found:
        raise StepFailedError("the name server does not answer", network, here)
    if isinstance(found[0], Exception):
        raise StepFailedError(f"the name {destination.host} has no address", here, network)
    return sorted({str(info[4][0]) for info in found[0]})


def _connect(destination: Destination) -> socket.socket:
    where = f"{destination.host} port {destination.port}"
    try:
        return socket.create_connection((destination.host, destination.port), timeout=destination.timeout_s)
    except TimeoutError:
        raise StepFailedError(
            f"no answer from {where} within {destination.timeout_s:.0f} s",
            Advice(Side.NETWORK, f"let this node through to {where} in every firewall on the way"),
            Advice(Side.HERE, "check host and port of this peer"),
            Advice(Side.PEER, "check that the machine is switched on"),
        ) from None
    except ConnectionRefusedError:
        raise StepFailedError(
            f"{where} refuses the connection: nothing listens there",
            Advice(Side.PEER, "start the DICOM service, or look up the port that it really listens on"),
            Advice(Side.HERE, "correct the port of this peer if it is another one"),
            Advice(Side.NETWORK, "a firewall that rejects answers the same"),
        ) from None
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StepFailedError(
            f"there is no way to {where} ({name})",
            Advice(Side.NETWORK, "check routes and cables between the two machines"),
            Advice(Side.HERE, "check the host of this peer"),
        ) from error


def _inspect(destination: Destination, options: tls.TLSOptions, note: Note) -> None:
    """Shake hands as an association would, and look at what the peer showed."""
    try:
        secured = _handshake(destination, options)
    except tls.TLSError as error:
        advice = Advice(Side.HERE, "check dicom.tls_certificate, dicom.tls_key and dicom.tls_ca")
        raise StepFailedError(str(error), advice) from error
    except OSError as error:
        raise _tls_failure(destination, options, error) from error
    with secured:
        version, cipher = secured.version(), (secured.cipher() or ("?",))[0]
        shown = tls.describe(secured.getpeercert(binary_form=True) or b"")
        refused = _refusal_after(secured)
    if refused is not None:
        raise _tls_failure(destination, options, refused)
    wants = _wants_ours(destination, options)
    note.seen = f"{version}, {cipher}; certificate of {shown.subject}, valid until {shown.expires:%Y-%m-%d}"
    note.seen += (
        "; it asks for our certificate and takes it" if wants else "; it needs no certificate of ours"
    )
    left_s = shown.expires.timestamp() - time.time()
    if left_s < SOON_S:
        words = "has expired" if left_s < 0 else f"expires in {left_s / 86400:.0f} days"
        note.advice.append(Advice(Side.PEER, f"renew the certificate: it {words}"))


def _handshake(destination: Destination, options: tls.TLSOptions) -> ssl.SSLSocket:
    context = tls.client_context(options)
    plain = _connect(destination)
    try:
        return context.wrap_socket(plain, server_hostname=options.server_name or destination.host)
    except OSError:
        plain.close()
        raise


def _refusal_after(secured: ssl.SSLSocket) -> OSError | None:
    """Return the alert that a server sends after the handshake, if it sends one."""
    secured.settimeout(_ALERT_WAIT_S)
    try:
        secured.recv(1)
    except TimeoutError:
        return None
    except OSError as error:
        return error
    return None


def _wants_ours(destination: Destination, options: tls.TLSOptions) -> bool:
    """Whether the peer refuses one who shows no certificate."""
    if options.certificate is None:
        return False
    try:
        with _handshake(destination, replace(options, certificate=None, key=None)) as secured:
            return _refusal_after(secured) is not None
    except (OSError, StepFailedError):
        return True


def _tls_failure(destination: Destination, options: tls.TLSOptions, error: OSError) -> StepFailedError:
    """Say what is wrong with the handshake, and show the certificate that is not trusted."""
    seen, advice = tls.explain(error), _tls_advice(error, options)
    if isinstance(error, ssl.SSLCertVerificationError):
        shown = _unverified(destination)
        if shown is not None:
            seen += (
                f"; it shows {shown.subject}, issued by {shown.issuer}, valid {shown.begins:%Y-%m-%d}"
                f" to {shown.expires:%Y-%m-%d}, for {', '.join(shown.names) or 'no name'},"
                f" SHA-256 {shown.sha256}"
            )
    return StepFailedError(seen, *advice)


def _unverified(destination: Destination) -> tls.Certificate | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(_connect(destination)) as secured:
            return tls.describe(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError, StepFailedError):
        return None


def _tls_advice(error: OSError, options: tls.TLSOptions) -> tuple[Advice, ...]:
    here, peer = Side.HERE, Side.PEER
    if isinstance(error, ssl.SSLCertVerificationError):
        code = getattr(error, "verify_code", None)
        if code is None:
            return (
                Advice(here, "if the peer's certificate was renewed, enter its new SHA-256 at this peer"),
                Advice(peer, "otherwise find out why it shows another certificate"),
            )
        if code in {9, 10}:
            return Advice(peer, "renew the certificate, or set the clock"), Advice(here, "check the clock")
        if code in {62, 64}:
            return (
                Advice(here, "enter the host as the certificate names it, or pin the certificate's SHA-256"),
                Advice(peer, "or issue a certificate for the name or address that we call"),
            )
        return (
            Advice(here, "add its authority to the file dicom.tls_ca, or pin the certificate's SHA-256"),
            Advice(peer, "or give it a certificate of an authority that is trusted here"),
        )
    reason = getattr(error, "reason", None) or ""
    if "VERSION" in reason or "PROTOCOL" in reason or reason == "HTTP_REQUEST":
        return (
            Advice(peer, "switch TLS on (1.2 or 1.3) on this port, or look up the port that has it"),
            Advice(here, "or correct the port, or take the mark TLS from this peer"),
        )
    broken_off = isinstance(error, ssl.SSLEOFError | ConnectionError | TimeoutError)
    ours = "show a certificate" if options.certificate is None else "show another certificate"
    without = (Advice(peer, "switch TLS on for this port: it seems to speak without"),) if broken_off else ()
    return (
        *without,
        Advice(peer, "trust our certificate (its authority), and allow ECDHE suites with AES-GCM"),
        Advice(here, f"{ours} (dicom.tls_certificate) that the peer trusts"),
    )
