"""People who sign in: made, changed and disabled, each time with a ledger entry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select

from appliance.auth import passwords
from appliance.db.people import User, UserSession
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from appliance.auth.rights import Right
    from appliance.ledger import Ledger

USER_ADDED: Final = "user.added"
USER_CHANGED: Final = "user.changed"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class UserError(ApplianceError):
    """A user that cannot be made or found."""


def add_user(
    session: Session,
    ledger: Ledger,
    *,
    name: str,
    password: str,
    rights: Iterable[Right],
    actor: str = "node",
) -> User:
    """Add a user in the caller's writing transaction.

    Raises
    ------
    UserError
        If the name is malformed or taken.
    PasswordError
        If the password is not acceptable.
    """
    if not _NAME.fullmatch(name):
        raise UserError("name: expected 1 to 64 lower-case letters, digits, dots, hyphens or underscores")
    if session.scalar(select(User.id).where(User.name == name)) is not None:
        raise UserError("name: taken already")
    passwords.check(password, name)
    user = User(
        name=name, password_hash=passwords.hash_password(password), rights=sorted(rights), enabled=True
    )
    session.add(user)
    session.flush()
    ledger.append(
        session, kind=USER_ADDED, subject_id=user.id, body={"rights": list(user.rights)}, actor=actor
    )
    return user


def names(session: Session) -> dict[str, str]:
    """Return the name of each user by row id."""
    return {user.id: user.name for user in session.scalars(select(User))}


def find_user(session: Session, name: str) -> User:
    """Return the user of this name; raises UserError when there is none."""
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise UserError("no user of this name; see: cloister user list")
    return user


def list_users(session: Session) -> list[User]:
    """Return all users by name."""
    return list(session.scalars(select(User).order_by(User.name)))


def set_enabled(session: Session, ledger: Ledger, user: User, *, enabled: bool, actor: str = "node") -> None:
    """Enable or disable a user; disabling ends all sessions."""
    user.enabled = enabled
    user.failed_attempts, user.locked_until = 0, None
    if not enabled:
        _end_sessions(session, user)
    ledger.append(session, kind=USER_CHANGED, subject_id=user.id, body={"enabled": enabled}, actor=actor)


def set_rights(
    session: Session, ledger: Ledger, user: User, *, rights: Iterable[Right], actor: str = "node"
) -> None:
    """Replace a user's rights; they hold from the next request on."""
    user.rights = sorted(rights)
    ledger.append(
        session, kind=USER_CHANGED, subject_id=user.id, body={"rights": list(user.rights)}, actor=actor
    )


def set_password(session: Session, ledger: Ledger, user: User, *, password: str, actor: str = "node") -> None:
    """Replace a user's password, end all sessions and lift a lock-out."""
    passwords.check(password, user.name)
    user.password_hash = passwords.hash_password(password)
    user.failed_attempts, user.locked_until = 0, None
    _end_sessions(session, user)
    ledger.append(session, kind=USER_CHANGED, subject_id=user.id, body={"password": True}, actor=actor)


def _end_sessions(session: Session, user: User) -> None:
    session.execute(delete(UserSession).where(UserSession.user_id == user.id))
