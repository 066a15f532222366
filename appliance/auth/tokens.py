"""Bearer tokens of programs that act for a user: a viewer, a PACS that stores over the web.

A token is shown once; the database holds its hash. It never opens the panel, and never gives more than its
user may do at that moment.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from appliance import logs
from appliance.auth import rights
from appliance.auth.rights import Right
from appliance.auth.sessions import Principal
from appliance.db.engine import reading, writing
from appliance.db.people import AccessToken, User
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger

CREATED: Final = "token.created"
REVOKED: Final = "token.revoked"
USE_NOT_NOTED: Final = "token.use_not_noted"
DEFAULT_RIGHTS: Final = frozenset({Right.VIEW, Right.VIEW_IDENTITY})
MAX_DAYS: Final = 3650
NOTE_EVERY_S: Final = 60.0
_PREFIX: Final = "cloister_"  # lets a scanner of repositories and mails know what it found
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_logger = logs.logger(__name__)


class TokenError(ApplianceError):
    """A token that cannot be made or found."""


@dataclass(frozen=True)
class Bearer:
    """Who a token acts for, and which token it is."""

    principal: Principal
    token_id: str
    token_name: str


def create(
    session: Session,
    ledger: Ledger,
    user: User,
    *,
    name: str,
    granted: Iterable[Right] = DEFAULT_RIGHTS,
    days: int | None = None,
    at: datetime,
    actor: str = "node",
) -> str:
    """Make a token in the caller's writing transaction and return it; it cannot be read again.

    Raises
    ------
    TokenError
        If the name is malformed or taken, the time is out of range, or the user lacks one of the rights.
    """
    wanted = frozenset(granted)
    if not _NAME.fullmatch(name):
        raise TokenError("name: expected 1 to 64 letters, digits, dots, hyphens or underscores")
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise TokenError(f"days: expected 1 to {MAX_DAYS}")
    missing = sorted(wanted - _rights_of(user))
    if not wanted or missing:
        raise TokenError(f"rights: expected some of the user's own; lacking {', '.join(missing) or 'any'}")
    taken = select(AccessToken.id).where(AccessToken.user_id == user.id, AccessToken.name == name)
    if session.scalar(taken) is not None:
        raise TokenError("name: this user has a token of this name already; revoke it first")
    secret = _PREFIX + secrets.token_urlsafe(32)
    token = AccessToken(
        user_id=user.id,
        name=name,
        token_hash=_hash(secret),
        rights=sorted(wanted),
        expires_at=None if days is None else at + timedelta(days=days),
        created_at=at,
    )
    session.add(token)
    session.flush()
    body = {"user_id": user.id, "rights": sorted(wanted), "days": days}
    ledger.append(session, kind=CREATED, subject_id=token.id, body=body, actor=actor)
    return secret


def of_user(session: Session, user: User) -> list[AccessToken]:
    """Return a user's tokens by name."""
    chosen = select(AccessToken).where(AccessToken.user_id == user.id).order_by(AccessToken.name)
    return list(session.scalars(chosen))


def find(session: Session, user: User, name: str) -> AccessToken:
    """Return a user's token of this name; raises TokenError when there is none."""
    for token in of_user(session, user):
        if token.name == name:
            return token
    raise TokenError("no token of this name; see: cloister user token list")


def revoke(session: Session, ledger: Ledger, token: AccessToken, actor: str = "node") -> None:
    """Forget a token; it is refused from the next request on."""
    body = {"user_id": token.user_id}
    ledger.append(session, kind=REVOKED, subject_id=token.id, body=body, actor=actor)
    session.delete(token)


def resolve(engine: Engine, secret: str, at: datetime) -> Bearer | None:
    """Return who this token acts for now.

    Returns
    -------
    Bearer or None
        None when the token is unknown, revoked or expired, or its user disabled or locked out. Rights are
        those that the user has now and the token was given.
    """
    statement = (
        select(AccessToken, User)
        .join(User, User.id == AccessToken.user_id)
        .where(
            AccessToken.token_hash == _hash(secret),
            or_(AccessToken.expires_at.is_(None), AccessToken.expires_at > at),
            User.enabled,
            or_(User.locked_until.is_(None), User.locked_until <= at),
        )
    )
    with reading(engine) as session:
        row = session.execute(statement).first()
    if row is None:
        return None
    token, user = row
    if token.last_used_at is None or (at - token.last_used_at).total_seconds() >= NOTE_EVERY_S:
        _note_use(engine, token.id, at)
    allowed = _rights_of(user) & rights.parse(token.rights)
    principal = Principal(user.id, user.name, allowed, token.expires_at or _FOREVER)
    return Bearer(principal, token.id, token.name)


def _note_use(engine: Engine, token_id: str, at: datetime) -> None:
    """Keep when a token was used, a minute exact; a database that cannot be written keeps nobody out."""
    before = at - timedelta(seconds=NOTE_EVERY_S)
    due = or_(AccessToken.last_used_at.is_(None), AccessToken.last_used_at <= before)
    try:
        with writing(engine) as session:
            session.execute(
                update(AccessToken).where(AccessToken.id == token_id, due).values(last_used_at=at)
            )
    except SQLAlchemyError as error:
        _logger.warning(USE_NOT_NOTED, token_id=token_id, error=type(error).__name__)


def _rights_of(user: User) -> frozenset[Right]:
    return rights.parse(user.rights)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
