"""The one door of a coordinator: who may speak to the engine's server, looked at right after the handshake.

It stands in the engine's server process, before the engine sees a byte. A connection of a member, by a
certificate of the table that is good now, goes to the engine; one that asks for enrolment gets one question
answered; every other is refused and recorded. A member that is no longer one is cut off within a second.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy.exc import SQLAlchemyError

from appliance import logs
from appliance.db.coordinator import MemberState
from appliance.db.engine import make_engine, writing
from appliance.federation import enrolment, members, statements
from appliance.federation.book import open_ledger
from appliance.federation.errors import SiteServiceError
from appliance.federation.unixclient import JSON_TYPE, UnixClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.ledger import Ledger

HANDSHAKE_S: Final = 10.0
QUESTION_S: Final = 15.0
MAX_STRANGERS: Final = 64  # connections whose peer is not known yet
LOOK_EVERY_S: Final = 0.5
FORGET_AFTER_S: Final = 3600.0
MAX_RECORDED: Final = 60  # in that time
REFUSED: Final = "connection.refused"
CUT_OFF: Final = "connection.cut_off"
TABLE_AWAY: Final = "federation.member_table_away"
_LOOPBACK: Final = ("127.", "::1")
# OpenSSL's X509_V_ERR numbers (x509_vfy.h).
_WHY: Final = {9: "not_yet_valid", 10: "expired", 18: "foreign", 19: "foreign", 20: "foreign", 21: "foreign"}
_BAD_PURPOSE: Final = 26

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class Peer:
    """A certificate that was shown, signed by the federation's root."""

    name: str
    serial: str
    sha256: str
    der: bytes = field(repr=False)


@dataclass
class Door:
    """Decides about connections.

    Parameters
    ----------
    own : callable
        Returns the certificates (DER) with which this machine's own processes connect, over loopback alone.
    """

    engine: Engine
    ledger: Ledger
    service: UnixClient
    own: Callable[[], tuple[bytes, ...]]
    clock: Callable[[], float] = time.monotonic
    _strangers: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_STRANGERS)
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: dict[socket.socket, Peer] = field(default_factory=dict)
    _recorded: dict[tuple[str, str], float] = field(default_factory=dict)

    def receive(self, sock: ssl.SSLSocket, serve: Callable[[], None]) -> None:
        """Take one connection, its handshake still to come; ``serve`` lets the engine have it."""
        if not self._strangers.acquire(blocking=False):
            _LOG.warning(REFUSED, reason="too_many")
            return
        try:
            peer = self._met(sock)
        finally:
            self._strangers.release()
        if peer is None:
            return
        with self._lock:
            self._open[sock] = peer
        try:
            serve()
        finally:
            with self._lock:
                self._open.pop(sock, None)

    def look(self) -> None:
        """Cut off whoever is no longer to be here; without the table everybody."""
        with self._lock:
            here = dict(self._open)
        own, known = self.own(), self._known()
        for sock, peer in here.items():
            reason = _reason(peer, _address(sock), own, known)
            if reason:
                _LOG.warning(CUT_OFF, reason=reason)
                self._record(CUT_OFF, reason, peer.sha256)
                _cut(sock)

    def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            time.sleep(LOOK_EVERY_S)
            self.look()

    def _met(self, sock: ssl.SSLSocket) -> Peer | None:
        """Return the peer when the engine may have the connection."""
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.do_handshake()
        except ssl.SSLCertVerificationError as error:
            self.refuse(_WHY.get(error.verify_code, "unverified"), "")
            return None
        except OSError:  # not TLS, too slow, or gone: whoever scans ports fills no ledger
            return None
        if sock.selected_alpn_protocol() == statements.ALPN:
            self._serve_question(sock)
            return None
        shown = sock.getpeercert(binary_form=True)
        if shown is None:
            self.refuse("no_certificate", "")
            return None
        peer = _peer(shown)
        reason = self.reason(peer, _address(sock))
        if reason:
            self.refuse(reason, peer.sha256)
            return None
        sock.settimeout(None)
        return peer

    def reason(self, peer: Peer, address: str) -> str:
        """Return why a peer may not speak to the engine; empty when it may."""
        return _reason(peer, address, self.own(), self._known())

    def _known(self) -> dict[str, members.MemberView] | None:
        """Return all members by name, None when the table is away."""
        try:
            return {member.name: member for member in members.members(self.engine)}
        except SQLAlchemyError as error:
            _LOG.error(TABLE_AWAY, exc_info=error)
            return None

    def _serve_question(self, sock: ssl.SSLSocket) -> None:
        deadline = self.clock() + QUESTION_S
        try:
            question = self._line(sock, deadline)
            answer = self._answer(question)
            sock.settimeout(max(0.1, deadline - self.clock()))
            sock.sendall(answer + b"\n")
        except OSError:
            return  # too slow, or gone

    def _line(self, sock: ssl.SSLSocket, deadline: float) -> bytes:
        content = b""
        while b"\n" not in content and len(content) <= enrolment.MAX_QUESTION_BYTES:
            sock.settimeout(max(0.1, deadline - self.clock()))
            more = sock.recv(4096)
            if not more or self.clock() > deadline:
                raise TimeoutError
            content += more
        return content.partition(b"\n")[0]

    def _answer(self, question: bytes) -> bytes:
        if len(question) > enrolment.MAX_QUESTION_BYTES:
            return _error(f"expected a question of at most {enrolment.MAX_QUESTION_BYTES} bytes")
        try:
            return self.service.send("POST", enrolment.PATH, question, JSON_TYPE).content
        except SiteServiceError as error:
            return _error("the coordinator does not answer now; try again" if error.retryable else str(error))

    def refuse(self, reason: str, sha256: str) -> None:
        """Log and record a refusal."""
        _LOG.warning(REFUSED, reason=reason)
        self._record(REFUSED, reason, sha256)

    def _record(self, kind: str, reason: str, sha256: str) -> None:
        """Record each refusal of one kind once an hour: whoever knocks often fills no ledger."""
        at, key = self.clock(), (f"{kind}/{reason}", sha256)
        with self._lock:
            recent = {k: t for k, t in self._recorded.items() if at - t < FORGET_AFTER_S}
            self._recorded = recent
            if key in recent or len(recent) >= MAX_RECORDED:
                return
            recent[key] = at
        body: dict[str, Any] = {"reason": reason, **({"certificate": sha256} if sha256 else {})}
        try:
            with writing(self.engine) as session:
                self.ledger.append(session, kind=kind, body=body, actor="coordinator")
        except SQLAlchemyError as error:
            _LOG.error(TABLE_AWAY, exc_info=error)


