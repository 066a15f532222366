from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from appliance.web.panel.markup import count, date_time, duration, el, join, size, when
from appliance.web.panel.parts import Column, button, table, text_field


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(markup: Markup) -> _Reader:
    reader = _Reader()
    reader.feed(str(markup))
    return reader


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\0")))
def test_whatever_stands_in_a_text_or_an_attribute_stays_text(value: str) -> None:
    read = _read(el("p", value, title=value))
    assert read.tags == ["p"]
    assert read.text == value
    assert read.attributes == [("title", value)]


def test_absent_children_and_attributes_draw_nothing() -> None:
    assert el("p", None, ["a", None], id=None, hidden=True, class_="x") == '<p hidden class="x">a</p>'


def test_a_void_element_has_no_end_tag() -> None:
    assert el("input", name="x") == '<input name="x">'


def test_a_hostile_study_description_cannot_leave_its_table_cell() -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    drawn = table("T", [Column("A")], [(hostile,)])
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert hostile in _read(drawn).text


def test_a_hostile_field_of_a_button_stays_in_its_attribute() -> None:
    read = _read(button("retry", "Retry", id='x" autofocus onfocus="alert(1)'))
    assert read.tags == ["button"]
    assert "onfocus" not in dict(read.attributes)


def test_an_input_is_labelled() -> None:
    assert _read(text_field("host", "Address")).tags[:2] == ["label", "span"]


def test_joining_escapes_texts_only() -> None:
    assert join(["<", Markup("<b>"), 3]) == "&lt;<b>3"


def test_moments_carry_the_zone() -> None:
    moment = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    assert date_time(moment).endswith(str(moment.astimezone().tzname()))
    assert 'datetime="2026-03-01T12:05:00+00:00"' in when(moment)
    assert "none" in when(None)


def test_figures_are_written_for_reading() -> None:
    assert [size(900), size(2048), size(3 * 2**30)] == ["900 B", "2.0 KiB", "3.0 GiB"]
    assert [duration(2.34), duration(61), duration(3 * 3600)] == ["2.3 s", "1 min 1 s", "3 h 0 min"]
    assert [count(1, "study", "studies"), count(2, "study", "studies")] == ["1 study", "2 studies"]
