"""Checks of the fields of a model card, which a stranger may have written."""

from __future__ import annotations

import math
from typing import Any, Final

from inference.errors import PackageError

MAX_ITEMS: Final = 64


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether it is a whole number in this range."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_text(value: object, name: str, limit: int) -> None:
    """Refuse what is no text of 1 to ``limit`` printable characters.

    Raises
    ------
    PackageError
        ``card``, as all of these do.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > limit or not value.isprintable():
        raise PackageError("card", f"{name}: expected 1 to {limit} printable characters")


def check_code(code: object, scheme: object, meaning: object, name: str) -> None:
    """Refuse what is no code (PS3.3 table 8.8-1)."""
    check_text(code, f"{name}.code", 16)
    check_text(scheme, f"{name}.scheme", 16)
    check_text(meaning, f"{name}.meaning", 64)


def read_object(value: object, name: str, wanted: frozenset[str]) -> dict[str, Any]:
    """Return an object that has exactly these fields."""
    found = read_mapping(value, name)
    if set(found) != wanted:
        odd = min(set(found) ^ wanted)
        raise PackageError(
            "card", f"{name}: field {odd[:40]!r} is {'missing' if odd in wanted else 'unknown'}"
        )
    return found


def read_mapping(value: object, name: str) -> dict[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise PackageError("card", f"{name}: expected an object")
    return value


def read_list(value: object, name: str) -> list[Any]:
    """Return a list that is not too long."""
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise PackageError("card", f"{name}: expected a list of at most {MAX_ITEMS}")
    return value
