"""Secrets of peers: files of the clinical zone that only its user may read."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from appliance import durable
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

FOLDER: Final = "secrets"
MAX_BYTES: Final = 16_384
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SecretError(ApplianceError):
    """A secret that is not there, or not as it must be; its content is never in the message."""


def read(zone: ClinicalZone, name: str) -> str:
    """Return a secret: a bearer token, or ``user:password``.

    Raises
    ------
    SecretError
        If it is not there, is empty, or others than this user may read it.
    """
    path = _path(zone, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise SecretError(f"secret {name}: not stored; expected: cloister peer secret {name}") from None
    except OSError as error:
        raise SecretError(f"secret {name}: cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise SecretError(f"secret {name}: others may read its file; expected mode 0600")
        content = file.read(MAX_BYTES + 1)
    return _checked(name, content)


def write(zone: ClinicalZone, name: str, content: bytes) -> None:
    """Store a secret, in place of an older one.

    Raises
    ------
    SecretError
        If the name or the content cannot be one.
    """
    path = _path(zone, name)
    text = _checked(name, content)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    durable.write_whole(path, text.encode("utf-8"))


def exists(zone: ClinicalZone, name: str) -> bool:
    """Whether a secret of this name is stored."""
    return _path(zone, name).is_file()


def is_name(text: str) -> bool:
    """Whether this can be the name of a secret."""
    return _NAME.fullmatch(text) is not None


def _path(zone: ClinicalZone, name: str) -> Path:
    if not is_name(name):
        raise SecretError("secret: expected a name of 1 to 64 letters, digits, dots, hyphens or underscores")
    return zone.root / FOLDER / name


def _checked(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"secret {name}: expected UTF-8 text") from None
    if not text or len(content) > MAX_BYTES or not text.isprintable():
        raise SecretError(f"secret {name}: expected one line of 1 to {MAX_BYTES} printable characters")
    return text
