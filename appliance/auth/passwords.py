"""Passwords: argon2id, at least twelve characters."""

from __future__ import annotations

import functools
import secrets
from typing import TYPE_CHECKING, Final

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 256
_MEMORY_KIB: Final = 19_456  # with two passes on one lane: 19 MiB for each sign-in


class PasswordError(ApplianceError):
    """A password that is not accepted; the message says why, never the password."""


def check(password: str, user_name: str) -> None:
    """Refuse a password that is too short, too long, or made of the user's name."""
    if len(password) < MIN_LENGTH:
        raise PasswordError(f"too short; expected at least {MIN_LENGTH} characters")
    if len(password) > MAX_LENGTH:
        raise PasswordError(f"too long; expected at most {MAX_LENGTH} characters")
    if len(set(password)) < 4 or password.casefold().replace(user_name.casefold(), "") == "":
        raise PasswordError("too simple; expected other characters than the name, or one, over and over")


def hash_password(password: str) -> str:
    """Return the argon2id hash, with its parameters and salt in it."""
    return _hasher().hash(password)


def verify(stored: str, password: str) -> bool:
    """Whether the password is the one that was hashed; takes as long either way."""
    from argon2.exceptions import InvalidHashError, VerificationError  # noqa: PLC0415 - see _hasher

    if len(password) > MAX_LENGTH:
        return False
    try:
        return _hasher().verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def verify_nobody(password: str) -> None:
    """Take the time of a real check, so that an unknown name does not show by being quick."""
    verify(_nobody(), password)


@functools.cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher  # noqa: PLC0415 - only those who check passwords pay for it

    return PasswordHasher(time_cost=2, memory_cost=_MEMORY_KIB, parallelism=1)


@functools.cache
def _nobody() -> str:
    return hash_password(secrets.token_hex(16))
