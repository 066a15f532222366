"""What stands between this site and a coordinator, step by step: what is blocked, and who changes what."""

from __future__ import annotations

import socket
import ssl
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509

from appliance.db.base import now
from appliance.federation import askcoordinator, authority, joincode, workspaces
from appliance.federation.askcoordinator import Address
from appliance.federation.errors import (
    CoordinatorAwayError,
    EnrolmentError,
    FederationError,
    StrangeRootError,
)
from appliance.health import MEMBERSHIP, Check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SKEW: Final = timedelta(minutes=5)
_PORT: Final = "at this site: let the firewall pass outbound TCP to {0}; there: is the coordinator up?"
_TLS: Final = (
    "at this site: exempt {0} from TLS inspection; the connection needs the coordinator's own certificate"
)
_CODES: Final = {
    "expired": "the code has expired",
    "used": "the code was used already",
    "withdrawn": "the code was withdrawn",
    "locked": "the code was tried too often",
    "unknown": "the coordinator does not know the code",
}


def of_code(text: str) -> list[Check]:
    """Check the way to the coordinator of a code, and what the code is worth; nothing is changed."""
    try:
        code = joincode.parse(text)
    except EnrolmentError as error:
        return [
            Check(
                "code", ok=False, detail=str(error), fix="at this site: type it again, or have it read again"
            )
        ]
    address = Address(code.host, code.port)
    found = [Check("code", ok=True, detail=f"well written, for {address}"), *_way(address)]
    if not found[-1].ok:
        return found
    try:
        root = askcoordinator.learn_root(address, code.fingerprint)
        found.append(Check("TLS", ok=True, detail="the coordinator's own certificate"))
        found += _clock(address, root)
        question = {"ask": "check", "selector": code.selector, "secret": code.secret}
        answer = askcoordinator.ask(address, root, question)
    except FederationError as error:
        return [*found, _failed(address, error)]
    return [*found, _standing(answer)]


def of_site(workspace: Path) -> list[Check]:
    """Check a joined site: its certificate, the way to its coordinator, and the clock."""
    try:
        here = workspaces.read(workspace)
    except EnrolmentError as error:
        return [Check("federation", ok=False, detail=str(error), fix="join with a code", stops=False)]
    address = Address(here.host, here.port)
    found = [certificate(here.certificate), *_way(address)]
    if not found[-1].ok:
        return found
    try:
        found += _clock(address, here.root)
    except FederationError as error:
        return [*found, _failed(address, error)]
    return [
        *found,
        Check("coordinator", ok=True, detail=f"{address} answers with the federation's certificate"),
    ]


def certificate(content: bytes) -> Check:
    """Say how long a site's certificate is good."""
    made = x509.load_pem_x509_certificate(content)
    left, name = made.not_valid_after_utc - now(), MEMBERSHIP
    fix = "at this site: run cloister join --renew; when the coordinator refuses, ask its people for a code"
    if left <= timedelta(0):
        detail = f"expired on {made.not_valid_after_utc:%Y-%m-%d}; the coordinator refuses this site"
        return Check(name, ok=False, detail=detail, fix=fix, stops=False)
    detail = f"good until {made.not_valid_after_utc:%Y-%m-%d}"
    if authority.is_due(made):
        return Check(name, ok=True, detail=f"{detail}; not renewed yet", fix=fix, warning=True)
    return Check(name, ok=True, detail=detail)


def _way(address: Address) -> Iterator[Check]:
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        fix = "at this site: let the name server know this name; there: is the host name in the code right?"
        yield Check("name", ok=False, detail=f"{address.host}: {error.strerror}", fix=fix, stops=False)
        return
    yield Check("name", ok=True, detail=f"{address.host} has an address")
    try:
        with socket.create_connection((address.host, address.port), askcoordinator.CONNECT_S):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        fix = _PORT.format(address)
        yield Check("TCP", ok=False, detail=f"{address}: {why}", fix=fix, stops=False)
        return
    yield Check("TCP", ok=True, detail=f"{address} accepts connections")


def _clock(address: Address, root: bytes) -> Iterator[Check]:
    before = now()
    answer = askcoordinator.ask(address, root, {"ask": "hello"})
    half = (now() - before) / 2
    try:
        skew = abs(datetime.fromisoformat(str(answer.get("at"))) - before - half)
    except (TypeError, ValueError) as error:
        raise EnrolmentError("the coordinator's answer: at: expected a moment with its offset") from error
    is_near = skew <= MAX_SKEW
    detail = f"{skew.total_seconds():.0f} s beside the coordinator's"
    fix = "" if is_near else "on the side whose clock is wrong: set it by NTP"
    yield Check("clock", ok=is_near, detail=detail, fix=fix, stops=False)


def _standing(answer: dict[str, object]) -> Check:
    standing = str(answer.get("standing"))
    if standing == "good":
        return Check("code at the coordinator", ok=True, detail=f"good, for the site {answer.get('site')}")
    detail = _CODES.get(standing, "the coordinator does not take the code")
    fix = "there: make a new one with: cloister coordinator invite FOLDER --site NAME"
    return Check("code at the coordinator", ok=False, detail=detail, fix=fix, stops=False)


def _failed(address: Address, error: FederationError) -> Check:
    if isinstance(error, StrangeRootError):
        return Check("TLS", ok=False, detail=str(error), fix=_TLS.format(address), stops=False)
    if isinstance(error, CoordinatorAwayError) or isinstance(error.__cause__, ssl.SSLError):
        fix = _PORT.format(address)
        return Check("coordinator", ok=False, detail=str(error), fix=fix, stops=False)
    fix = "there: see the coordinator's log"
    return Check("coordinator", ok=False, detail=str(error), fix=fix, stops=False)
