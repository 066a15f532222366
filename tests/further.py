"""Further cases of what another test shows: ``make test`` leaves them out, ``make test-all`` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

FURTHER = pytest.mark.exhaustive


def cases(values: Iterable[Any], first: Collection[Any], ids: dict[Any, str] | None = None) -> list[Any]:
    """Return a test's parameters, those marked that are not among the ``first``; each must be one of them."""
    found = list(values)
    if missing := [value for value in first if value not in found]:
        raise ValueError(f"no such cases: {missing}")
    names = ids or {}
    return [
        pytest.param(value, id=names.get(value), marks=() if value in first else FURTHER) for value in found
    ]
