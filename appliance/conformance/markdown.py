"""Markdown as functions, and names of UIDs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.uid import UID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; what stands in a cell is its text."""
    lines = [_line(headings), _line(["---"] * len(headings))]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def bullets(items: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {item}" for item in items)


def joined(*parts: str) -> str:
    """Join blocks."""
    return "\n\n".join(part.strip("\n") for part in parts if part)


def uid_name(uid: str) -> str:
    """Return what the standard calls a UID, without what repeats its kind."""
    return str(UID(uid).name).removesuffix(" SOP Class")


def named(uid: str) -> str:
    """Return a UID with its name."""
    return f"{uid_name(uid)} (`{uid}`)"


def attribute(keyword: str) -> tuple[str, str]:
    """Return tag and name of an attribute."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        return "", keyword
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})", dictionary_description(tag)


def status(code: int) -> str:
    """Return a status as it is written in the standard."""
    return f"`{code:04X}`"