def open_door(root: Path, enrolling: Path, own: Callable[[], tuple[bytes, ...]]) -> Door:
    """Return the door of a coordinator's folder; ``enrolling`` is the socket of its enrolment."""
    url = f"sqlite:///{root / 'coordinator.db'}"
    service = UnixClient(enrolling, QUESTION_S)
    return Door(make_engine(url), open_ledger(root), service, own)


def install(root: Path, enrolling: Path) -> None:
    """Put the door before the engine's TLS listener, in this process.

    The engine's own listener would do the handshake while it accepts: one silent peer would hold up all.
    """
    from nvflare.fuel.f3.drivers import tcp_driver  # noqa: PLC0415 - heavy

    server, admin = root / "server" / "startup", root / "admin" / "startup"

    def own() -> tuple[bytes, ...]:
        paths = (server / "server.crt", admin / "client.crt")
        return tuple(ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii")) for path in paths)

    door = open_door(root, enrolling, own)
    make_context, handler = tcp_driver.get_ssl_context, tcp_driver.ConnectionHandler

    def guarded_context(params: dict[str, Any], *, ssl_server: bool) -> Any:
        context = make_context(params, ssl_server=ssl_server)
        return Listening(context) if context is not None and ssl_server else context

    class GuardedHandler(handler):  # type: ignore[misc, valid-type]
        """Handles a connection of the engine behind the door; the local one of job processes has no TLS."""

        def handle(self) -> None:
            if isinstance(self.request, ssl.SSLSocket):
                door.receive(self.request, super().handle)
            else:
                super().handle()

    tcp_driver.get_ssl_context, tcp_driver.ConnectionHandler = guarded_context, GuardedHandler
    _record_other_names(door)
    tcp_driver.TcpStreamServer.request_queue_size = MAX_STRANGERS
    tcp_driver.TcpStreamServer.daemon_threads = True
    threading.Thread(target=door.watch, name="door", daemon=True).start()


def _record_other_names(door: Door) -> None:
    """Record what the engine refuses by itself: a member that speaks under another member's name."""
    from nvflare.fuel.f3.cellnet.identity import CellIdentityResolver  # noqa: PLC0415 - heavy

    require_match = CellIdentityResolver.require_match

    def recorded(resolver: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return require_match(resolver, *arguments, **named)
        except ValueError:
            door.refuse("other_name", "")
            raise

    CellIdentityResolver.require_match = recorded


class Listening:
    """The engine's TLS context with enrolment beside it and the handshake left to the connection's thread."""

    def __init__(self, context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_OPTIONAL  # who enrols has no certificate yet; the door looks
        context.set_alpn_protocols([statements.ALPN])
        self._context = context

    def wrap_socket(self, sock: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        """Wrap the listening socket."""
        return self._context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def _reason(
    peer: Peer, address: str, own: tuple[bytes, ...], known: Mapping[str, members.MemberView] | None
) -> str:
    if peer.der in own:
        return "" if address.startswith(_LOOPBACK) else "own_certificate_from_elsewhere"
    if known is None:
        return "table_away"
    member = known.get(peer.name)
    if member is None:
        return "not_member"
    if member.state != MemberState.ACTIVE:
        return member.state.value
    return "" if peer.serial in member.serials else "superseded"


def _peer(der: bytes) -> Peer:
    shown = x509.load_der_x509_certificate(der)
    names = [str(name.value) for name in shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    name = names[0] if len(names) == 1 else ""
    return Peer(name, f"{shown.serial_number:x}", hashlib.sha256(der).hexdigest(), der)


def _address(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""


def _cut(sock: socket.socket) -> None:
    """Close both directions below TLS: the thread that reads ends by itself."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # gone already


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()
