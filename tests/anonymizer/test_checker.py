from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom import DataElement, Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from tests.anonymizer.material import STUDY_UID, ct, encode, item
from tests.anonymizer.residue import find_residue

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("LO", "see ZQ-4711-AB there"), ("UT", "zq-4711-ab"), ("PN", "ZQ-4711-AB^X"),
        ("UN", b"..ZQ-4711-AB.."),
        ("OB", b"\0ZQ-4711-AB\0"), ("OW", "ZQ-4711-AB".encode("utf-16-le")), ("SH", "ZQ-4711-AB"),
        ("UC", "xZQ-4711-ABx"), ("OB", "ZQ-4711-AB".encode("utf-16-be")),
    ],
)  # fmt: skip
def test_an_identifier_is_found_in_every_vr(vr: str, value: object) -> None:
    ds = Dataset()
    ds.add(DataElement(0x00091010, vr, value))
    ds.add(DataElement(0x00090010, "LO", "creator"))
    assert [residue.identifier for residue in find_residue(ds, ["other", "ZQ-4711-AB"])] == [1]


def test_an_identifier_is_found_in_nested_items() -> None:
    ds = item(RequestAttributesSequence=Sequence([item(ScheduledProcedureStepDescription="of Mustermann")]))
    assert len(find_residue(ds, ["mustermann"])) == 1


def test_a_short_identifier_counts_as_a_whole_word_of_text_only() -> None:
    assert find_residue(item(Manufacturer="Doe Ltd"), ["doe"])
    assert not find_residue(item(Manufacturer="Doegen"), ["doe"])
    assert not find_residue(item(SliceThickness="4711"), ["4711"])
    assert find_residue(item(Manufacturer="no 4711"), ["4711"])


def test_digits_count_only_as_a_whole_number() -> None:
    assert find_residue(item(Manufacturer="x1234567y"), ["1234567"])
    assert not find_residue(item(Manufacturer="91234567"), ["1234567"])
    assert not find_residue(item(PixelSpacing=["0.12345678", "0.5"]), ["12345678"])


def test_an_original_uid_is_found_and_a_longer_one_is_another() -> None:
    assert find_residue(item(Manufacturer=f"x {STUDY_UID} y"), [STUDY_UID])
    assert not find_residue(item(Manufacturer=f"{STUDY_UID}.1"), [STUDY_UID])


@pytest.mark.parametrize("place", ["preamble", "meta", "trailing", "fragment"])
def test_a_path_is_searched_as_bytes_too(tmp_path: Path, place: str) -> None:
    content = bytearray(encode(ct()))
    if place == "preamble":
        content[10:20] = b"ZQ-4711-AB"
    elif place == "meta":
        at = content.index(b"PYDICOM")
        content[at : at + 7] = b"ZQ-4711"
    elif place == "trailing":
        content += b"\xfc\xff\xfc\xffOB\0\0\x0a\0\0\0ZQ-4711-AB"
    else:
        content += b"ZQ-4711-AB"
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    assert find_residue(path, ["ZQ-4711-AB" if place != "meta" else "ZQ-4711"])


def test_chance_digits_in_native_pixels_are_no_residue(tmp_path: Path) -> None:
    ds = ct()
    ds.PixelData = b"12345678" * 16
    path = tmp_path / "x.dcm"
    path.write_bytes(encode(ds, ImplicitVRLittleEndian))
    assert not find_residue(path, ["12345678"])
