"""Values in the DICOM JSON model, taken straight from their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import Tag

from dicom_node.dicomweb import metadata, values
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path


def raw(vr: str | None, value: bytes | None, tag: int = 0x00091001, *, little: bool = True) -> RawDataElement:
    length = len(value) if value is not None else 4
    return RawDataElement(Tag(tag), vr, length, value, 0, vr is None, little)


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("CS", b"ORIGINAL\\PRIMARY ", ["ORIGINAL", "PRIMARY"]),
        ("LO", b"one \\two ", ["one", "two"]),
        ("SH", b"a\\\\b ", ["a", None, "b"]),
        ("UI", b"1.2.3\0", ["1.2.3"]),
        ("DS", b" 1.50\\-2e3 ", [1.5, -2000.0]),
        ("IS", b"12\\ -3", [12, -3]),
        ("US", b"\x01\x00\xff\xff", [1, 65535]),
        ("FD", b"\0\0\0\0\0\0\xf8\x3f", [1.5]),
    ],
    ids=["CS", "LO", "null", "UI", "DS", "IS", "US", "FD"],
)
def test_plain_values_are_taken_from_their_bytes(vr: str, value: bytes, expected: list[Any]) -> None:
    assert values.plain(raw(vr, value)) == {"vr": vr, "Value": expected}


def test_big_endian_numbers_are_read_as_such() -> None:
    assert values.plain(raw("US", b"\x01\x00", little=False)) == {"vr": "US", "Value": [256]}


def test_an_empty_value_is_an_attribute_without_one() -> None:
    for vr in ("LO", "DS", "IS", "US"):
        assert values.plain(raw(vr, b"")) == {"vr": vr}
    assert values.plain(raw("DS", b"  ")) == {"vr": "DS"}


def test_an_implicit_vr_is_looked_up_and_an_unknown_one_left_to_others() -> None:
    assert values.plain(raw(None, b"CT", 0x00080060)) == {"vr": "CS", "Value": ["CT"]}
    assert values.plain(raw(None, b"CT", 0x00091001)) is None


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("LO", "Müller".encode("latin-1")),
        ("LO", b"\x1b$B;3ED"),
        ("DS", b"1,5"),
        ("DS", b"nan"),
        ("IS", b"1.5"),
        ("IS", b"9" * 400),
        ("US", b"\x01"),
        ("FL", b"\x00\x00\xc0\x7f"),
        ("PN", b"A^B"),
        ("AT", b"\x08\x00\x18\x00"),
        ("LO", None),
    ],
    ids=[
        "text",
        "escapes",
        "comma",
        "nan",
        "fraction",
        "endless",
        "odd",
        "not-a-number",
        "PN",
        "AT",
        "deferred",
    ],
)
def test_what_is_not_plain_is_left_to_the_thorough_way(vr: str, value: bytes | None) -> None:
    assert values.plain(raw(vr, value)) is None


def test_a_value_that_was_read_already_is_left_to_the_thorough_way() -> None:
    assert values.plain(convert_raw_data_element(raw("CS", b"CT"))) is None


def test_real_files_are_described_as_on_the_thorough_way(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(path for path in (shared_data_dir() / "dicom").rglob("*") if path.is_file())[::7]

    def all_described() -> list[dict[str, Any] | None]:
        return [_described(path) for path in files]

    quick = all_described()
    monkeypatch.setattr(values, "plain", lambda _: None)
    assert all_described() == quick
    assert sum(one is not None for one in quick) > 50


def _described(path: Path) -> dict[str, Any] | None:
    try:
        return metadata.describe(path, "http://node")
    except metadata.MetadataError:
        return None
