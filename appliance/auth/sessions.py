"""Signing in and out. The database holds only hashes of the cookies."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select, update

from appliance.auth import passwords, rights
from appliance.db.engine import reading, writing
from appliance.db.people import User, UserSession
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from appliance.auth.rights import Right
    from appliance.ledger import Ledger

ATTEMPTS: Final = 5
FIRST_LOCK_S: Final = 60.0
LONGEST_LOCK_S: Final = 3600.0
SIGNED_IN: Final = "user.signed_in"
LOCKED_OUT: Final = "user.locked_out"


class SignInError(ApplianceError):
    """Name or password is wrong, or the user is disabled: which one is not said."""

    def __init__(self, message: str = "name or password is wrong") -> None:
        super().__init__(message)


class LockedOutError(SignInError):
    """Too many wrong passwords; ``until`` says when the next try counts."""

    def __init__(self, until: datetime) -> None:
        super().__init__("too many wrong passwords; wait a while")
        self.until = until


@dataclass(frozen=True)
class Principal:
    """A signed-in person; ask again for every request and every event."""

    user_id: str
    name: str
    rights: frozenset[Right]
    expires_at: datetime

    def may(self, right: Right) -> bool:
        """Whether this person may do that."""
        return right in self.rights


@dataclass(frozen=True, repr=False)
class SignIn:
    """What a successful sign-in gives: the cookie's content, and who it is."""

    token: str
    principal: Principal


def sign_in(
    engine: Engine, ledger: Ledger, *, name: str, password: str, hours: float, at: datetime
) -> SignIn:
    """Check name and password and open a session.

    Parameters
    ----------
    engine : Engine
        Clinical database.
    ledger : Ledger
    name, password : str
    hours : float
        How long the session lasts.
    at : datetime
        The present moment.

    Raises
    ------
    LockedOutError
        While the user is locked out; the password is not even looked at.
    SignInError
        For everything else that is wrong.
    """
    with reading(engine) as session:
        user = session.scalar(select(User).where(User.name == name))
    if user is None:
        passwords.verify_nobody(password)
        raise SignInError
    if user.locked_until is not None and user.locked_until > at:
        raise LockedOutError(user.locked_until)
    if not passwords.verify(user.password_hash, password):
        _count_failure(engine, ledger, user.id, at)
        raise SignInError
    if not user.enabled:
        raise SignInError
    token = secrets.token_urlsafe(32)
    expires_at = at + timedelta(hours=hours)
    with writing(engine) as session:
        session.execute(delete(UserSession).where(UserSession.expires_at <= at))
        still = session.execute(
            update(User)
            .where(User.id == user.id, User.enabled, User.password_hash == user.password_hash)
            .values(failed_attempts=0, locked_until=None)
            .returning(User.id)
        ).first()
        if still is None:
            raise SignInError
        session.add(UserSession(token_hash=_hash(token), user_id=user.id, expires_at=expires_at))
        ledger.append(session, kind=SIGNED_IN, subject_id=user.id, actor=user.id)
    return SignIn(token, Principal(user.id, user.name, rights.parse(user.rights), expires_at))


def resolve(engine: Engine, token: str | None, at: datetime) -> Principal | None:
    """Return who holds this cookie now; None when it is unknown, expired, or its user disabled."""
    if not token:
        return None
    statement = (
        select(User, UserSession.expires_at)
        .join(UserSession, UserSession.user_id == User.id)
        .where(UserSession.token_hash == _hash(token), UserSession.expires_at > at, User.enabled)
    )
    with reading(engine) as session:
        row = session.execute(statement).first()
        if row is None:
            return None
        user, expires_at = row
        return Principal(user.id, user.name, rights.parse(user.rights), expires_at)


def sign_out(engine: Engine, token: str) -> None:
    """End a session; unknown ones are as good as ended."""
    with writing(engine) as session:
        session.execute(delete(UserSession).where(UserSession.token_hash == _hash(token)))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _count_failure(engine: Engine, ledger: Ledger, user_id: str, at: datetime) -> None:
    """Count a wrong password; from the fifth on lock the user out, longer each time."""
    with writing(engine) as session:
        attempts = session.execute(
            update(User)
            .where(User.id == user_id)
            .values(failed_attempts=User.failed_attempts + 1)
            .returning(User.failed_attempts)
        ).scalar_one()
        if attempts < ATTEMPTS:
            return
        lock_s = min(FIRST_LOCK_S * 2 ** (attempts - ATTEMPTS), LONGEST_LOCK_S)
        session.execute(
            update(User).where(User.id == user_id).values(locked_until=at + timedelta(seconds=lock_s))
        )
        ledger.append(session, kind=LOCKED_OUT, subject_id=user_id, body={"attempts": attempts})
