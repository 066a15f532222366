from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dicom_node.assembly import is_complete

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_study_is_complete_when_nothing_came_for_the_quiet_period() -> None:
    assert not is_complete(START, after(5), after(14.9), quiet_period_s=10, max_wait_s=3600)
    assert is_complete(START, after(5), after(15), quiet_period_s=10, max_wait_s=3600)


def test_a_study_that_never_falls_quiet_is_complete_after_the_longest_wait() -> None:
    assert not is_complete(START, after(3599), after(3599.5), quiet_period_s=10, max_wait_s=3600)
    assert is_complete(START, after(3599), after(3600), quiet_period_s=10, max_wait_s=3600)


def test_a_clock_that_was_set_back_completes_nothing() -> None:
    assert not is_complete(START, after(5), after(-7200), quiet_period_s=1, max_wait_s=60)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e4), st.floats(0.1, 1e5), st.floats(0, 1e5))
def test_what_is_complete_stays_complete_while_nothing_comes(
    last: float, later: float, quiet: float, longest: float, more: float
) -> None:
    at = last + later
    if is_complete(START, after(last), after(at), quiet, longest):
        assert is_complete(START, after(last), after(at + more), quiet, longest)
