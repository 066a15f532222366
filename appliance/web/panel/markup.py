"""HTML as values: everything that is not :class:`Markup` already is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from datetime import datetime

_VOID: Final = frozenset({"input", "br", "hr", "img", "meta", "link"})
EMPTY: Final = Markup("")
DASH: Final = "\N{EN DASH}"  # stands where nothing is known


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """Build one element.

    Parameters
    ----------
    name : str
        Tag name, a constant of the calling code.
    *children : object
        Text (escaped), :class:`Markup`, nested iterables of those; None and False draw nothing.
    **attributes : object
        ``class_`` means ``class``, underscores mean hyphens; None and False leave the attribute out, True
        writes it bare.
    """
    opening = Markup("<{}{}>").format(name, join(_attribute(key, value) for key, value in attributes.items()))
    if name in _VOID:
        return opening
    return opening + join(children) + Markup("</{}>").format(name)


def join(children: Iterable[object]) -> Markup:
    """Join children as :func:`el` takes them."""
    return Markup("").join(_flat(children))


def _flat(children: Iterable[object]) -> Iterable[Markup]:
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, str):
            yield escape(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        else:
            yield escape(str(child))


def _attribute(key: str, value: object) -> Markup:
    if value is None or value is False:
        return EMPTY
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return Markup(" {}").format(name)
    return Markup(' {}="{}"').format(name, str(value))


def zone_name(moment: datetime) -> str:
    """Return the name of the node's time zone at that moment, as staff read it."""
    return moment.astimezone().tzname() or "UTC"


def date_time(moment: datetime, *, seconds: bool = False) -> str:
    """Write a moment in the node's local time, with its zone."""
    local = moment.astimezone()
    clock = local.strftime("%H:%M:%S" if seconds else "%H:%M")
    return f"{local.day} {local.strftime('%b %Y')}, {clock} {zone_name(moment)}"


def when(moment: datetime | None, *, seconds: bool = False) -> Markup:
    """Draw a moment as a ``time`` element; nothing known draws a dash."""
    if moment is None:
        return el("span", DASH, class_="none")
    return el("time", date_time(moment, seconds=seconds), datetime=moment.isoformat(timespec="seconds"))


def count(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}".replace(",", "\u202f")


def size(size_bytes: float) -> str:
    """Write a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return (
                f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
            )
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Write a span of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
