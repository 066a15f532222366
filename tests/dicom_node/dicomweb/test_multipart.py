from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dicomweb import media
from dicom_node.dicomweb.multipart import (
    MAX_HEADER_BYTES,
    MAX_MARGIN_BYTES,
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    boundary_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Part = tuple[dict[str, str], bytes]
BOUNDARY = "b-1"
# Bytes that a delimiter is made of, so that contents look like one as often as can be.
CONTENTS = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"--b-1", b"\r\n--b-1", b"x", b" ", b"\0", b"b-1"]),
    max_size=12,
).map(b"".join)


def read(boundary: str, chunks: Iterable[bytes]) -> list[Part]:
    parser = MultipartParser(boundary)
    parts: list[Part] = []
    finished = 0
    for chunk in chunks:
        for event in parser.feed(chunk):
            if isinstance(event, PartBegin):
                assert finished == len(parts)
                parts.append((dict(event.headers), b""))
            elif isinstance(event, PartData):
                assert event.data
                parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
            else:
                assert isinstance(event, PartEnd)
                finished += 1
    parser.close()
    assert finished == len(parts)
    return parts


def message(parts: Sequence[bytes], preamble: bytes = b"", epilogue: bytes = b"") -> bytes:
    head = b"--b-1\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + part + b"\r\n" for part in parts)
    return (preamble + b"\r\n" if preamble else b"") + body + b"--b-1--" + epilogue


def is_clean(content: bytes) -> bool:
    """Whether no line of a content is a delimiter, as the standard demands of a sender."""
    return re.search(rb"\r\n--b-1(?:--|[ \t]*\r\n)", b"\r\n" + content + b"\r\n") is None


@given(
    contents=st.lists(CONTENTS.filter(is_clean), max_size=4),
    preamble=st.sampled_from([b"", b"a preamble", b"--b", b"x--b-1\r\n"]),
    epilogue=st.sampled_from([b"", b"\r\n", b"\r\nan epilogue --b-1\r\n"]),
    data=st.data(),
)
def test_any_chunking_gives_the_same_parts(
    contents: list[bytes], preamble: bytes, epilogue: bytes, data: st.DataObject
) -> None:
    whole = message(contents, preamble, epilogue)
    expected = [({"content-type": "application/dicom"}, content) for content in contents]
    assert read(BOUNDARY, [whole]) == expected
    assert read(BOUNDARY, [whole[at : at + 1] for at in range(len(whole))]) == expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(BOUNDARY, pieces) == expected


@given(noise=st.binary(max_size=300), at=st.integers(0, 200), step=st.integers(1, 40))
def test_what_comes_of_a_damaged_message_does_not_depend_on_its_pieces(
    noise: bytes, at: int, step: int
) -> None:
    whole = message([b"one", b"two" * 20])
    damaged = whole[:at] + noise + whole[at + len(noise) // 2 :]

    def outcome(chunks: Iterable[bytes]) -> list[Part] | str:
        try:
            return read(BOUNDARY, chunks)
        except MultipartError as error:
            return str(error)

    pieces = [damaged[index : index + step] for index in range(0, len(damaged), step)]
    assert outcome(pieces) == outcome([damaged])


def test_a_part_may_have_no_headers_and_no_content() -> None:
    assert read(BOUNDARY, [b"--b-1\r\n\r\nx\r\n--b-1--"]) == [({}, b"x")]
    assert read(BOUNDARY, [b"--b-1\r\n\r\n\r\n--b-1--"]) == [({}, b"")]
    assert read(BOUNDARY, [b"--b-1\r\nA: 1\r\n\r\n--b-1--"]) == [({"a": "1"}, b"")]
    assert read(BOUNDARY, [b"--b-1--"]) == []


def test_a_delimiter_may_be_padded_and_a_header_folded() -> None:
    whole = b"--b-1 \t\r\nContent-Type: multipart/related;\r\n  type=x\r\nB:\r\n\r\nx"
    whole += b"\r\n--b-1   \r\n\r\n\r\n--b-1--"
    assert read(BOUNDARY, [whole]) == [
        ({"content-type": "multipart/related; type=x", "b": ""}, b"x"),
        ({}, b""),
    ]


def test_what_only_looks_like_a_delimiter_is_data() -> None:
    content = b"\r\n--b-10\r\n\r\n--b-1x--\n--b-1\r\n\r--b-1--"
    assert read(BOUNDARY, [message([content])])[0][1] == content


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"nothing of the kind",
        b"--b-1\r\nA: 1\r\n\r\nx",
        b"--b-1\r\nA: 1\r\n\r\nx\r\n--b-1",
        b"--b-1\r\nA: 1\r\n\r\nx\r\n--b-1-",
        b"--b-1\r\nA: 1\r\n\r\nx\r\n--b-1\r\n",
        b"--b-1\r\nA: 1",
        b"--b-1\r\nno header\r\n\r\nx\r\n--b-1--",
        b"--b-1\r\nA: 1\r\nA: 2\r\n\r\nx\r\n--b-1--",
        b"--b-1\r\nA: \x00\r\n\r\nx\r\n--b-1--",
        b"--b-1\r\n : 1\r\n\r\nx\r\n--b-1--",
        b"--b-1\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(40)) + b"\r\nx\r\n--b-1--",
        b"--b-1\r\nA: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\nx\r\n--b-1--",
        b"--b-1\r\nA: " + b"x" * (4 * MAX_HEADER_BYTES),
        b"x" * (2 * MAX_MARGIN_BYTES),
        b"--b-1--" + b"x" * (2 * MAX_MARGIN_BYTES),
    ],
)
def test_a_message_that_is_not_whole_or_has_no_bounds_is_refused(whole: bytes) -> None:
    with pytest.raises(MultipartError):
        read(BOUNDARY, [whole])
    with pytest.raises(MultipartError):
        read(BOUNDARY, [whole[at : at + 1000] for at in range(0, len(whole), 1000)])


@pytest.mark.parametrize("content", [b"\r\n--b-1x", b"\r\n--b-1 -", b"\r", b"\r\n--b-1" + b" " * 200])
def test_the_time_grows_no_faster_than_the_message(content: bytes) -> None:
    whole = message([content * (4_000_000 // len(content)) + b"x"])
    began = time.monotonic()
    assert len(read(BOUNDARY, [whole[at : at + 262_144] for at in range(0, len(whole), 262_144)])) == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("boundary", ["", "x" * 201, "ends with space ", 'quo"te', "new\r\nline", "ü", "a{b"])
def test_a_boundary_that_the_standard_forbids_is_refused(boundary: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(media.MediaType("multipart/related", {"boundary": boundary}))


def test_a_boundary_may_be_quoted() -> None:
    (found,) = media.parse('multipart/related; type="application/dicom"; boundary="a (b),=?c"')
    assert found.parameters["type"] == "application/dicom"
    assert boundary_of(found) == "a (b),=?c"
    assert read("a (b),=?c", [b"--a (b),=?c\r\n\r\nx\r\n--a (b),=?c--"]) == [({}, b"x")]
