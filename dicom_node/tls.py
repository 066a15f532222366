"""TLS for DICOM associations and DICOMweb: the BCP 195 secure transport profile of PS3.15 annex B.

TLS 1.2 with forward-secret AEAD suites alone, and TLS 1.3 (RFC 8996, RFC 9325 4.2). Neither side ever falls
back to less: no renegotiation, no compression, no older version, no plain connection instead.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import threading
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

ClientCertificates = Literal["required", "optional", "none"]

# RFC 9325 4.2 for TLS 1.2, with the ChaCha20 suites of RFC 7905. Those of TLS 1.3 are all good.
CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
_RELOAD_EVERY_S: Final = 1.0
WRONG_PIN: Final = "the peer shows another certificate than the one it must show"


class TLSError(DICOMNodeError):
    """Our own certificate, key or authorities cannot be used."""


@dataclass(frozen=True)
class TLSOptions:
    """What one side shows and asks for. Files are PEM.

    Parameters
    ----------
    certificate, key : Path or None
        Ours, with the chain behind it; a server must have them, a client shows them when asked.
    ca : Path or None
        Authorities (or the certificates themselves) that we trust. None: as a client the system's, as a
        server nobody.
    client_certificates : {"required", "optional", "none"}
        What a server asks of its clients.
    sha256 : str
        The one certificate that the peer must show, as 64 hexadecimal digits. It stands for itself: a client
        then asks for no authority, name or date.
    server_name : str
        The name in the server's certificate, where it is not the host that is connected to.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    client_certificates: ClientCertificates = "required"
    sha256: str = ""
    server_name: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a context is made of."""
        return tuple(path for path in (self.certificate, self.key, self.ca) if path is not None)


class Context(ssl.SSLContext):
    """A context that keeps what went wrong last, since libraries above it forget."""

    failure: OSError | None = None
    pinned: str = ""


class _Socket(ssl.SSLSocket):
    """A socket that compares the pinned certificate, and never speaks plain after a shutdown."""

    context: Context

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, then look at the pinned certificate before anything is sent."""
        try:
            super().do_handshake(block)
            self._check_pin()
        except OSError as error:
            self.context.failure = error
            raise

    def _check_pin(self) -> None:
        wanted = self.context.pinned
        if wanted and not hmac.compare_digest(wanted, fingerprint(self)):
            raise ssl.SSLCertVerificationError(1, WRONG_PIN)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 -- the library's name
        """Read; with TLS 1.3 a server refuses our certificate only here."""
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            self.context.failure = error
            raise

    def shutdown(self, how: int) -> None:
        """Close the connection below; the library's own would have another thread read on without TLS."""
        super(ssl.SSLSocket, self).shutdown(how)


class _Object(ssl.SSLObject):
    """The same for those who carry the bytes themselves (asyncio)."""

    context: Context

    def do_handshake(self) -> None:
        """Shake hands, then look at the pinned certificate."""
        super().do_handshake()
        wanted, shown = self.context.pinned, self.getpeercert(binary_form=True) or b""
        if wanted and not hmac.compare_digest(wanted, hashlib.sha256(shown).hexdigest()):
            raise ssl.SSLCertVerificationError(1, WRONG_PIN)


def client_context(options: TLSOptions) -> Context:
    """Return the context of a requestor.

    Raises
    ------
    TLSError
        If one of our files cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, options)
    context.pinned = plain_fingerprint(options.sha256) if options.sha256 else ""
    if context.pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def server_context(options: TLSOptions) -> Context:
    """Return the context of an acceptor; raises like :func:`client_context`."""
    if options.certificate is None or options.key is None:
        raise TLSError("expected a certificate and a key to listen with TLS")
    if options.client_certificates != "none" and options.ca is None:
        raise TLSError("expected authorities (ca) to check the certificates of clients")
    context = _context(ssl.PROTOCOL_TLS_SERVER, options)
    context.verify_mode = {
        "required": ssl.CERT_REQUIRED,
        "optional": ssl.CERT_OPTIONAL,
        "none": ssl.CERT_NONE,
    }[options.client_certificates]
    # A client that writes and closes at once would reset the connection over tickets that it never reads.
    context.num_tickets = 0
    return context


def _context(protocol: int, options: TLSOptions) -> Context:
    context = Context(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    context.options |= (
        ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
    )
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.sslsocket_class, context.sslobject_class = _Socket, _Object
    try:
        if options.certificate is not None:
            context.load_cert_chain(options.certificate, options.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise TLSError("our certificate and key cannot be read, or do not belong together") from error
    try:
        if options.ca is not None:
            context.load_verify_locations(cafile=options.ca)
    except (OSError, ValueError) as error:
        raise TLSError("the file of trusted authorities cannot be read") from error
    return context


def _no_password() -> str:
    """Refuse an encrypted key; the library would ask at the terminal and wait."""
    raise ValueError("the key is encrypted")


class ServerContext:
    """The context of a listener, made anew when one of its files changes.

    Parameters
    ----------
    options : TLSOptions
    on_failure : callable
        Is told of new files that cannot be used; the listener goes on with the old ones.
    """

    def __init__(self, options: TLSOptions, on_failure: Callable[[TLSError], None]) -> None:
        self._options = options
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._seen = _stamps(options.files)
        self._context = server_context(options)

    def current(self) -> Context:
        """Return the context for the next connection."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _RELOAD_EVERY_S:
                self._looked_at = time.monotonic()
                self._renew()
            return self._context

    def _renew(self) -> None:
        stamps = _stamps(self._options.files)
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._context = server_context(self._options)
        except TLSError as error:
            self._on_failure(error)


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stamp(path) for path in files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def accept(plain: socket.socket, context: ssl.SSLContext, timeout_s: float) -> ssl.SSLSocket:
    """Shake hands with a client within a time that covers the whole handshake.

    Raises
    ------
    OSError
        If that fails or takes longer. The socket is closed then.
    """
    deadline = time.monotonic() + timeout_s
    plain.settimeout(timeout_s)
    secured = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    try:
        secured.setblocking(False)  # noqa: FBT003 -- the library's name
        _shake(secured, deadline)
        secured.settimeout(timeout_s)
    except OSError:
        secured.close()
        raise
    return secured


