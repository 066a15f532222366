"""The independent check: it finds what a broken engine would let through, wherever it is."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

import anonymizer.verify
from anonymizer.verify import Allowed, Finding, VerificationError, check
from anonymizer.verify.pixels import Grams
from tests.anonymizer.material import STUDY_UID, ct, encode, item

if TYPE_CHECKING:
    from collections.abc import Callable

NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
PSEUDONYM = "ABCDEFGHIJKLMNOPQRSTUVWX"
WRITTEN = Allowed(written=frozenset({PSEUDONYM}))


def clean() -> Dataset:
    """Return an output that holds nothing of :func:`ct`'s patient."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = ct().SOPClassUID, "2.25.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.3"
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = ds.PatientID = PSEUDONYM
    ds.Modality, ds.SamplesPerPixel, ds.Rows, ds.Columns = "CT", 1, 8, 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = bytes(128)
    return ds


def found(
    output: Dataset | bytes, original: Dataset | None = None, allowed: Allowed = WRITTEN
) -> list[Finding]:
    content = output if isinstance(output, bytes) else encode(output)
    return check(encode(original or ct()), content, allowed)


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_a_clean_output_has_no_finding(syntax: UID) -> None:
    assert check(encode(ct(), syntax), encode(clean(), syntax), WRITTEN) == []


LEAKS: dict[str, tuple[Callable[[Dataset], object], str, str]] = {
    "name": (lambda ds: setattr(ds, "Manufacturer", "by Jörg M"), "(0008,0070)", "a name"),
    "patient id": (lambda ds: setattr(ds, "Manufacturer", "mrn4711x"), "(0008,0070)", "a number"),
    "birth date": (lambda ds: setattr(ds, "Manufacturer", "8.7.1956"), "(0008,0070)", "a date"),
    "birth date as DA": (lambda ds: setattr(ds, "StudyDate", "19560708"), "(0008,0020)", "a date"),
    "uid": (lambda ds: setattr(ds, "FrameOfReferenceUID", STUDY_UID), "(0020,0052)", "a UID"),
    "pseudonym's place": (lambda ds: setattr(ds, "PatientName", "Müstermann"), "(0010,0010)", "a name"),
    "nested": (
        lambda ds: setattr(
            ds, "RequestAttributesSequence", Sequence([item(ScheduledProcedureStepDescription="Müstermann")])
        ),
        "(0040,0275)>(0040,0007)",
        "a name",
    ),
    "private": (
        lambda ds: ds.private_block(0x0019, "OURS", create=True).add_new(0x01, "UN", b"x MRN-4711-X y"),
        "(0019,1001)",
        "a number",
    ),
    "number": (lambda ds: setattr(ds, "AccessionNumber", "998877"), "(0008,0050)", "a number"),
}


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_found_in_every_native_syntax(leak: str, syntax: UID) -> None:
    plant, where, kind = LEAKS[leak]
    ds, original = clean(), ct()
    original.AccessionNumber = "998877"
    plant(ds)
    findings = check(encode(original, syntax), encode(ds, syntax), WRITTEN)
    assert Finding(where, kind) in findings


@pytest.mark.parametrize("place", ["preamble", "meta", "behind"])
def test_what_surrounds_the_data_set_is_searched(place: str) -> None:
    content = bytearray(encode(clean()))
    if place == "preamble":
        content[10:20] = b"MRN-4711-X"
    elif place == "meta":
        at = content.index(b"PYDICOM")
        content[at : at + 7] = b"4711ABC"
    else:
        content += b"\xfc\xff\xfc\xffOB\0\0\x0a\0\0\0MRN-4711-X"
    original = ct("4711ABC" if place == "meta" else "MRN-4711-X")
    assert found(bytes(content), original)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=lambda uid: uid.name)
def test_compressed_frames_are_searched(syntax: UID) -> None:
    ds = clean()
    ds.PixelData = encapsulate([b"\0\1\2 MRN-4711-X \3\4\5\0"])
    ds["PixelData"].is_undefined_length = True
    assert found(encode(ds, syntax)) == [Finding("(7FE0,0010)", "a number")]


def test_text_among_native_pixels_is_found_and_what_pixels_spell_by_chance_is_not() -> None:
    ds, original = clean(), ct("MRN-4711-X")
    ds.PixelData = bytes(60) + b"MRN-4711-X" + bytes(58)
    assert found(ds, original) == [Finding("(7FE0,0010)", "a number")]
    ds.PixelData = b"11111111" * 16
    assert found(ds, ct("11111111")) == []


@given(
    st.binary(max_size=400), st.integers(0, 300), st.sampled_from([b"MRN-4711-X", b"mrn-4711-x", b"Jxyz789"])
)
def test_every_place_of_a_form_is_noticed(noise: bytes, at: int, form: bytes) -> None:
    content = noise[:at] + form + noise[at:]
    start = len(noise[:at])
    places = list(Grams([b"mrn-4711-x", b"jxyz789"]).places(content + bytes(4)))
    assert any(start <= place < start + 4 for place in places)


def test_forms_are_noticed_across_blocks() -> None:
    content = bytearray(3 * 1024**2)
    for start in (1024**2 - 3, 2 * 1024**2 - 5):
        content[start : start + 10] = b"MRN-4711-X"
    assert len(list(Grams([b"mrn-4711-x"]).places(bytes(content)))) == 2
    ds = clean()
    ds.Rows = ds.Columns = 1254
    ds.PixelData = bytes(content)[: 1254 * 1254 * 2]
    assert found(ds) == [Finding("(7FE0,0010)", "a number")]


def test_what_a_profile_lets_stand_is_no_finding() -> None:
    original, ds = ct(), clean()
    original.InstitutionName = ds.InstitutionName = "Klinikum Beispielstadt"
    ds.StudyInstanceUID, ds.StudyDate = STUDY_UID, original.StudyDate
    original.PatientBirthDate = original.StudyDate
    assert len(found(ds, original)) == 3
    allowed = Allowed(frozenset({0x00080080}), WRITTEN.written, uids=True, dates=True)
    assert found(ds, original, allowed) == []


@pytest.mark.parametrize("cut", [0, 100, 140, 300, -1, -130])
def test_an_output_that_cannot_be_followed_is_an_error(cut: int) -> None:
    with pytest.raises(VerificationError):
        found(encode(clean())[:cut])


@settings(max_examples=200)
@given(st.data())
def test_whatever_bytes_there_are_the_check_ends_in_an_answer_or_its_error(data: st.DataObject) -> None:
    content = bytearray(encode(clean()))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VerificationError):
        check(encode(ct()), bytes(content), WRITTEN)


def test_a_value_of_the_wrong_character_set_is_searched_all_the_same() -> None:
    ds = clean()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.add(DataElement(0x00080070, "LO", "xyz"))
    content = encode(ds).replace(b"xyz ", "Jörg".encode("latin-1"))
    assert Finding("(0008,0070)", "a name") in found(content)


def test_the_check_shares_no_code_with_the_engine() -> None:
    folder = Path(anonymizer.verify.__file__).parent
    imported = {
        match[0]
        for path in folder.glob("*.py")
        for match in re.finditer(
            r"^\s*(?:from|import) (?:anonymizer|\.)[\w.]*", path.read_text(), re.MULTILINE
        )
    }
    assert imported
    assert all("anonymizer.verify" in line for line in imported)
