"""Invitations: one-time rights to enrol. Of a code's secret the coordinator keeps the hash alone."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance.db.base import now
from appliance.db.coordinator import Invitation, Member, MemberState
from appliance.db.engine import reading, writing
from appliance.federation import authority, joincode
from appliance.federation.errors import EnrolmentError, MembershipError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from appliance.federation.provision import Federation
    from appliance.ledger import Ledger

MAX_ATTEMPTS: Final = 5
MAX_HOURS: Final = 24 * 14
INVITED: Final = "invitation.made"
WITHDRAWN: Final = "invitation.withdrawn"
WRONG_SECRET: Final = "invitation.wrong_secret"  # noqa: S105 - the name of an event
USED: Final = "invitation.used"


class Standing(StrEnum):
    """What a code is worth now."""

    GOOD = "good"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"
    WITHDRAWN = "withdrawn"
    LOCKED = "locked"


@dataclass(frozen=True)
class Judged:
    """A code's standing, and for one whose secret is right the invitation."""

    standing: Standing
    id: str = ""
    site: str = ""


@dataclass(frozen=True)
class OpenInvitation:
    """An invitation that can still be used."""

    site: str
    expires_at: datetime
    failed_attempts: int


def invite(
    federation: Federation, engine: Engine, ledger: Ledger, site: str, hours: float
) -> joincode.JoinCode:
    """Make a code for a site; an earlier open one for the same site is withdrawn.

    Raises
    ------
    EnrolmentError, MembershipError
        If the name or the hours are out of bounds, or the site was expelled.
    """
    if not joincode.SITE_NAME.fullmatch(site):
        raise EnrolmentError("site: expected 1 to 40 letters, digits or hyphens")
    if not 0 < hours <= MAX_HOURS:
        raise EnrolmentError(f"hours: expected more than 0 and at most {MAX_HOURS}")
    selector, secret = joincode.new_secrets()
    root = authority.load(federation.root).certificate
    with writing(engine) as session:
        member = session.scalar(select(Member).where(Member.name == site))
        if member is not None and member.state == MemberState.EXPELLED:
            raise MembershipError("the site was expelled; it cannot be invited under this name")
        for earlier in session.scalars(_open(site)):
            earlier.withdrawn_at = now()
            _record(session, ledger, earlier, WITHDRAWN, {})
        row = Invitation(
            id=_id(selector),
            site=site,
            secret_sha256=_hash(secret),
            expires_at=now() + timedelta(hours=hours),
        )
        session.add(row)
        session.flush()
        _record(session, ledger, row, INVITED, {"hours": hours})
    fingerprint = joincode.shortened(authority.fingerprint(root))
    return joincode.JoinCode(federation.host, federation.port, selector, secret, fingerprint)


def withdraw(engine: Engine, ledger: Ledger, site: str) -> int:
    """Withdraw a site's open invitations; return how many there were."""
    with writing(engine) as session:
        found = list(session.scalars(_open(site)))
        for row in found:
            row.withdrawn_at = now()
            _record(session, ledger, row, WITHDRAWN, {})
        return len(found)


def open_invitations(engine: Engine) -> tuple[OpenInvitation, ...]:
    """Return the invitations that can still be used."""
    with reading(engine) as session:
        rows = session.scalars(_open().order_by(Invitation.site))
        return tuple(OpenInvitation(row.site, row.expires_at, row.failed_attempts) for row in rows)


def judge(engine: Engine, ledger: Ledger, selector: str, secret: str) -> Judged:
    """Say what a code is worth; a wrong secret counts, and after a few the invitation is locked.

    Whoever does not know the secret learns nothing, not even whether there is such an invitation.
    """
    with writing(engine) as session:
        row = session.get(Invitation, _id(selector))
        known = "0" * 64 if row is None else row.secret_sha256
        is_right = hmac.compare_digest(known, _hash(secret))
        if row is None:
            return Judged(Standing.UNKNOWN)
        if not is_right:
            row.failed_attempts += 1
            if row.failed_attempts <= MAX_ATTEMPTS:
                _record(session, ledger, row, WRONG_SECRET, {"attempts": row.failed_attempts})
            return Judged(Standing.UNKNOWN)
        return Judged(_standing(row), row.id, row.site)


def use(session: Session, ledger: Ledger, invitation_id: str) -> None:
    """Use an invitation up, in the transaction that admits the site.

    Raises
    ------
    EnrolmentError
        If it was used or withdrawn meanwhile.
    """
    row = session.get(Invitation, invitation_id)
    if row is None or _standing(row) != Standing.GOOD:
        raise EnrolmentError("the code is no longer good; ask for a new one")
    row.used_at = now()
    _record(session, ledger, row, USED, {})


def _standing(row: Invitation) -> Standing:
    if row.failed_attempts >= MAX_ATTEMPTS:
        return Standing.LOCKED
    if row.withdrawn_at is not None:
        return Standing.WITHDRAWN
    if row.expires_at <= now():
        return Standing.EXPIRED
    return Standing.GOOD if row.used_at is None else Standing.USED


def _open(site: str | None = None) -> Any:
    found = select(Invitation).where(
        Invitation.used_at.is_(None),
        Invitation.withdrawn_at.is_(None),
        Invitation.expires_at > now(),
        Invitation.failed_attempts < MAX_ATTEMPTS,
    )
    return found if site is None else found.where(Invitation.site == site)


def _id(selector: str) -> str:
    """Name the row by a hash: the selector itself need not be kept."""
    return hashlib.sha256(f"cloister-invitation/{selector}".encode()).hexdigest()[:32]


def _hash(secret: str) -> str:
    return hashlib.sha256(f"cloister-secret/{secret}".encode()).hexdigest()


def _record(session: Session, ledger: Ledger, row: Invitation, kind: str, body: dict[str, Any]) -> None:
    body = {**body, "site": ledger.commitment("site", row.site)}
    ledger.append(session, kind=kind, subject_id=row.id, body=body, actor="coordinator")
