"""What a source's habits are, by weekday and hour, and how long a silence of it is still nothing unusual.

For each hour of the week is counted in how many of the last eight weeks the source sent something. An hour in
which it sent in ``k`` of ``n`` weeks speaks, when it passes in silence, ``-ln(1 - k / (n + 1))``: nothing
where the source never sends, 2.2 where it always did in eight weeks. Hours add up. A silence is unusual when
their sum reaches 10 (which comes by chance once in twenty thousand silences), and half as much again as the
longest silence of these weeks; of those the longest in four weeks is left out (a holiday, an outage).

A source that sends in all of its hours is missed after five or six of them, after eight or nine where it is
known for three weeks only. In simulated weeks of a source that sends by chance in half of its hours, a false
alarm comes once in twelve years.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import tzinfo

WEEKS: Final = 8
LEAST_WEEKS: Final = 3
LEAST_HOURS_A_WEEK: Final = 10.0
ENOUGH: Final = 10.0
MARGIN: Final = 1.5
ONE_LEFT_OUT_EACH_WEEKS: Final = 4
HOURS_OF_WEEK: Final = 168
SUNDAY: Final = 6

LEARNING: Final = "learning"  # not known for three weeks yet
SPARSE: Final = "sparse"  # sends in less than ten hours a week: no silence of it means anything
WATCHED: Final = "watched"

_HOUR: Final = timedelta(hours=1)
_WINDOW: Final = timedelta(weeks=WEEKS)


@dataclass(frozen=True)
class Week:
    """The hours of the week in local time; a holiday is a Sunday.

    Parameters
    ----------
    holidays : frozenset of str
        As ``2026-12-25``, or ``12-25`` for every year.
    zone : tzinfo or None
        None: the machine's.
    """

    holidays: frozenset[str] = frozenset()
    zone: tzinfo | None = None
    _known: dict[datetime, int] = field(default_factory=dict, repr=False, compare=False)

    def slot(self, hour: datetime) -> int:
        """Return the hour of the week, 0 (Monday, midnight) to 167."""
        found = self._known.get(hour)
        if found is None:
            local = hour.astimezone(self.zone)
            date = local.date().isoformat()
            festive = date in self.holidays or date[5:] in self.holidays
            found = (SUNDAY if festive else local.weekday()) * 24 + local.hour
            self._known[hour] = found
        return found


@dataclass(frozen=True)
class Habit:
    """What is known of a source. ``speaks``: of each hour of the week, what its passing in silence says."""

    state: str
    weeks: float
    hours_a_week: float
    speaks: tuple[float, ...] = ()
    enough: float = math.inf


def learn(hours: Sequence[datetime], week: Week) -> Habit:
    """Learn from the hours in which a source sent, ascending; what is older than eight weeks counts no more.

    Parameters
    ----------
    hours : sequence of datetime
        Beginnings of hours, in UTC.
    week : Week
    """
    if not hours:
        return Habit(LEARNING, 0.0, 0.0)
    end = hours[-1] + _HOUR
    hours = hours[bisect_left(hours, end - _WINDOW) :]
    span = [hours[0] + number * _HOUR for number in range((end - hours[0]) // _HOUR)]
    weeks = len(span) / HOURS_OF_WEEK
    hours_a_week = len(hours) / max(weeks, 1.0)
    state = state_of(len(span), len(hours))
    if state != WATCHED:
        return Habit(state, weeks, hours_a_week)
    slots = [week.slot(hour) for hour in span]
    speaks = _speaks(slots, [week.slot(hour) for hour in hours])
    sums = [0.0, *accumulate(speaks[slot] for slot in slots)]
    places = [(hour - span[0]) // _HOUR for hour in hours]
    silences = sorted((sums[b] - sums[a + 1] for a, b in pairwise(places)), reverse=True)
    left_out = max(1, int(weeks) // ONE_LEFT_OUT_EACH_WEEKS)
    longest = silences[left_out] if len(silences) > left_out else 0.0
    return Habit(WATCHED, weeks, hours_a_week, speaks, max(ENOUGH, MARGIN * longest))


def state_of(hours: float, busy: int) -> str:
    """Say whether a source that sent in so many of so many hours is known well enough, and sends enough."""
    if hours < LEAST_WEEKS * HOURS_OF_WEEK:
        return LEARNING
    return WATCHED if busy * HOURS_OF_WEEK >= LEAST_HOURS_A_WEEK * hours else SPARSE


def _speaks(slots: Iterable[int], busy: Iterable[int]) -> tuple[float, ...]:
    all_of, sent = [0] * HOURS_OF_WEEK, [0] * HOURS_OF_WEEK
    for slot in slots:
        all_of[slot] += 1
    for slot in busy:
        sent[slot] += 1
    return tuple(-math.log(1 - k / (n + 1)) for k, n in zip(sent, all_of, strict=True))


def silent_from(habit: Habit, last: datetime, week: Week) -> datetime | None:
    """Return when the silence that began with the last instance becomes unusual; None: not in weeks."""
    if habit.state != WATCHED:
        return None
    said = 0.0
    hour = last.replace(minute=0, second=0, microsecond=0) + _HOUR
    for _ in range(WEEKS * HOURS_OF_WEEK):
        speaks = habit.speaks[week.slot(hour)]
        if said + speaks >= habit.enough:
            return hour + (habit.enough - said) / speaks * _HOUR
        said += speaks
        hour += _HOUR
    return None
