"""A coordinator's door without the engine: real TLS, real enrolment, an echo where the engine would be."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from appliance.db.coordinator import CoordinatorLedgerEntry
from appliance.db.engine import reading
from appliance.federation import authority, door, enrolment, invitations, provision, statements
from appliance.federation.book import Book, open_book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.provision import Federation

PEM = serialization.Encoding.PEM


@dataclass
class Doorway:
    """What a test has of it."""

    federation: Federation
    book: Book
    door: door.Door
    port: int

    def invite(self, site: str = "north", hours: float = 1.0) -> str:
        """Return a code that leads to this port."""
        assert self.book.ledger is not None
        made = invitations.invite(self.federation, self.book.engine, self.book.ledger, site, hours)
        return str(made)

    def recorded(self) -> list[tuple[str, Any]]:
        """Return kind and body of all entries of the ledger."""
        with reading(self.book.engine) as session:
            rows = session.scalars(select(CoordinatorLedgerEntry).order_by(CoordinatorLedgerEntry.sequence))
            return [(row.kind, row.body) for row in rows]

    def connect(self, certificate: bytes | None, key: bytes | None, folder: Path) -> ssl.SSLSocket:
        """Connect as an engine does: no name asked for, a certificate shown."""
        context = ssl.create_default_context(cafile=str(self.federation.root / "authority" / "root.pem"))
        context.check_hostname = False
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if certificate is not None and key is not None:
            (folder / "c.pem").write_bytes(certificate + key)
            context.load_cert_chain(folder / "c.pem")
        plain = socket.create_connection(("127.0.0.1", self.port), 30)
        return context.wrap_socket(plain)

    def passes(self, certificate: bytes | None, key: bytes | None, folder: Path) -> bool:
        """Whether the engine gets the connection: it then echoes what is sent."""
        try:
            with self.connect(certificate, key, folder) as sock:
                sock.sendall(b"ping")
                return sock.recv(4) == b"ping"
        except OSError:
            return False


def echo(sock: ssl.SSLSocket) -> None:
    """Stand where the engine stands."""
    with contextlib.suppress(OSError):
        while content := sock.recv(64):
            sock.sendall(content)


@contextlib.contextmanager
def running_doorway(root: Path) -> Iterator[Doorway]:
    """Open a door on the port of a federation, a new one where the folder is missing; no process is left."""
    federation = provision.load(root) if root.exists() else provision.create(root)
    book = open_book(federation)
    short = Path(tempfile.mkdtemp(prefix="cloister-door-"))
    service = enrolment.serve(federation, book, short / "enrol.sock")
    startup = federation.server_workspace / "startup"
    opened = door.open_door(root, service.path, lambda: ())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(startup / "rootCA.pem"))
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    plain = socket.create_server(("127.0.0.1", federation.port))
    listener = door.Listening(context).wrap_socket(plain, server_side=True)
    accepting = threading.Thread(target=_accept, args=(listener, opened), daemon=True)
    accepting.start()
    try:
        yield Doorway(federation, book, opened, federation.port)
    finally:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(listener, socket.SHUT_RDWR)
        listener.close()
        accepting.join(30)
        service.stop()
        opened.engine.dispose()
        book.engine.dispose()
        shutil.rmtree(short)


def _accept(listener: ssl.SSLSocket, opened: door.Door) -> None:
    with contextlib.suppress(OSError, ValueError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(sock, opened), daemon=True).start()


def _serve(sock: socket.socket, opened: door.Door) -> None:
    assert isinstance(sock, ssl.SSLSocket)
    with sock:
        opened.receive(sock, lambda: echo(sock))


def new_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a TLS key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def key_pem(key: rsa.RSAPrivateKey) -> bytes:
    """Return a key as PEM."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, serialization.NoEncryption())


def request(key: Any, name: str = "whoever") -> bytes:
    """Return a request for a certificate that asks for more than it gets."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )


def signed(root: authority.Authority, key: rsa.RSAPrivateKey, name: str, days: float) -> bytes:
    """Return a certificate for a name that ends in so many days."""
    return root.sign_site(request(key), name, timedelta(days=days))


def foreign_authority() -> authority.Authority:
    """Return another root of the same name."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister")])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=2))
        .not_valid_after(at + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return authority.Authority(made, key)


def enrolment_connection(port: int, root: Path) -> ssl.SSLSocket:
    """Return a connection on which one question may be asked."""
    context = ssl.create_default_context(cafile=str(root / "authority" / "root.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([statements.ALPN])
    plain = socket.create_connection(("127.0.0.1", port), 30)
    return context.wrap_socket(plain, server_hostname="localhost")
