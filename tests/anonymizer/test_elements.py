from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from anonymizer import elements
from anonymizer.elements import Element, Fragments, Syntax
from anonymizer.errors import DecodingError
from tests.anonymizer.material import Marks, item, planted

SYNTAXES = [
    Syntax(implicit=True, little=True),
    Syntax(implicit=False, little=True),
    Syntax(implicit=False, little=False),
]
EXPLICIT = SYNTAXES[1]


def _pydicom_bytes(syntax: Syntax, *, undefined: bool = False) -> bytes:
    ds = planted(Marks())
    if undefined:
        for element in ds.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for each in element.value:
                    each.is_undefined_length_sequence_item = True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.implicit, syntax.little
    write_dataset(buffer, ds)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=str)
def test_what_pydicom_wrote_is_read_and_written_byte_for_byte(syntax: Syntax) -> None:
    content = _pydicom_bytes(syntax)
    found = elements.read(content, syntax)
    assert b"".join(elements.write(found.values(), syntax)) == content


@pytest.mark.parametrize("syntax", SYNTAXES, ids=str)
def test_undefined_lengths_come_out_defined_with_equal_content(syntax: Syntax) -> None:
    found = elements.read(_pydicom_bytes(syntax, undefined=True), syntax)
    assert b"".join(elements.write(found.values(), syntax)) == _pydicom_bytes(syntax)


def test_a_sequence_as_un_is_read_as_implicit_vr() -> None:
    inner = elements.write([Element(0x00100010, "PN", b"A^B ")], SYNTAXES[0])
    content = b"".join(inner)
    value = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
    raw = struct.pack("<HH2sHL", 0x0008, 0x1120, b"UN", 0, len(value)) + value
    found = elements.read(raw, EXPLICIT)[0x00081120]
    assert found.vr == "SQ"
    assert isinstance(found.value, tuple)
    assert bytes(found.value[0][0x00100010].value) == b"A^B "  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (struct.pack("<HH2sH", 0x10, 0x10, b"PN", 9) + b"short", "truncated"),
        (struct.pack("<HH2sH", 0x10, 0x10, b"PN", 0)[:5], "truncated"),
        (struct.pack("<HH2sH", 0x10, 0x10, b"OB", 0), "truncated"),
        (struct.pack("<HH2sH", 0x10, 0x10, b"??", 0), "malformed"),
        (struct.pack("<HH2sHHH2sH", 0x10, 0x20, b"LO", 0, 0x10, 0x10, b"PN", 0), "malformed"),
        (struct.pack("<HH2sHHH2sH", 0x10, 0x20, b"LO", 0, 0x10, 0x20, b"LO", 0), "malformed"),
        (struct.pack("<HH2sHL", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF), "truncated"),
        (struct.pack("<HH2sHL", 0x40, 0xA730, b"SQ", 0, 8) + b"\0" * 8, "malformed"),
        (
            struct.pack("<HH2sHL", 0x40, 0xA730, b"SQ", 0, 8) + struct.pack("<HHL", 0xFFFE, 0xE000, 4),
            "truncated",
        ),
        (struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF), "truncated"),
        (struct.pack("<HH2sHL", 0x40, 0xA160, b"UT", 0, 0xFFFFFFFF), "malformed"),
        (struct.pack("<HH2sH", 0x10, 0x20, b"LO", 0) + b"\0\0\0", "truncated"),
    ],
)
def test_bytes_that_two_readers_could_understand_differently_are_refused(content: bytes, code: str) -> None:
    with pytest.raises(DecodingError) as caught:
        elements.read(content, EXPLICIT)
    assert caught.value.code == code


def test_nesting_has_a_limit() -> None:
    content = b""
    for _ in range(elements.MAX_DEPTH + 2):
        body = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
        content = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, len(body)) + body
    with pytest.raises(DecodingError):
        elements.read(content, EXPLICIT)


def test_a_thousand_undefined_levels_end_no_process() -> None:
    level = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(DecodingError):
        elements.read(level * 1000, EXPLICIT)


def _deflated_zeros(size: int) -> bytes:
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    chunks = [stream.compress(bytes(1024**2)) for _ in range(size // 1024**2)]
    return b"".join(chunks) + stream.flush()


def test_a_deflated_stream_beyond_the_limit_is_refused() -> None:
    content = _deflated_zeros(4 * 1024**2)
    assert len(elements.inflate(content)) == len(elements.inflate(content, 4 * 1024**2)) == 4 * 1024**2
    with pytest.raises(DecodingError) as caught:
        elements.inflate(content, 3 * 1024**2)
    assert caught.value.code == "inflated_too_large"


def test_a_deflated_bomb_is_refused_early_and_takes_little_memory() -> None:
    bomb = _deflated_zeros(300 * 1024**2)
    tracemalloc.start()
    try:
        with pytest.raises(DecodingError) as caught:
            elements.inflate(bomb)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "inflated_too_large"
    assert peak_bytes < 160 * 1024**2


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", elements.deflate(b"x" * 999)[:-3]])
def test_a_broken_deflated_stream_is_refused(content: bytes) -> None:
    with pytest.raises(DecodingError):
        elements.inflate(content)


def test_fragments_are_read_and_written() -> None:
    pixels = Element(0x7FE00010, "OB", Fragments(b"", (b"ab", b"cd")))
    content = b"".join(elements.write([pixels], EXPLICIT))
    found = elements.read(content, EXPLICIT)[0x7FE00010].value
    assert isinstance(found, Fragments)
    assert [bytes(fragment) for fragment in found.fragments] == [b"ab", b"cd"]


def test_a_value_too_long_for_its_vr_is_refused() -> None:
    with pytest.raises(DecodingError):
        elements.write([Element(0x00100020, "LO", b"x" * 70_000)], EXPLICIT)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
def test_any_bytes_are_read_or_refused(content: bytes, syntax: Syntax) -> None:
    try:
        found = elements.read(content, syntax)
    except DecodingError:
        return
    assert b"".join(elements.write(found.values(), syntax))[:0] == b""


def test_empty_sequences_and_items_survive() -> None:
    ds = item(ReferencedStudySequence=Sequence([]), RequestAttributesSequence=Sequence([item()]))
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, ds)
    found = elements.read(buffer.getvalue(), EXPLICIT)
    assert [len(each.value) for each in found.values()] == [0, 1]  # type: ignore[arg-type]
    again = dcmread(io.BytesIO(b"".join(elements.write(found.values(), EXPLICIT))), force=True)
    assert len(again.RequestAttributesSequence) == 1


@pytest.mark.parametrize(("representation", "vr"), [(0, "US"), (1, "SS")])
def test_a_value_of_unknown_vr_has_the_sign_of_the_pixels(representation: int, vr: str) -> None:
    raw = struct.pack("<HH2sHH", 0x0028, 0x0103, b"US", 2, representation)
    raw += struct.pack("<HH2sHLh", 0x0028, 0x0120, b"UN", 0, 2, -2000)
    assert elements.read(raw, EXPLICIT)[0x00280120].vr == vr
