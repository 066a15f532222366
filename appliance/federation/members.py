"""Who belongs to a federation: the coordinator's table of members, each change of it in the ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select

from appliance import logs
from appliance.consortium import chronicle
from appliance.db.base import now
from appliance.db.coordinator import Member, MemberState
from appliance.db.engine import reading, writing
from appliance.federation.errors import MembershipError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

MEMBER_JOINED: Final = "member.joined"
MEMBER_LEFT: Final = "member.left"
MEMBER_EXPELLED: Final = "member.expelled"
MEMBER_RENEWED: Final = "member.renewed"
KEY_PINNED: Final = "member.key_pinned"
KEY_REFUSED: Final = "member.key_refused"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ENDED: Final = {MemberState.LEFT: MEMBER_LEFT, MemberState.EXPELLED: MEMBER_EXPELLED}

_LOG = logs.logger(__name__)


@dataclass(frozen=True)
class MemberView:
    """A member as it stands in the table.

    Parameters
    ----------
    signing_key : str or None
        Raw Ed25519 public key of the site's research zone, 64 hexadecimal digits; None until it is pinned.
    serials : tuple of str
        Serial numbers, as hex, of the certificates that are good now, the newest first.
    """

    id: str
    name: str
    state: MemberState
    signing_key: str | None
    serials: tuple[str, ...]
    certificate_ends_at: datetime
    joined_at: datetime
    left_at: datetime | None


@dataclass(frozen=True)
class Certificate:
    """What is kept of a certificate: its serial number as hex, and its end."""

    serial: str
    ends_at: datetime


def members(engine: Engine) -> tuple[MemberView, ...]:
    """Return all members there ever were, by name."""
    with reading(engine) as session:
        return tuple(_view(row) for row in session.scalars(select(Member).order_by(Member.name)))


def active(engine: Engine) -> frozenset[str]:
    """Return the names of the sites that take part now."""
    with reading(engine) as session:
        return frozenset(session.scalars(select(Member.name).where(Member.state == MemberState.ACTIVE)))


def find(engine: Engine, site: str) -> MemberView | None:
    """Return a member by its name."""
    with reading(engine) as session:
        row = _row(session, site)
        return None if row is None else _view(row)


def signing_key(engine: Engine, site: str) -> Ed25519PublicKey:
    """Return the key that a site's receipts are checked with; that of a site that left stays known.

    Raises
    ------
    MembershipError
        If there is no such member, or its key is not known.
    """
    member = find(engine, site)
    if member is None:
        raise MembershipError("there is no member of this name")
    if member.signing_key is None:
        raise MembershipError("the member's signing key is not known")
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(member.signing_key))


def admit(
    session: Session, ledger: Ledger, site: str, certificate: Certificate, key: str | None
) -> MemberView:
    """Make a site a member, again one that left, or give a member another certificate.

    The caller's transaction decides whether it lasts.

    Raises
    ------
    MembershipError
        If it was expelled, or shows another signing key than before; see :func:`check_key`.
    """
    row = _row(session, site)
    if row is None:
        row = Member(name=site, signing_key=_checked(key))
        session.add(row)
    elif row.state == MemberState.EXPELLED:
        raise MembershipError("the site was expelled; it cannot join under this name")
    elif key is not None and row.signing_key not in {None, _checked(key)}:
        raise MembershipError("the site has another signing key than before; let it join under a new name")
    row.state, row.left_at, row.joined_at = MemberState.ACTIVE, None, now()
    row.certificate_serial, row.certificate_ends_at = certificate.serial, certificate.ends_at
    row.previous_serial = None
    row.signing_key = row.signing_key or _checked(key)
    session.flush()
    body = {"certificate": _padded(certificate.serial), "signing_key": row.signing_key}
    _record(session, ledger, row, MEMBER_JOINED, body)
    return _view(row)


def check_key(engine: Engine, ledger: Ledger, site: str, key: str) -> None:
    """Refuse, and record, another signing key than the one that is known of a site; unknown sites pass.

    Raises
    ------
    MembershipError
        If the site has another key.
    """
    with writing(engine) as session:
        row = _row(session, site)
        other = row is not None and row.signing_key not in {None, _checked(key)}
        if row is not None and other:
            _record(session, ledger, row, KEY_REFUSED, {"signing_key": row.signing_key, "shown": key})
    if other:
        _LOG.error(KEY_REFUSED, site=site)
        raise MembershipError("the site shows another signing key than the one that is known")


def pin(engine: Engine, ledger: Ledger, site: str, key: str) -> None:
    """Keep a site's signing key; the same key again changes nothing.

    Raises
    ------
    MembershipError
        If there is no such active member, or another key is known: that is recorded, the known one stays.
    """
    check_key(engine, ledger, site, key)
    with writing(engine) as session:
        row = _active(session, site)
        if row.signing_key is None:
            row.signing_key = key
            _record(session, ledger, row, KEY_PINNED, {"signing_key": key})


def renew(session: Session, ledger: Ledger, site: str, used_serial: str, certificate: Certificate) -> None:
    """Note a site's new certificate; the one that it asked with stays good until its own end.

    Raises
    ------
    MembershipError
        If the site is not an active member.
    """
    row = _active(session, site)
    row.previous_serial = used_serial
    row.certificate_serial, row.certificate_ends_at = certificate.serial, certificate.ends_at
    _record(session, ledger, row, MEMBER_RENEWED, {"certificate": _padded(certificate.serial)})


def end(engine: Engine, ledger: Ledger, site: str, state: MemberState) -> MemberView:
    """Let a site leave, or expel it; its name and key stay in the table.

    Raises
    ------
    MembershipError
        If there is no such member, or it has been expelled already, or left and would leave again.
    """
    with writing(engine) as session:
        row = _row(session, site)
        if row is None:
            raise MembershipError("there is no member of this name")
        if row.state in {MemberState.EXPELLED, state}:
            raise MembershipError(f"the site is {row.state} already")
        row.state, row.left_at = state, now()
        _record(session, ledger, row, _ENDED[state], {})
        _LOG.warning(_ENDED[state], site=site)
        return _view(row)


def _row(session: Session, site: str) -> Member | None:
    return session.scalar(select(Member).where(Member.name == site))


def _active(session: Session, site: str) -> Member:
    row = _row(session, site)
    if row is None or row.state != MemberState.ACTIVE:
        raise MembershipError("there is no active member of this name")
    return row


def _checked(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        raise MembershipError("signing key: expected 64 lower-case hexadecimal digits")
    return key


def _padded(serial: str) -> str:
    return serial.rjust(40, "0")


def _record(session: Session, ledger: Ledger, row: Member, kind: str, body: dict[str, Any]) -> None:
    """Append to both ledgers; the coordinator's own names the site by a commitment: a name is free text."""
    body = {**body, "site": ledger.commitment("site", row.name)}
    ledger.append(session, kind=kind, subject_id=row.id, body=body, actor="coordinator")
    chronicle.append_members(session, ledger.signing)


def _view(row: Member) -> MemberView:
    serials = (row.certificate_serial, row.previous_serial)
    return MemberView(
        id=row.id,
        name=row.name,
        state=MemberState(row.state),
        signing_key=row.signing_key,
        serials=tuple(serial for serial in serials if serial is not None),
        certificate_ends_at=row.certificate_ends_at,
        joined_at=row.joined_at,
        left_at=row.left_at,
    )
