"""What may stay must look like its VR, value by value (PS3.5 Table 6.2-1)."""

from __future__ import annotations

import pytest

from anonymizer.text import Charset, fits
from tests.anonymizer.material import ct, encode, item, release, stop

LATIN = Charset(("ISO_IR 100",))


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("CS", b"ORIGINAL\\PRIMARY\\M_FFE 2 "), ("CS", b""), ("CS", b"A" * 16 + b"\\" + b"B" * 16),
        ("SH", b"x" * 16 + b"\\y"), ("LO", b"\xfc" * 64), ("DS", b" 1.5\\-2.E-3\\+.5 "),
        ("DS", b"-0.0217883751691557"), ("IS", b"-12\\+7 "), ("AE", b"NODE"), ("AS", b"067Y"),
        ("UI", b"1.2.3\0"), ("UR", b"urn:oid:1.2 "), ("ST", b"a\\b\r\n" * 100), ("UC", b"u" * 9999),
        ("DS", b""), ("IS", b"\\"),
    ],
)  # fmt: skip
def test_a_value_that_looks_like_its_vr_fits(vr: str, value: bytes) -> None:
    assert fits(vr, value, LATIN)


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("CS", b"Frau Beispiel"), ("CS", b"A" * 17), ("CS", b"OK\\TEL 030-12"), ("CS", b"CHEST\0X"),
        ("SH", b"x" * 17), ("SH", b"y\\" + b"x" * 17), ("LO", b"x" * 65), ("LO", b"a\\" + b"\xfc" * 65),
        ("DS", b"1" * 33), ("DS", b"1-2-3"), ("DS", b"1 2"), ("DS", b"."), ("IS", b"1" * 13), ("IS", b"1-2"),
        ("AE", b"A" * 17), ("AS", b"67Y"), ("UI", b"1" * 65), ("UR", b"a b"), ("ST", b"x" * 1025),
        ("IS", b"\xb2"), ("DS", b"nan"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_look_like_its_vr_does_not_fit(vr: str, value: bytes) -> None:
    assert not fits(vr, value, LATIN)


@pytest.mark.filterwarnings("ignore:The value length", "ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    "value", ["Frau Erika Beispiel, Tel 030-1234567", "FRAU BEISPIEL", "CHEST\\FRAU BEISPIEL", "Chest"]
)
def test_a_body_part_that_the_standard_does_not_define_is_removed(value: str) -> None:
    ds = ct()
    ds.BodyPartExamined = value
    assert "BodyPartExamined" not in release(ds).ds


@pytest.mark.parametrize("value", ["CHEST", "ABDOMENPELVIS", "WHOLEBODY", "CSPINE", "BREAST", ""])
def test_a_defined_body_part_stays(value: str) -> None:
    ds = ct()
    ds.BodyPartExamined = value
    assert release(ds).ds.BodyPartExamined == value


@pytest.mark.filterwarnings("ignore:The value length", "ignore:Invalid value for VR CS")
def test_free_text_in_a_required_code_string_stops_the_instance() -> None:
    ds = ct()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "Erika Beispiel Hauptstr. 5"]
    assert stop(ds).reason_code == "unfit_value"


@pytest.mark.filterwarnings("ignore:The value length")
def test_an_overlong_text_is_emptied_or_removed_by_its_type() -> None:
    ds = ct()
    ds.Manufacturer, ds.ManufacturerModelName, ds.ConvolutionKernel = "L" * 60000, "M" * 65, "S" * 17
    ds.DeviceSequence = [item(Manufacturer="N" * 65)]
    content = release(encode(ds)).content
    assert [letter for letter in "LMN" if letter.encode() * 65 in content] == []
    after = release(ds).ds
    assert after.Manufacturer == ""  # type 2
    assert "ManufacturerModelName" not in after  # type 3
    assert "ConvolutionKernel" not in after
