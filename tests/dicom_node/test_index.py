from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dicom_node.errors import HeaderError
from dicom_node.index import is_uid, read_header
from tests.dicom_node.support import ct, encoded, save
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

UNCOMPRESSED = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def code_of(path: Path) -> str:
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    return caught.value.code


def raw_element(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    return struct.pack("<HH2sHI", group, element, vr, 0, size) + value


def data_offset(path: Path) -> int:
    """Say where the data set starts."""
    meta = pydicom.filereader.read_file_meta_info(path)
    return 132 + 12 + int(meta.FileMetaInformationGroupLength)


def write_raw(path: Path, data_set: bytes) -> Path:
    """Write a file whose file meta information is right and whose data set is as given."""
    save(ct(), path)
    path.write_bytes(path.read_bytes()[: data_offset(path)] + data_set)
    return path


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.keyword)
def test_the_header_is_read_in_every_encoding(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    ds = ct()
    ds.ReferencedImageSequence = Sequence([Dataset(), Dataset()])
    ds.ReferencedImageSequence[0].PatientID = "somebody else, nested"
    header = read_header(save(ds, tmp_path / "a.dcm", syntax))
    assert header.sop_instance_uid == ds.SOPInstanceUID
    assert header.study_instance_uid == ds.StudyInstanceUID
    assert header.series_instance_uid == ds.SeriesInstanceUID
    assert header.transfer_syntax_uid == syntax
    assert (header.patient_id, header.issuer_of_patient_id) == ("4711", "HOSPITAL")
    assert (header.patient_name, header.patient_birth_date) == ("Doe^Jane", "19700101")
    assert (header.modality, header.body_part_examined) == ("CT", "CHEST")
    assert (header.study_date, header.study_description) == ("20260102", "THORAX")


def test_encapsulated_pixel_data_and_undefined_lengths_are_walked(tmp_path: Path) -> None:
    ds = ct(PixelData=encapsulate([b"\xff\xd8frame one\xff\xd9", b"\xff\xd8frame two\xff\xd9"]))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    inner.is_undefined_length_sequence_item = True
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    ds.ReferencedImageSequence = Sequence([outer])
    ds["ReferencedImageSequence"].is_undefined_length = True
    path = save(ds, tmp_path / "a.dcm", JPEGBaseline8Bit)
    assert read_header(path).sop_instance_uid == ds.SOPInstanceUID
    whole = path.read_bytes()
    for cut in (1, 9, 15, 30):
        path.write_bytes(whole[:-cut])
        assert code_of(path) == "truncated"


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.keyword)
def test_a_file_cut_anywhere_is_never_read_as_whole(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    path = save(ct(size=4), tmp_path / "a.dcm", syntax)
    whole = path.read_bytes()
    complete = read_header(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            header = read_header(path)
        except HeaderError:
            continue
        # Cut exactly between two elements: nothing in the bytes tells that more was to come.
        assert header.sop_instance_uid == complete.sop_instance_uid
        assert length < len(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    tail=st.binary(max_size=40),
)
def test_a_hostile_file_ends_in_a_header_or_a_header_error(
    tmp_path: Path, changes: list[tuple[float, int]], tail: bytes
) -> None:
    ds = ct(size=2)
    ds.ReferencedImageSequence = Sequence([Dataset()])
    ds["ReferencedImageSequence"].is_undefined_length = True
    path = save(ds, tmp_path / "a.dcm")
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[132 + int(where * (len(content) - 132))] = value
    path.write_bytes(bytes(content) + tail)
    try:
        header = read_header(path)
    except HeaderError:
        return
    assert is_uid(header.sop_instance_uid)
    assert is_uid(header.study_instance_uid)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_no_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(data)
    code_of(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
def test_an_instance_without_a_uid_is_refused(tmp_path: Path, keyword: str) -> None:
    path = tmp_path / "a.dcm"
    assert code_of(write_raw(path, encoded(ct({keyword: None})))) == "missing_uid"
    assert code_of(write_raw(path, encoded(ct({keyword: ""})))) == "missing_uid"


@pytest.mark.parametrize(
    "value",
    [
        "../../../etc/passwd",
        "1.2/../3",
        "1.2.3 4",
        "1..2",
        ".1",
        "1.",
        "1.02",
        "1" * 65,
        "a.b",
        "1",
        "1.2\\1.3",
    ],
)
def test_an_invalid_uid_is_refused(tmp_path: Path, value: str) -> None:
    ds = ct(StudyInstanceUID="1.2.3")
    data = encoded(ds).replace(b"UI\x06\x001.2.3\0", b"UI" + struct.pack("<H", len(value)) + value.encode())
    assert code_of(write_raw(tmp_path / "a.dcm", data)) == "invalid_uid"
    assert not is_uid(value)


@pytest.mark.parametrize("value", ["1.2", "0.0", "1.2.840.10008.1.1", "2.25." + "1" * 38, "1." + "9" * 62])
def test_a_valid_uid_is_a_uid(value: str) -> None:
    assert is_uid(value)
    assert not is_uid(value + "\n")


def test_two_patient_ids_are_ambiguous(tmp_path: Path) -> None:
    data = encoded(ct())
    again = struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 4) + b"0815"
    assert code_of(write_raw(tmp_path / "a.dcm", data + again)) == "ambiguous"


def test_a_patient_id_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="exceeds"):
        data = encoded(ct(PatientID="9" * 65))
    assert code_of(write_raw(tmp_path / "a.dcm", data)) == "value_too_long"
    assert code_of(write_raw(tmp_path / "b.dcm", encoded(ct()).replace(b"4711", b"4\x001 "))) == "ambiguous"
    assert code_of(write_raw(tmp_path / "c.dcm", encoded(ct()).replace(b"4711", b"4\xfc1 "))) == "ambiguous"


def test_several_patient_ids_in_one_value_stay_visible(tmp_path: Path) -> None:
    header = read_header(write_raw(tmp_path / "a.dcm", encoded(ct()).replace(b"4711", b"4\\71")))
    assert header.patient_id == "4\\71"


def test_text_is_read_in_its_character_set(tmp_path: Path) -> None:
    ds = ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", PatientID="ä1")
    header = read_header(save(ds, tmp_path / "a.dcm"))
    assert (header.patient_name, header.patient_id) == ("Müller^Jörg", "ä1")
    ds = ct(SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
    assert read_header(save(ds, tmp_path / "b.dcm")).patient_name == "山田^太郎"


@pytest.mark.parametrize(
    "charset",
    [
        b"ISO_IR 999",
        b"zlib_codec",
        b"rot13 ",
        b"\\\\\\\\\\\\",
        b"\xff\xfe\xfd ",
        b"ISO_IR\x00100",
        b"a\0b\\\0c",
    ],
)
def test_a_character_set_that_is_none_stops_no_file(tmp_path: Path, charset: bytes) -> None:
    data = encoded(ct(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", PatientID="1"))
    padded = charset.ljust(10)
    header = read_header(write_raw(tmp_path / "a.dcm", data.replace(b"ISO_IR 100", padded)))
    assert header.patient_id == "1"
    assert "ller" in header.patient_name


@pytest.mark.parametrize("codec", [b"unicode_escape", b"raw_unicode_escape", b"utf_7", b"utf_16", b"idna"])
def test_no_codec_makes_text_that_cannot_be_stored(tmp_path: Path, codec: bytes) -> None:
    data = encoded(ct(SpecificCharacterSet="ISO_IR 192", PatientName="ä" + "x" * 20))
    data = data.replace(b"CS\x0a\0ISO_IR 192", b"CS" + struct.pack("<H", len(codec)) + codec)
    name = b"\xe4\\ud800+2AA-".ljust(22)
    header = read_header(write_raw(tmp_path / "a.dcm", data.replace("ä".encode() + b"x" * 20, name)))
    assert header.patient_name.encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    charset=st.one_of(
        st.binary(max_size=24),
        st.lists(
            st.sampled_from(
                [b"ISO_IR 100", b"ISO 2022 IR 87", b"ISO_IR 192", b"GB18030", b"\0", b"\\", b"x "]
            ),
            max_size=5,
        ).map(b"\\".join),
    ),
    name=st.binary(max_size=40),
    identifier=st.binary(max_size=40),
)
def test_any_character_set_and_text_end_in_a_header_or_a_header_error(
    tmp_path: Path, charset: bytes, name: bytes, identifier: bytes
) -> None:
    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", group, number, vr, len(value)) + value

    rest = encoded(ct({"PatientName": None, "PatientID": None}))
    texts = element(0x0010, 0x0010, b"PN", name) + element(0x0010, 0x0020, b"LO", identifier)
    path = write_raw(tmp_path / "a.dcm", element(0x0008, 0x0005, b"CS", charset) + rest + texts)
    try:
        header = read_header(path)
    except HeaderError:
        return
    assert "\0" not in header.patient_id + header.patient_name
    assert (header.patient_id + header.patient_name).encode() is not None


def test_nesting_without_end_is_stopped(tmp_path: Path) -> None:
    level = raw_element(0x0008, 0x1140, b"SQ", b"", 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    assert code_of(write_raw(tmp_path / "a.dcm", level * 100_000)) == "too_complex"


def test_a_length_beyond_the_file_is_a_truncation(tmp_path: Path) -> None:
    data = raw_element(0x7FE0, 0x0010, b"OW", b"12", 0xFFFFFFFE)
    assert code_of(write_raw(tmp_path / "a.dcm", data)) == "truncated"


def test_a_deflate_bomb_is_stopped(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    head = path.read_bytes()[: data_offset(path)]
    squeeze = zlib.compressobj(wbits=-15)
    bomb = squeeze.compress(encoded(ct())) + squeeze.compress(bytes(50_000_000)) + squeeze.flush()
    path.write_bytes(head + bomb)
    with pytest.raises(HeaderError) as caught:
        read_header(path, max_inflated_bytes=1_000_000)
    assert caught.value.code == "too_complex"
    path.write_bytes(head + b"\xff" * 100)
    assert code_of(path) == "bad_deflate"


def test_zeros_behind_the_data_set_are_padding(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read_header(path).patient_id == "4711"


def test_an_error_names_no_value(tmp_path: Path) -> None:
    data = encoded(ct(StudyInstanceUID="1.2.3")).replace(b"1.2.3\0", b"Doe^Ja")
    with pytest.raises(HeaderError) as caught:
        read_header(write_raw(tmp_path / "a.dcm", data))
    assert "Doe" not in str(caught.value)


@pytest.mark.real_data
def test_real_files_read_as_pydicom_reads_them() -> None:
    checked = 0
    for path in sorted((shared_data_dir() / "dicom").rglob("*.dcm"))[::5]:
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            expected: dict[str, Any] = {
                "sop_instance_uid": ds.get("SOPInstanceUID", ""),
                "study_instance_uid": ds.get("StudyInstanceUID", ""),
                "modality": ds.get("Modality") or "",
            }
            header = read_header(path)
        except (HeaderError, pydicom.errors.InvalidDicomError):
            continue
        assert {name: getattr(header, name) for name in expected} == expected, path.name
        checked += 1
    assert checked > 50
