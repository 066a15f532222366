from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.web.panel.charts import Point, Series, axis, lines

_FIGURES = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(_FIGURES, min_size=1, max_size=20))
def test_an_axis_holds_every_value(values: list[float]) -> None:
    found = axis(values)
    assert found.low <= min(values) <= max(values) <= found.high
    assert found.low < found.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_axis_stays_within_its_bounds(values: list[float]) -> None:
    found = axis(values, within=(0, 1))
    assert 0 <= found.low < found.high <= 1


def test_a_chart_says_in_words_what_it_shows() -> None:
    drawn = lines(
        "AUC", [Series("north", (Point(1, 0.6), Point(2, 0.72, 0.65, 0.8)))], rounds=5, within=(0, 1)
    )
    assert "<title>AUC: north 0.720 at round 2</title>" in drawn
    assert 'role="img"' in drawn


def test_a_run_without_figures_says_when_the_curve_begins() -> None:
    assert "first finished round" in lines("AUC", [Series("north", ())], rounds=5)
