"""A site's questions to its coordinator: one TLS connection, one JSON object each way."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from appliance.federation import dialect, joincode, statements
from appliance.federation.errors import CoordinatorAwayError, EnrolmentError, StrangeRootError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 1024 * 1024  # blocks of the ledger: an offer in JSON
_SHA256: Final = hashes.SHA256()
_PEM: Final = serialization.Encoding.PEM
_PROXY: Final = (
    "a certificate of another authority was shown: "
    "an inspecting proxy stands between, or another server answers"
)


@dataclass(frozen=True)
class Address:
    """Where the coordinator is."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host and port."""
        return f"{self.host}:{self.port}"


def ask(address: Address, root: bytes, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask one question of a coordinator whose root certificate is known.

    Parameters
    ----------
    root : bytes
        The root certificate as PEM; the other side must show one of it for this very host name.

    Raises
    ------
    CoordinatorAwayError
        If it cannot be reached.
    StrangeRootError
        If somebody else answers.
    EnrolmentError
        If it refuses; the message is the coordinator's.
    """
    context = ssl.create_default_context(cadata=root.decode("ascii"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the engine's provisioning marks less than that wants
    return _exchange(address, context, question)[0]


def learn_root(address: Address, fingerprint: str) -> bytes:
    """Return the root certificate, which must be the one that the code names, and of this connection.

    Nothing secret is sent here: the other side is known only when this returns.

    Raises
    ------
    CoordinatorAwayError
        If it cannot be reached.
    StrangeRootError
        If the root is another one, or the connection's certificate is not of it.
    EnrolmentError
        If it runs a version of Cloister with which this one cannot work.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    answer, shown = _exchange(address, context, {"ask": "hello"})
    try:
        root = x509.load_pem_x509_certificate(str(answer.get("root", "")).encode("ascii"))
        digest = root.fingerprint(_SHA256)
        x509.load_der_x509_certificate(shown).verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise StrangeRootError(_PROXY) from error
    if joincode.shortened(digest) != fingerprint:
        raise StrangeRootError("the coordinator has another root certificate than the code names")
    dialect.check_coordinator(answer)
    return root.public_bytes(_PEM)


def _exchange(
    address: Address, context: ssl.SSLContext, question: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes]:
    context.set_alpn_protocols([statements.ALPN])
    try:
        with (
            socket.create_connection((address.host, address.port), CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as sock,
        ):
            shown = sock.getpeercert(binary_form=True) or b""
            if sock.selected_alpn_protocol() != statements.ALPN:
                raise StrangeRootError(_PROXY)
            sock.settimeout(ANSWER_S)
            sock.sendall(json.dumps(dict(question)).encode() + b"\n")
            return _read(sock), shown
    except ssl.SSLCertVerificationError as error:
        raise StrangeRootError(f"{_PROXY} ({error.verify_message})") from error
    except OSError as error:
        raise CoordinatorAwayError(
            f"{address}: no answer ({error.strerror or type(error).__name__})"
        ) from error


def _read(sock: ssl.SSLSocket) -> dict[str, Any]:
    content = b""
    while not content.endswith(b"\n") and len(content) <= MAX_ANSWER_BYTES:
        more = sock.recv(8192)
        if not more:
            break
        content += more
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise CoordinatorAwayError("the coordinator closed the connection without an answer") from error
    if not isinstance(answer, dict):
        raise EnrolmentError("the coordinator's answer: expected an object")
    if "error" in answer:
        raise EnrolmentError(f"the coordinator refuses: {_printable(answer['error'])}")
    return answer


def _printable(value: object) -> str:
    return "".join(character for character in str(value)[:300] if character.isprintable())
