"""The storage and verification SCP (PS3.4 annexes A and B)."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pynetdicom import AE, _config, build_context, evt

from dicom_node import draining, negotiation, part10, tls
from dicom_node.errors import InboxFullError, InstanceTooLargeError
from dicom_node.inbox import Announcement, Inbox, InboxWriter
from dicom_node.limits import TOO_MANY_ASSOCIATIONS, Limits, LocalPlaces, NoPlaceError
from dicom_node.listening import Handler, Server, SharedServer
from dicom_node.ports import Caller, CallerPolicy, Decision, Listener, Places
from dicom_node.services import offer, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pynetdicom.association import Association

    from dicom_node.commands import Command
    from dicom_node.services import Service

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124
OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000

# A-ASSOCIATE-RJ: result, source, reason (PS3.8 table 9-21).
_CALLING_NOT_RECOGNIZED: Final = (1, 1, 3)
_CALLED_NOT_RECOGNIZED: Final = (1, 1, 7)
_TEMPORARY: Final = (2, 1, 1)
_LOCAL_LIMIT: Final = (2, 3, 2)

WRONG_CALLED_AE_TITLE: Final = "wrong_called_ae_title"
POLICY_FAILED: Final = "policy_failed"
TLS_FAILED: Final = "tls_failed"


@dataclass(frozen=True)
class SCPConfig:
    """How the SCP listens. Port 0 lets the system choose."""

    ae_title: str
    host: str = "127.0.0.1"
    port: int = 0
    max_associations: int = 20
    network_timeout_s: float = 60
    association_timeout_s: float = 15
    max_pdu_bytes: int = 131072
    check_called_ae_title: bool = True
    plain: bool = True  # False: over TLS alone
    tls: tls.TLSOptions | None = None
    tls_port: int = 0
    shared: bool = False  # other processes listen on these ports too (SO_REUSEPORT)


class StorageSCP:
    """Receives instances into an inbox.

    Parameters
    ----------
    config : SCPConfig
        Where and how to listen.
    inbox : Inbox
        Takes the instances; this object holds it alone from :meth:`start` to :meth:`stop`.
    callers : CallerPolicy
        Decides who may send.
    listener : Listener
        Is told what happened.
    services : sequence of Service
        Services beside verification and storage.
    places : Places
        Shared with other receivers on the port; without it this one has places of its own.
    """

    def __init__(
        self,
        config: SCPConfig,
        inbox: Inbox,
        callers: CallerPolicy,
        listener: Listener,
        services: Sequence[Service] = (),
        places: Places | None = None,
    ) -> None:
        self._config = config
        self._services = tuple(services)
        self._inbox = inbox
        self._callers = callers
        self._listener = listener
        self._ae: AE | None = None
        self._limits = Limits(places or LocalPlaces(), config.max_associations)
        self._servers: list[Server] = []
        self.tls_port = 0  # where it listens with TLS, once it does

    def start(self) -> int:
        """Listen, and return the port (the one with TLS where there is no other).

        Raises
        ------
        InboxError
            When another process receives into the inbox.
        OSError
            When the address cannot be bound.
        TLSError
            When our certificate or key cannot be used.
        """
        # pynetdicom logs AE titles, UIDs and whole data sets; what matters goes to the listener instead.
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        self._inbox.recover()
        ae = AE(ae_title=self._config.ae_title)
        ae.maximum_associations = 2 * self._config.max_associations + 8  # those that are told no among them
        ae.maximum_pdu_size = self._config.max_pdu_bytes
        ae.network_timeout = self._config.network_timeout_s
        ae.acse_timeout = self._config.association_timeout_s
        ae.dimse_timeout = self._config.network_timeout_s
        ae.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = part10.IMPLEMENTATION_VERSION_NAME
        self._ae = ae
        try:
            if self._config.plain:
                self._listen(ae, self._config.port, None)
            if self._config.tls is not None:
                secure = tls.ServerContext(self._config.tls, self._on_bad_files)
                self.tls_port = self._listen(ae, self._config.tls_port, secure)
        except (OSError, tls.TLSError):
            self.stop()
            raise
        return int(self._servers[0].server_address[1])

    def _listen(self, ae: AE, port: int, secure: tls.ServerContext | None) -> int:
        server = ae.make_server(
            (self._config.host, port),
            contexts=[build_context(negotiation.VERIFICATION)],
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_ACCEPTED, self._on_accepted),
                (evt.EVT_REJECTED, self._on_rejected),
            ],
            server_class=SharedServer if self._config.shared else Server,
            request_handler=Handler,
        )
        server.scp, server.secure = self, secure
        ae._servers.append(server)  # noqa: SLF001 -- the server takes itself off this list when it ends
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.2,), name="scp-accept", daemon=True).start()
        return int(server.server_address[1])

    def stop(self, grace_s: float = 2.0, drain_s: float = 0.0) -> None:
        """Stop listening and end every association; see :func:`dicom_node.draining.end`.

        What was answered with success stays in the inbox.
        """
        if self._ae is None:
            return
        for server in self._servers:
            server.shutdown()
        ae = self._ae
        draining.end(lambda: ae.active_associations, drain_s=drain_s, grace_s=grace_s)
        self._servers, self._ae = [], None
        self._inbox.release()

    @property
    def association_count(self) -> int:
        """How many associations are open."""
        return len(self._ae.active_associations) if self._ae is not None else 0

    def begin(self, association: Association, context_id: int, command: Command) -> _Reception:
        """Start to receive one instance, when its caller may send the next."""
        caller, overdue = caller_of(association), None
        try:
            self._limits.wait(association, lambda: self._waits(association))
        except Exception as error:  # noqa: BLE001 -- edge of a request: its rate cannot be counted
            self._listener.on_failed(caller, error)
            overdue = OUT_OF_RESOURCES, "not ready, try again later"
        context = association._accepted_cx[context_id]  # noqa: SLF001
        announcement = Announcement(
            sop_class_uid=_uid_text(command.affected_sop_class_uid),
            sop_instance_uid=_uid_text(command.affected_sop_instance_uid),
            transfer_syntax_uid=str(context.transfer_syntax[0]),
        )
        refusal = overdue or self._refusal(context, announcement)
        return _Reception(self._inbox, self._listener, caller, announcement, refusal)

    def _refusal(self, context: Any, announcement: Announcement) -> tuple[int, str] | None:
        """Say what speaks against an instance before it is there: what was negotiated is no wish."""
        if not context.as_scp:
            return NOT_AUTHORIZED, "this association sends no instances"
        accepts = self._inbox.classes.accepts
        if not accepts(str(context.abstract_syntax)) or not accepts(announcement.sop_class_uid):
            return SOP_CLASS_NOT_SUPPORTED, "not a SOP class that is stored here"
        return None

    def _waits(self, association: Association) -> bool:
        association.dul._idle_timer.restart()  # noqa: SLF001 -- it is us that the peer waits for
        return self._ae is not None and bool(association.is_established)

    def serve(
        self, association: Association, otherwise: Callable[[Any, int], None], message: Any, context_id: int
    ) -> None:
        """Answer a request of a further service; ``otherwise`` takes what belongs to none."""
        caller = caller_of(association)
        with association.dul.at_work():
            error = serve(self._services, association, caller, otherwise, message, context_id)
        if error is not None:
            self._listener.on_failed(caller, error)

    def decide(self, caller: Caller) -> tuple[Decision, tuple[int, int, int]]:
        """Say whether a caller may associate, and with which words it is refused otherwise."""
        if self._config.check_called_ae_title and caller.called_ae_title != self._config.ae_title.strip():
            return Decision(allowed=False, reason=WRONG_CALLED_AE_TITLE), _CALLED_NOT_RECOGNIZED
        try:
            decision = self._callers.decide(caller)
        except Exception as error:  # noqa: BLE001 -- edge of an association: without an answer nobody may in
            self._listener.on_failed(caller, error)
            decision = Decision(allowed=False, reason=POLICY_FAILED, transient=True)
        return decision, _TEMPORARY if decision.transient else _CALLING_NOT_RECOGNIZED

    def _on_requested(self, event: Any) -> None:
        association = event.assoc
        caller = caller_of(association)
        decision, words = self._admit(association, caller)
        if decision.allowed:
            association.acceptor.supported_contexts = list(self._supported(association, decision))
            return
        association.acse.send_reject(*words)
        self._listener.on_rejected(caller, decision.reason)
        association.kill()

    def _admit(self, association: Association, caller: Caller) -> tuple[Decision, tuple[int, int, int]]:
        decision, words = self.decide(caller)
        if decision.allowed:
            try:
                self._limits.admit(association, caller, decision)
            except NoPlaceError as error:
                return Decision(allowed=False, reason=error.reason), _LOCAL_LIMIT
            except Exception as error:  # noqa: BLE001 -- edge of an association: uncounted nobody may in
                self._listener.on_failed(caller, error)
                return Decision(allowed=False, reason=POLICY_FAILED), _TEMPORARY
        return decision, words

    def on_ended(self, association: Association) -> None:
        """Give back the place of an association that is over."""
        self._limits.leave(association)

    def _supported(self, association: Association, decision: Decision) -> Sequence[Any]:
        offered = offer(self._services, decision)
        asked = association.requestor.role_selection.items() if offered.sends_instances else ()
        return negotiation.supported_contexts(
            association.requestor.primitive.presentation_context_definition_list,
            storage=decision.may_store,
            classes=self._inbox.classes,
            served=offered.roles,
            retrieving={str(uid) for uid, role in asked if role.scp_role},
        )

    def shake_hands(self, plain: Any, secure: tls.ServerContext, address: str) -> ssl.SSLSocket:
        """Start TLS on a connection; one who fails is noted by address, since its AE title is not known."""
        try:
            return tls.accept(plain, secure.current(), self._config.association_timeout_s)
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError:
            self._listener.on_rejected(Caller("", "", plain_address(address), tls=True), TLS_FAILED)
            raise

    def on_broken(self, association: Association, error: Exception) -> None:
        """Tell of an association that ended by an unforeseen error."""
        known = association.requestor.primitive is not None
        self._listener.on_failed(caller_of(association) if known else Caller("", "", ""), error)

    def _on_bad_files(self, error: tls.TLSError) -> None:
        self._listener.on_failed(Caller("", "", "", tls=True), error)

    def _on_accepted(self, event: Any) -> None:
        self._listener.on_accepted(caller_of(event.assoc))

    def _on_rejected(self, event: Any) -> None:
        self._listener.on_rejected(caller_of(event.assoc), TOO_MANY_ASSOCIATIONS)


class _Reception:
    """One instance on its way into the inbox: every failure becomes a status, the association goes on."""

    def __init__(
        self,
        inbox: Inbox,
        listener: Listener,
        caller: Caller,
        announcement: Announcement,
        refusal: tuple[int, str] | None = None,
    ) -> None:
        self._listener = listener
        self._caller = caller
        self._writer: InboxWriter | None = None
        self._failure = refusal
        if refusal is not None:
            return
        try:
            self._writer = inbox.begin(caller, announcement)
        except Exception as error:  # noqa: BLE001 -- edge of a request
            self._fail(error)

    def write(self, fragment: memoryview) -> None:
        """Store bytes; after a failure they are read and dropped, so that the association is kept."""
        if self._writer is None:
            return
        try:
            self._writer.write(fragment)
        except Exception as error:  # noqa: BLE001 -- edge of a request
            self._fail(error)

    def finish(self) -> tuple[int, str]:
        """Return success only for what is durable (PS3.4 B.2.3)."""
        entry = None
        if self._writer is not None:
            try:
                entry = self._writer.commit()
            except Exception as error:  # noqa: BLE001 -- edge of a request
                self._fail(error)
        if entry is None:
            status, comment = self._failure or (PROCESSING_FAILURE, "not stored")
            self._listener.on_refused(self._caller, status, comment)
            return status, comment
        self._listener.on_received(entry)
        return SUCCESS, ""

    def discard(self) -> None:
        """Forget what came so far."""
        if self._writer is not None:
            self._writer.discard()

    def _fail(self, error: Exception) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        if isinstance(error, InboxFullError):
            self._failure = OUT_OF_RESOURCES, "no space, try again later"
        elif isinstance(error, InstanceTooLargeError):
            self._failure = CANNOT_UNDERSTAND, "instance longer than accepted here"
        else:
            self._failure = PROCESSING_FAILURE, "not stored"
            self._listener.on_failed(self._caller, error)


def caller_of(association: Association) -> Caller:
    """Return who is at the other end."""
    primitive = association.requestor.primitive
    return Caller(
        calling_ae_title=str(primitive.calling_ae_title or "").strip(),
        called_ae_title=str(primitive.called_ae_title or "").strip(),
        address=plain_address(str(association.requestor.address_info.address)),
        tls=bool(getattr(association.dul.socket, "tls", False)),
        certificate_sha256=str(getattr(association.dul.socket, "certificate_sha256", "")),
    )


def plain_address(text: str) -> str:
    """Return an address without scope, and an IPv4 address that came mapped into IPv6 as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _uid_text(raw: bytes) -> str:
    return raw.rstrip(b"\0 ").decode("ascii", "replace")
