"""Attribute matching of PS3.4 C.2.2.2 as conditions of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Integer, and_, func, or_

from dicom_node.query import Match, bounds, number, uids

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute

_PERSON_NAMES: Final = frozenset({"PatientName", "ReferringPhysicianName"})


def condition(
    dialect: str, column: InstrumentedAttribute[Any], keyword: str, kind: Match, value: str
) -> list[ColumnElement[bool]]:
    """Return the condition that a matching text sets on a column; none for universal matching.

    Parameters
    ----------
    dialect : str
        ``sqlite`` or ``postgresql``.
    column : column
    keyword : str
        Of the attribute.
    kind : Match
        Not ``any_of``.
    value : str
        Checked by :func:`dicom_node.query.check`.
    """
    if kind is Match.UID:
        wanted = uids(value)
        return [column.in_(wanted)] if wanted else []
    if kind in {Match.DATE, Match.TIME}:
        ends = bounds(keyword, kind, value)
        return [] if ends is None else [and_(column != "", column >= ends[0], column <= ends[1])]
    text = value.strip(" ")
    if text in {"", "*"}:
        return []
    if kind is Match.NUMBER:
        return [_is_number(column, text)]
    if kind is Match.NAME:
        return [_is_name(dialect, column, keyword, text)]
    return [_is_text(dialect, column, text)]


def _is_number(column: InstrumentedAttribute[Any], text: str) -> ColumnElement[bool]:
    wanted = number(text)
    if isinstance(column.type, Integer):
        return column == (wanted if wanted is not None and abs(wanted) < 2**31 else -1)
    return column.in_({text, str(wanted)})


def _is_text(dialect: str, column: InstrumentedAttribute[Any], text: str) -> ColumnElement[bool]:
    if "*" not in text and "?" not in text:
        return column == text
    return _like(dialect, column, _pattern(dialect, text))


def _is_name(
    dialect: str, column: InstrumentedAttribute[Any], keyword: str, text: str
) -> ColumnElement[bool]:
    """Match without regard to case, and a person's name also by one of its component groups (PS3.5 6.2.1)."""
    folded = func.lower(column)
    wild = "*" in text or "?" in text
    whole = _folded_like(dialect, folded, text) if wild else folded == func.lower(text)
    if wild or keyword not in _PERSON_NAMES or "=" in text:
        return whole
    groups = (f"{text}=*", f"*={text}", f"*={text}=*")
    return or_(whole, *(_folded_like(dialect, folded, group) for group in groups))


def _folded_like(dialect: str, folded: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    return _like(dialect, folded, func.lower(_pattern(dialect, text)))


def _like(dialect: str, column: Any, pattern: Any) -> ColumnElement[bool]:
    """SQLite's LIKE knows no case; its GLOB does, and has the wildcards of DICOM."""
    found: ColumnElement[bool] = (
        column.op("GLOB")(pattern) if dialect == "sqlite" else column.like(pattern, escape="\\")
    )
    return found


def _pattern(dialect: str, text: str) -> str:
    if dialect == "sqlite":
        return text.replace("[", "[[]")
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
