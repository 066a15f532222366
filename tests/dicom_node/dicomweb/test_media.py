from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dicomweb import media


def names(text: str) -> list[str]:
    return [one.name for one in media.parse(text)]


def test_types_are_ordered_by_how_much_they_are_wanted() -> None:
    assert names("text/html;q=0.5, application/dicom+json, */*;q=0.1") == [
        "application/dicom+json",
        "text/html",
        "*/*",
    ]
    assert [one.quality for one in media.parse("a/b;q=2, a/c;q=x, a/d; q=-1")] == [1.0, 1.0, 0.0]


def test_parameters_are_read_quoted_or_not() -> None:
    text = 'multipart/related; type="application/octet-stream"; transfer-syntax=*;q=0.9'
    text += ", multipart/related;type=image/jpeg"
    first, second = media.parse(text)
    assert dict(first.parameters) == {"type": "image/jpeg"}
    assert dict(second.parameters) == {"type": "application/octet-stream", "transfer-syntax": "*"}
    (escaped,) = media.parse(r'a/b; x="1\"2,;3"')
    assert escaped.parameters["x"] == '1"2,;3'


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("application/json", "application/json"),
        ("application/*", "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("text/html, application/dicom+json;q=0.1", "application/dicom+json"),
        ("text/html", None),
    ],
)
def test_the_most_wanted_of_the_offered_is_chosen(accept: str, chosen: str | None) -> None:
    assert media.choose(media.parse(accept), ("application/dicom+json", "application/json")) == chosen


@given(st.text(max_size=400))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for one in media.parse(text):
        assert 0 <= one.quality <= 1