def _shake(secured: ssl.SSLSocket, deadline: float) -> None:
    import select  # noqa: PLC0415 -- a listener's alone

    while True:
        try:
            return secured.do_handshake()
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        left_s = deadline - time.monotonic()
        poller = select.poll()
        poller.register(secured.fileno(), wanted)
        if left_s <= 0 or not poller.poll(left_s * 1000):
            raise TimeoutError("the TLS handshake took too long")


def fingerprint(secured: ssl.SSLSocket) -> str:
    """Return the SHA-256 of the certificate that the peer showed; empty when it showed none."""
    shown = secured.getpeercert(binary_form=True)
    return hashlib.sha256(shown).hexdigest() if shown else ""


def plain_fingerprint(text: str) -> str:
    """Return a fingerprint as 64 lower-case digits, however it was written down.

    Raises
    ------
    ValueError
        If it is none of SHA-256.
    """
    digits = "".join(text.split()).replace(":", "").lower().removeprefix("sha256fingerprint=")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError("expected the SHA-256 fingerprint of a certificate: 64 hexadecimal digits")
    return digits


# X509_V_ERR_* of OpenSSL: what is wrong with a certificate.
_VERIFICATION: Final[Mapping[int, str]] = MappingProxyType(
    {
        9: "the peer's certificate is not valid yet",
        10: "the peer's certificate has expired",
        18: "the peer's certificate is signed by itself, and not among the trusted ones",
        19: "the peer's certificate comes from an authority that is not trusted here",
        20: "the peer's certificate comes from an authority that is not trusted here",
        21: "the peer's certificate comes from an authority that is not trusted here",
        26: "the peer's certificate is not made for this use",
        62: "the peer's certificate is made for another name",
        64: "the peer's certificate is made for another address",
    }
)
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "WRONG_VERSION_NUMBER": "the peer does not speak TLS on this port",
        "HTTP_REQUEST": "the peer speaks plain HTTP",
        "UNSUPPORTED_PROTOCOL": "the peer speaks no TLS version that is allowed (1.2 or 1.3)",
        "TLSV1_ALERT_PROTOCOL_VERSION": "the peer speaks no TLS version that is allowed (1.2 or 1.3)",
        "NO_SHARED_CIPHER": "no cipher suite in common",
        "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer breaks the handshake off: no cipher suite in common,"
        " or it wants our certificate",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants our certificate, and we showed none",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
        "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate",
        "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired, says the peer",
        "TLSV1_ALERT_DECRYPT_ERROR": "the peer cannot check our certificate",
        "TLSV1_ALERT_ACCESS_DENIED": "the peer does not accept our certificate",
        "TLSV1_UNRECOGNIZED_NAME": "the peer does not know the name that we asked for",
        "UNEXPECTED_EOF_WHILE_READING": "the peer closes the connection during the handshake",
    }
)


def explain(error: OSError) -> str:
    """Say in words for staff why TLS failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = getattr(error, "verify_code", None)
        if code is None:
            return WRONG_PIN
        return _VERIFICATION.get(code, f"the peer's certificate cannot be checked (OpenSSL {code})")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "EOF"
        return _REASONS.get(reason, f"the TLS handshake failed ({reason})")
    if isinstance(error, TimeoutError):
        return "the peer does not answer the TLS handshake"
    return "the peer closes the connection during the TLS handshake"


@dataclass(frozen=True)
class Certificate:
    """What stands in a certificate."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: datetime
    expires: datetime
    sha256: str


def describe(encoded: bytes) -> Certificate:
    """Read a certificate in DER or PEM (the first one of a chain).

    Raises
    ------
    ValueError
        If it is none.
    """
    from cryptography import x509  # noqa: PLC0415 -- heavy, and only needed to show one
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.x509.oid import ExtensionOID  # noqa: PLC0415

    pem = b"-----BEGIN CERTIFICATE-----" in encoded
    read = x509.load_pem_x509_certificate(encoded) if pem else x509.load_der_x509_certificate(encoded)
    names: tuple[str, ...] = ()
    try:
        found = read.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except (x509.ExtensionNotFound, ValueError):
        pass
    else:
        names = tuple(str(getattr(name, "value", "")) for name in found)  # type: ignore[attr-defined]
    return Certificate(
        subject=read.subject.rfc4514_string() or "no subject",
        issuer=read.issuer.rfc4514_string() or "no issuer",
        names=names,
        begins=read.not_valid_before_utc,
        expires=read.not_valid_after_utc,
        sha256=read.fingerprint(hashes.SHA256()).hex(),
    )
