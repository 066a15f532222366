from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.dates import shift, shift_days
from anonymizer.keys import ProjectKeys

KEYS = ProjectKeys.derive(b"k" * 32, "a")
DATES = st.dates(date(1900, 1, 1), date(2100, 1, 1))
DAYS = st.integers(1, 3650)


@given(DATES, DATES, DAYS)
def test_intervals_between_dates_stay(first: date, second: date, days: int) -> None:
    moved = [shift(f"{d:%Y%m%d}", "DA", days) for d in (first, second)]
    assert None not in moved
    a, b = (date.fromisoformat(m or "") for m in moved)
    assert b - a == second - first
    assert a == first - timedelta(days=days)


@given(DATES, DAYS)
def test_a_datetime_moves_like_its_date(day: date, days: int) -> None:
    moved = shift(f"{day:%Y%m%d}", "DA", days)
    assert shift(f"{day:%Y%m%d}235959.123456+0100", "DT", days) == f"{moved}235959.123456"


@pytest.mark.parametrize(
    ("value", "vr", "expected"),
    [
        ("20240301", "DA", "20240229"),
        ("20240101", "DA", "20231231"),
        ("2024.03.01", "DA", "20240229"),
        (" 20240301 ", "DA", "20240229"),
        ("", "DA", ""),
        ("20240301", "DT", "20240229"),
        ("2024030110", "DT", "2024022910"),
        ("202403", "DT", "202403"),
        ("2024", "DT", "2024"),
        ("20240301101112.5-0500", "DT", "20240229101112.5"),
        ("101112.123456", "TM", "101112.123456"),
        ("10", "TM", "10"),
        ("10:11:12", "TM", "101112"),
        ("235960", "TM", "235960"),
        ("", "TM", ""),
    ],
)
def test_a_value_moves_back_by_one_day(value: str, vr: str, expected: str) -> None:
    assert shift(value, vr, 1) == expected


@pytest.mark.parametrize(
    ("value", "vr"),
    [
        ("20241301", "DA"), ("20230229", "DA"), ("00010101", "DA"), ("1.3.2024", "DA"), ("MÜLLER", "DA"),
        ("20240301-20240302", "DA"), ("20240301X", "DA"), ("250000", "TM"), ("noon", "TM"), ("101", "TM"),
        ("202403011", "DT"), ("20240301101112.1234567", "DT"), ("20240301 JOHN", "DT"),
        ("\uff12\uff10\uff12\uff14\uff10\uff13\uff10\uff11", "DA"),
    ],
)  # fmt: skip
def test_what_is_no_date_or_time_is_not_kept(value: str, vr: str) -> None:
    assert shift(value, vr, 400) is None


@given(st.text(max_size=30), st.sampled_from(["DA", "DT", "TM"]), DAYS)
def test_only_digits_and_points_come_out(value: str, vr: str, days: int) -> None:
    moved = shift(value, vr, days)
    assert moved is None or (moved.isascii() and moved.replace(".", "").isdigit()) or moved == ""


def test_the_shift_is_one_number_per_patient_within_the_limit() -> None:
    shifts = {shift_days(KEYS, f"P{n}", "H", 365) for n in range(200)}
    assert all(1 <= days <= 365 for days in shifts)
    assert len(shifts) > 100
    assert shift_days(KEYS, " P1 ", "H", 365) == shift_days(KEYS, "P1", "H ", 365)
