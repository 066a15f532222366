from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from appliance import schedules

MONDAY = datetime(2026, 3, 2, 0, 0).astimezone()


def at(day: int, clock: str) -> datetime:
    hours, minutes = clock.split(":")
    return MONDAY + timedelta(days=day, hours=int(hours), minutes=int(minutes))


@pytest.mark.parametrize(
    ("text", "stored", "written"),
    [
        ("", {}, "always"),
        ("always", {}, "always"),
        ("mon-sun", {}, "always"),
        ("fri-mon", {"days": ["mon", "fri", "sat", "sun"]}, "mon,fri,sat,sun"),
        (
            "Sat,Sun 08:00-12:00",
            {"days": ["sat", "sun"], "from": "08:00", "to": "12:00"},
            "sat,sun 08:00-12:00",
        ),
        ("20:00-06:00", {"from": "20:00", "to": "06:00"}, "20:00-06:00"),
    ],
)
def test_a_schedule_is_read_and_written(text: str, stored: dict[str, object], written: str) -> None:
    assert schedules.parse(text) == stored
    assert schedules.text_of(stored) == written
    assert schedules.parse(written) == stored


@pytest.mark.parametrize("text", ["never", "mon tue", "8:00-9:00", "20:00", "20:00-20:00", "20:00-24:00"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        schedules.parse(text)


def test_a_span_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    nights = schedules.parse("mon-fri 20:00-06:00")
    assert schedules.is_open(nights, at(0, "20:00"))
    assert schedules.is_open(nights, at(5, "05:59")), "Friday's night ends on Saturday"
    assert not schedules.is_open(nights, at(0, "05:59")), "Sunday's night is none"
    assert not schedules.is_open(nights, at(0, "06:00"))
    assert not schedules.is_open(nights, at(5, "20:00"))


def test_the_next_moment_that_is_open_is_found() -> None:
    nights = schedules.parse("mon-fri 20:00-06:00")
    assert schedules.next_open(nights, at(0, "21:00")) == at(0, "21:00")
    assert schedules.next_open(nights, at(0, "12:30")) == at(0, "20:00")
    assert schedules.next_open(nights, at(5, "06:00")) == at(7, "20:00")
    assert schedules.next_open({}, MONDAY) == MONDAY
