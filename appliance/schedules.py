"""When a peer may be sent to: days of the week and a span of the day, in the node's local time."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_WEEK_MINUTES: Final = 7 * 24 * 60


def make(days: Iterable[str], begins: str, ends: str) -> dict[str, Any]:
    """Return a schedule as it is stored; nothing given is always.

    Parameters
    ----------
    days : iterable of str
        Of :data:`DAYS`; none or all: every day.
    begins, ends : str
        ``HH:MM``, or both empty for the whole day. A span over midnight belongs to the day it begins on.

    Raises
    ------
    ValueError
        If days or clocks are none.
    """
    chosen = {day.strip().lower() for day in days if day.strip()}
    if not chosen <= set(DAYS):
        raise ValueError(f"expected days out of {', '.join(DAYS)}")
    if bool(begins) != bool(ends) or any(text and not _CLOCK.fullmatch(text) for text in (begins, ends)):
        raise ValueError("expected a begin and an end as HH:MM, or neither")
    if begins and begins == ends:
        raise ValueError("expected an end that is not the begin")
    made: dict[str, Any] = {}
    if chosen and len(chosen) < len(DAYS):
        made["days"] = [day for day in DAYS if day in chosen]
    if begins:
        made |= {"from": begins, "to": ends}
    return made


def parse(text: str) -> dict[str, Any]:
    """Read ``always``, ``mon-fri``, ``20:00-06:00`` or ``sat,sun 08:00-12:00``; raises like :func:`make`."""
    words = text.strip().lower().split()
    if words in ([], ["always"]):
        return {}
    clocks = [word for word in words if ":" in word]
    days = [word for word in words if ":" not in word]
    if len(clocks) > 1 or len(days) > 1:
        raise ValueError("expected days and one span, such as mon-fri 20:00-06:00")
    begins, _, ends = clocks[0].partition("-") if clocks else ("", "", "")
    return make(_days(days[0]) if days else (), begins, ends)


def text_of(schedule: Mapping[str, Any]) -> str:
    """Write a schedule as :func:`parse` reads it."""
    words = []
    if schedule.get("days"):
        words.append(",".join(schedule["days"]))
    if schedule.get("from"):
        words.append(f"{schedule['from']}-{schedule['to']}")
    return " ".join(words) or "always"


def is_open(schedule: Mapping[str, Any], at: datetime) -> bool:
    """Whether a moment lies in the schedule; ``at`` carries a time zone and is read in the node's."""
    local = at.astimezone()
    days = schedule.get("days") or DAYS
    begins, ends = schedule.get("from", ""), schedule.get("to", "")
    clock = local.strftime("%H:%M")
    today, yesterday = DAYS[local.weekday()] in days, DAYS[local.weekday() - 1] in days
    if not begins:
        return today
    if begins < ends:
        return today and begins <= clock < ends
    return (today and clock >= begins) or (yesterday and clock < ends)


def next_open(schedule: Mapping[str, Any], at: datetime) -> datetime:
    """Return the moment itself if it lies in the schedule, else the next full minute that does."""
    if is_open(schedule, at):
        return at
    moment = at.replace(second=0, microsecond=0)
    for _ in range(_WEEK_MINUTES + 120):  # a change of the clocks may move it by an hour
        moment += timedelta(minutes=1)
        if is_open(schedule, moment):
            return moment
    return moment


def _days(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and first in DAYS and last in DAYS:
            start = DAYS.index(first)
            length = (DAYS.index(last) - start) % 7 + 1
            found += [DAYS[(start + offset) % 7] for offset in range(length)]
        else:
            found.append(part)
    return found
