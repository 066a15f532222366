"""Habits in synthetic weeks: no false alarm in steady patterns, an alarm in time for regular senders."""

from __future__ import annotations

import random
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.habits import LEARNING, SPARSE, WATCHED, Habit, Week, learn, silent_from

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUR = timedelta(hours=1)
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = Week(zone=UTC)


def office(moment: datetime) -> float:
    """Weekdays from 7 to 18 almost always, else never."""
    return 0.97 if moment.weekday() < 5 and 7 <= moment.hour < 18 else 0.0


def emergency(moment: datetime) -> float:
    """At any time; less at night and on weekends."""
    return 0.9 if moment.weekday() < 5 and 7 <= moment.hour < 20 else 0.45


def sent(chance: Callable[[datetime], float], weeks: int, seed: int) -> list[datetime]:
    """Return the hours in which a source with these chances sent something."""
    generator = random.Random(seed)  # noqa: S311 -- weeks that can be made again
    hours = [MONDAY + number * HOUR for number in range(weeks * 168)]
    return [hour for hour in hours if generator.random() < chance(hour)]


def false_alarms(hours: Sequence[datetime], after_weeks: int, week: Week = WEEK) -> int:
    """Count the silences between hours that would have raised an alarm, learning anew each day."""
    found, habit, learned = 0, Habit(LEARNING, 0, 0), None
    start = bisect_right(hours, MONDAY + timedelta(weeks=after_weeks))
    for number in range(start, len(hours) - 1):
        if learned != hours[number].date():
            habit, learned = learn(hours[: number + 1], week), hours[number].date()
        due = silent_from(habit, hours[number], week)
        found += due is not None and due <= hours[number + 1]
    return found


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), pattern=st.sampled_from([office, emergency]))
def test_steady_patterns_raise_no_alarm(seed: int, pattern: Callable[[datetime], float]) -> None:
    assert false_alarms(sent(pattern, 16, seed), after_weeks=3) == 0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    first=st.integers(0, 12),
    length=st.integers(4, 12),
    days=st.integers(3, 7),
)
def test_any_steady_shift_raises_no_alarm(seed: int, first: int, length: int, days: int) -> None:
    def chance(moment: datetime) -> float:
        return 0.95 if moment.weekday() < days and first <= moment.hour < first + length else 0.0

    assert false_alarms(sent(chance, 14, seed), after_weeks=4) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), weeks=st.integers(3, 12), stop=st.integers(8, 16))
def test_a_source_that_sends_every_working_hour_is_missed_within_ten_of_its_hours(
    seed: int, weeks: int, stop: int
) -> None:
    hours = sent(office, weeks + 1, seed)
    last = [hour for hour in hours if hour < MONDAY + timedelta(weeks=weeks, hours=stop)][-1]
    known = [hour for hour in hours if hour <= last]
    due = silent_from(learn(known, WEEK), last + timedelta(minutes=30), WEEK)
    assert due is not None
    passed = [last + number * HOUR for number in range(1, 200) if last + number * HOUR < due]
    working = sum(office(hour) > 0 for hour in passed)
    assert working <= 10
    if weeks >= 8:
        assert working <= 7


def test_a_source_around_the_clock_is_missed_within_five_hours() -> None:
    hours = [MONDAY + number * HOUR for number in range(8 * 168)]
    due = silent_from(learn(hours, WEEK), hours[-1] + timedelta(minutes=59), WEEK)
    assert due is not None
    assert timedelta(hours=4) < due - hours[-1] - HOUR < timedelta(hours=5)


def test_a_night_and_a_weekend_say_nothing_of_a_source_that_never_sends_then() -> None:
    hours = [MONDAY + number * HOUR for number in range(8 * 168) if office(MONDAY + number * HOUR)]
    friday = hours[-1]
    due = silent_from(learn(hours, WEEK), friday, WEEK)
    assert friday.weekday() == 4
    assert due is not None
    assert (due.weekday(), due.hour) == (0, 11)


def test_a_source_that_is_not_known_for_three_weeks_is_not_judged() -> None:
    habit = learn([MONDAY + number * HOUR for number in range(3 * 168 - 1)], WEEK)
    assert habit.state == LEARNING
    assert silent_from(habit, MONDAY, WEEK) is None
    assert learn([MONDAY + number * HOUR for number in range(3 * 168)], WEEK).state == WATCHED
    assert learn([], WEEK).state == LEARNING


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_source_with_sparse_traffic_is_not_judged(seed: int) -> None:
    habit = learn(sent(lambda _: 0.03, 8, seed), WEEK)
    assert habit.state == SPARSE
    assert silent_from(habit, MONDAY + timedelta(weeks=8), WEEK) is None


def test_a_holiday_that_is_configured_raises_no_alarm_and_one_that_is_past_does_not_blunt_the_next() -> None:
    thursday = MONDAY + timedelta(weeks=6, days=3)
    hours = [hour for hour in sent(office, 9, 1) if hour.date() != thursday.date()]
    known = [hour for hour in hours if hour < thursday]
    silent = silent_from(learn(known, WEEK), known[-1], WEEK)
    assert silent is not None
    assert silent.date() == thursday.date()
    for name in (thursday.date().isoformat(), thursday.strftime("%m-%d")):
        week = Week(frozenset({name}), UTC)
        due = silent_from(learn(known, week), known[-1], week)
        assert due is not None
        assert due.date() > thursday.date()
    assert learn(hours, WEEK).enough == pytest.approx(learn(sent(office, 9, 1), WEEK).enough)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_hours_are_those_of_the_clock_on_the_wall_when_summer_time_begins(seed: int) -> None:
    berlin = Week(zone=ZoneInfo("Europe/Berlin"))
    generator = random.Random(seed)  # noqa: S311 -- weeks that can be made again
    hours = [
        hour
        for hour in (MONDAY + number * HOUR for number in range(16 * 168))
        if generator.random() < office(hour.astimezone(berlin.zone))
    ]
    assert hours[-1] > datetime(2026, 4, 20, tzinfo=UTC)
    assert false_alarms(hours, after_weeks=3, week=berlin) == 0
