"""The coordinator's side of joining: questions come as one JSON object each, answers go back as one.

The engine's server process terminates TLS and passes a question on unread (:mod:`appliance.federation.door`);
the root key stays in this process.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from appliance import logs
from appliance.db.base import now
from appliance.db.coordinator import MemberState
from appliance.db.engine import writing
from appliance.federation import authority, dialect, invitations, members, policy, statements
from appliance.federation.errors import EnrolmentError, MembershipError
from appliance.federation.invitations import Judged, Standing
from appliance.federation.ledgerdesk import LedgerDesk
from appliance.federation.unixhttp import Request, Route, UnixServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from appliance.federation.authority import Authority
    from appliance.federation.book import Book
    from appliance.federation.provision import Federation
    from appliance.ledger import Ledger

PATH: Final = "/v1/enrolment"
MAX_QUESTION_BYTES: Final = 16 * 1024
MAX_WRONG_PER_MINUTE: Final = 20
CLOCK_SKEW: Final = timedelta(minutes=10)
CODE_REFUSED: Final = "federation.code_refused"
SITE_ENROLLED: Final = "federation.site_enrolled"
SITE_RENEWED: Final = "federation.site_renewed"

_WHY: Final[Mapping[Standing, str]] = {
    Standing.UNKNOWN: "the code is not known here; compare it with what was printed, or ask for a new one",
    Standing.EXPIRED: "the code has expired; ask the coordinator's people for a new one",
    Standing.USED: "the code was used already; ask the coordinator's people for a new one",
    Standing.WITHDRAWN: "the code was withdrawn; ask the coordinator's people for a new one",
    Standing.LOCKED: "the code was tried too often; ask the coordinator's people for a new one",
}

_LOG = logs.logger(__name__)


@dataclass
class WrongCodes:
    """How many unknown codes came within a minute; beyond the limit none is looked at."""

    limit: int = MAX_WRONG_PER_MINUTE
    clock: Callable[[], float] = time.monotonic
    _times: deque[float] = field(default_factory=deque)

    def check(self) -> None:
        """Raise EnrolmentError when there were too many."""
        at = self.clock()
        while self._times and at - self._times[0] > 60:
            self._times.popleft()
        if len(self._times) >= self.limit:
            raise EnrolmentError("too many wrong codes; try again in a minute")

    def add(self) -> None:
        """Count one."""
        self._times.append(self.clock())


@dataclass
class Enrolment:
    """Answers the questions of those who want to join, and of members."""

    federation: Federation
    engine: Engine
    ledger: Ledger
    authority: Authority
    wrong: WrongCodes = field(default_factory=WrongCodes)

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one question.

        Raises
        ------
        EnrolmentError, MembershipError
            With what is wrong and who can change it.
        """
        answers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "check": self._check,
            "enrol": self._enrol,
            "renew": self._renew,
            "leave": self._leave,
            "ledger": self._fetch,
            "share": self._share,
        }
        ask = answers.get(_text(question, "ask", 10))
        if ask is None:
            raise EnrolmentError(f"ask: expected one of {', '.join(answers)}")
        return ask(question)

    def _hello(self, question: Mapping[str, Any]) -> dict[str, Any]:
        del question
        return {
            "root": self.authority.pem.decode("ascii"),
            "at": now().isoformat(),
            "speaks": dialect.own().to_json(),
        }

    def _check(self, question: Mapping[str, Any]) -> dict[str, Any]:
        found = self._judged(question)
        return {"standing": found.standing.value, "site": found.site}

    def _enrol(self, question: Mapping[str, Any]) -> dict[str, Any]:
        found = self._judged(question)
        request, key = _text(question, "request", authority.MAX_REQUEST_BYTES), _text(question, "key", 64)
        made = statements.enrol(self._root(), request, _text(question, "selector", 5))
        _verify(key, question, made)
        again = found.standing == Standing.USED and self._is_known(found.site, key)
        if found.standing != Standing.GOOD and not again:
            _LOG.warning(CODE_REFUSED, standing=found.standing.value)
            raise EnrolmentError(_WHY[found.standing])
        members.check_key(self.engine, self.ledger, found.site, key)
        certificate = self.authority.sign_site(request.encode(), found.site)
        with writing(self.engine) as session:
            if not again:
                invitations.use(session, self.ledger, found.id)
            members.admit(session, self.ledger, found.site, authority.described(certificate), key)
        _LOG.info(SITE_ENROLLED, site=found.site)
        return self._signed(found.site, certificate)

    def _renew(self, question: Mapping[str, Any]) -> dict[str, Any]:
        member = self._asking(question, "renew")
        request = _text(question, "request", authority.MAX_REQUEST_BYTES)
        certificate = self.authority.sign_site(request.encode(), member.name)
        used = _text(question, "serial", 40)
        if used not in member.serials:
            raise MembershipError("the certificate is not one of this site's; join with a new code")
        with writing(self.engine) as session:
            members.renew(session, self.ledger, member.name, used, authority.described(certificate))
        _LOG.info(SITE_RENEWED, site=member.name)
        return self._signed(member.name, certificate)

    def _leave(self, question: Mapping[str, Any]) -> dict[str, Any]:
        member = self._asking(question, "leave")
        members.end(self.engine, self.ledger, member.name, MemberState.LEFT)
        return {"site": member.name}

    def _fetch(self, question: Mapping[str, Any]) -> dict[str, Any]:
        member = self._asking(question, "ledger")
        found = self._desk.fetch(member.name, _text(question, "request", authority.MAX_REQUEST_BYTES))
        return {**found, "speaks": dialect.own().to_json()}

    def _share(self, question: Mapping[str, Any]) -> dict[str, Any]:
        member = self._asking(question, "share")
        return self._desk.share(member.name, _text(question, "request", authority.MAX_REQUEST_BYTES))

    @cached_property
    def _desk(self) -> LedgerDesk:
        return LedgerDesk(self.engine, self.ledger)

    def _judged(self, question: Mapping[str, Any]) -> Judged:
        selector, secret = _text(question, "selector", 5), _text(question, "secret", 15)
        self.wrong.check()
        found = invitations.judge(self.engine, self.ledger, selector, secret)
        if found.standing == Standing.UNKNOWN:
            self.wrong.add()
        return found

    def _is_known(self, site: str, key: str) -> bool:
        """Whether the site with this key enrolled already and lost the answer."""
        member = members.find(self.engine, site)
        return member is not None and member.state == MemberState.ACTIVE and member.signing_key == key

    def _asking(self, question: Mapping[str, Any], what: str) -> members.MemberView:
        """Return the active member that asks, by the signature of its research zone's key."""
        site, at = _text(question, "site", 40), _text(question, "at", 40)
        member = members.find(self.engine, site)
        if member is None or member.state != MemberState.ACTIVE or member.signing_key is None:
            raise MembershipError("there is no active member of this name; join with a new code")
        request = str(question.get("request", ""))[: authority.MAX_REQUEST_BYTES]
        _verify(member.signing_key, question, statements.ask(what, self._root(), site, at, request))
        if abs(_moment(at) - now()) > CLOCK_SKEW:
            raise EnrolmentError("the site's clock differs by more than 10 minutes; set it by NTP")
        return member

    def _root(self) -> bytes:
        return authority.fingerprint(self.authority.certificate)

    def _signed(self, site: str, certificate: bytes) -> dict[str, Any]:
        return {
            "site": site,
            "certificate": certificate.decode("ascii"),
            "root": self.authority.pem.decode("ascii"),
            "host": self.federation.host,
            "port": self.federation.port,
            "federation": policy.PROJECT,
        }


def serve(federation: Federation, book: Book, path: Path) -> UnixServer:
    """Serve enrolment on a Unix socket, for the engine's server process; stop it at the end."""
    if book.ledger is None:
        raise EnrolmentError("enrolment needs the coordinator's ledger")
    service = Enrolment(federation, book.engine, book.ledger, authority.load(federation.root))

    def answer(request: Request) -> object:
        return service.answer(request.json())

    server = UnixServer(path, [Route("POST", PATH, answer, MAX_QUESTION_BYTES)])
    server.start()
    return server


def _text(question: Mapping[str, Any], name: str, longest: int) -> str:
    value = question.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise EnrolmentError(f"{name}: expected a text of at most {longest} characters")
    return value


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise EnrolmentError("at: expected a moment in ISO 8601 with its offset") from error
    if at.tzinfo is None:
        raise EnrolmentError("at: expected a moment in ISO 8601 with its offset")
    return at


def _verify(key: str, question: Mapping[str, Any], statement: bytes) -> None:
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(base64.b64decode(_text(question, "signature", 100), validate=True), statement)
    except (InvalidSignature, ValueError) as error:
        raise EnrolmentError("signature: not one of the research zone's signing key") from error
