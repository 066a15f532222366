"""Compressed frames of real encoders, with comments planted into them."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    XRayAngiographicImageStorage,
)

from anonymizer.codestreams import clean_jpeg, clean_jpeg2000
from anonymizer.elements import Fragments
from anonymizer.engine import Quarantined, deidentify
from anonymizer.errors import StopError
from anonymizer.pixels import encapsulated
from anonymizer.rle import clean_rle
from tests.anonymizer.material import CONTEXT, ct, encode, release, stop
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pydicom import Dataset

MARK: Final = b"ZQCOMMENT^JOHN"
FOLDER: Final = "dicom/cornerstoneWADOImageLoader/examples/test-images/"
SAMPLES: Final = {
    JPEGBaseline8Bit: "CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm",
    JPEGLosslessSV1: "CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm",
    JPEGLSLossless: "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm",
    JPEG2000Lossless: "CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm",
    RLELossless: "CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
}
TELL_THEIR_SIZE: Final = [uid for uid in SAMPLES if uid != RLELossless]  # an RLE header does not (PS3.5 G.5)


def _sample(transfer_syntax: str) -> Dataset:
    return dcmread(shared_data_dir() / FOLDER / SAMPLES[transfer_syntax])  # type: ignore[index]


@lru_cache(maxsize=8)
def _frame(transfer_syntax: str) -> bytes:
    return next(generate_frames(_sample(transfer_syntax).PixelData, number_of_frames=1))


def _saved(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_jpeg_comments(frame: bytes) -> bytes:
    comment, application = _jpeg_segment(0xFE, MARK), _jpeg_segment(0xE1, b"Exif\0\0" + MARK)
    thumbnail = _jpeg_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\4\1" + MARK[:12])
    return frame[:2] + thumbnail + comment + application + frame[2:].rstrip(b"\0") + MARK


def _with_j2k_comment(frame: bytes) -> bytes:
    at = frame.index(b"\xff\x90")
    return (
        frame[:at]
        + struct.pack(">BBHH", 0xFF, 0x64, len(MARK) + 4, 1)
        + MARK
        + frame[at:].rstrip(b"\0")
        + MARK
    )


@pytest.mark.real_data
@pytest.mark.parametrize("transfer_syntax", SAMPLES, ids=lambda uid: uid.name)
def test_comments_and_trailing_bytes_go_and_every_pixel_stays(transfer_syntax: str) -> None:
    ds = _sample(transfer_syntax)
    ds.PatientID = "MRN-4711-X"
    before = ds.pixel_array.copy()
    frame = _frame(transfer_syntax)
    if transfer_syntax == JPEG2000Lossless:
        frame = _with_j2k_comment(frame)
    elif transfer_syntax != RLELossless:
        frame = _with_jpeg_comments(frame)
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    ds.save_as(buffer)
    assert (MARK in buffer.getvalue()) == (transfer_syntax != RLELossless)
    outcome = deidentify(buffer.getvalue(), CONTEXT)
    assert not isinstance(outcome, Quarantined), outcome
    content = b"".join(outcome[1])
    assert MARK[:10] not in content
    assert np.array_equal(dcmread(io.BytesIO(content)).pixel_array, before)


@pytest.mark.real_data
@pytest.mark.parametrize("transfer_syntax", TELL_THEIR_SIZE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_a_frame_of_another_size_than_described_waits(transfer_syntax: str, keyword: str) -> None:
    ds = _sample(transfer_syntax)
    ds.PatientID = "MRN-4711-X"
    ds[keyword].value = ds[keyword].value - 1
    buffer = io.BytesIO()
    ds.save_as(buffer)
    assert stop(buffer.getvalue()).reason_code == "pixel_data_mismatch"


@pytest.mark.real_data
def test_a_truncated_or_mutilated_frame_is_refused_by_name() -> None:
    for transfer_syntax, clean in (
        (JPEGBaseline8Bit, clean_jpeg), (JPEGLSLossless, clean_jpeg), (JPEG2000Lossless, clean_jpeg2000),
    ):  # fmt: skip
        frame = _frame(transfer_syntax).rstrip(b"\0")
        for length in (*range(80), len(frame) // 2, len(frame) - 2):
            with pytest.raises(StopError):
                clean(frame[:length])


@pytest.mark.real_data
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_frame_is_cleaned_or_refused(data: st.DataObject) -> None:
    transfer_syntax, clean = data.draw(
        st.sampled_from([
            (JPEGBaseline8Bit, clean_jpeg), (JPEGLSLossless, clean_jpeg), (JPEG2000Lossless, clean_jpeg2000),
        ])
    )  # fmt: skip
    frame = bytearray(_frame(transfer_syntax))
    places = st.one_of(st.integers(0, 400), st.integers(len(frame) - 40, len(frame) - 1))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        frame[at] = value
    with suppress(StopError):
        clean(bytes(frame))


def test_an_identifier_in_a_compressed_frame_stops_the_instance() -> None:
    ds = ct()
    plane = b"\x3f" + b"MRN-4711-X".ljust(64, b"x") + b"\0"
    ds.PixelData = encapsulate([struct.pack("<16L", 2, 64, 130, *[0] * 13) + plane * 2])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    assert stop(encode(ds, RLELossless)).reason_code == "residual_identifier"


def test_smooth_pixels_that_spell_a_short_name_in_rle_stop_nothing() -> None:
    ds = ct()
    ds.PatientName = "Doe^Jane"
    plane = b"\x3f" + b"abc DOE def".ljust(64, b"x") + b"\0"
    ds.PixelData = encapsulate([struct.pack("<16L", 2, 64, 130, *[0] * 13) + plane * 2])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    assert release(encode(ds, RLELossless))


@pytest.mark.parametrize(
    "header", [(1, 64), (3, 64, 70, 80), (2, 64, 64), (2, 60, 80), (2, 64, 9999), (99, 64)]
)
def test_an_rle_header_that_does_not_fit_waits(header: tuple[int, ...]) -> None:
    ds = ct()
    frame = struct.pack("<16L", *header, *[0] * (16 - len(header))) + b"x" * 40
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    assert stop(encode(ds, RLELossless)).reason_code == "pixel_data_mismatch"


TEXT: Final = b"Bemerkung Klinikum Ort "


def _with_frame(transfer_syntax: str, frame: bytes) -> bytes:
    ds = _sample(transfer_syntax)
    ds.PatientName, ds.PatientID = "Doe^J", "2178309"
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    return _saved(ds)


@pytest.mark.real_data
@pytest.mark.parametrize("text", [TEXT, b"MRN 2178309 ", b"NAME DOE J. GEB 13.04.1962 "])
def test_bytes_behind_an_rle_segment_do_not_leave_and_every_pixel_stays(text: bytes) -> None:
    frame = _frame(RLELossless)
    count, first, second, *_ = struct.unpack_from("<16L", frame)
    assert (count, first) == (2, 64)
    stuffed = struct.pack("<16L", 2, 64, second + len(text), *[0] * 13)
    stuffed += frame[64:second] + text + frame[second:] + text
    outcome = release(_with_frame(RLELossless, stuffed))
    assert text.strip() not in outcome.content
    assert np.array_equal(outcome.ds.pixel_array, _sample(RLELossless).pixel_array)


def test_an_rle_segment_that_decodes_to_another_length_waits() -> None:
    for runs in (b"\x3e" + b"x" * 63, b"\x40" + b"x" * 65, b"\x3f" + b"x" * 63, b"\x80" * 99, b"\xc0x" * 2):
        with pytest.raises(StopError):
            clean_rle(struct.pack("<16L", 1, 64, *[0] * 14) + runs, 1, 64)
    assert clean_rle(struct.pack("<16L", 1, 64, *[0] * 14) + b"\xc1x\x80TEXT", 1, 64)[64:] == b"\xc1x"


@pytest.mark.real_data
@pytest.mark.parametrize("marker", [0xC4, 0xCC, 0xDA, 0xDB, 0xDD, 0xF8])
def test_text_in_a_jpeg_table_or_scan_header_waits(marker: int) -> None:
    frame = _frame(JPEGBaseline8Bit)
    at = frame.index(b"\xff\xda")
    content = _with_frame(JPEGBaseline8Bit, frame[:at] + _jpeg_segment(marker, TEXT) + frame[at:])
    assert stop(content).reason_code == "pixel_data_mismatch"


@pytest.mark.real_data
def test_text_in_a_longer_scan_header_waits() -> None:
    frame = _frame(JPEGBaseline8Bit)
    at = frame.index(b"\xff\xda")
    length = struct.unpack_from(">H", frame, at + 2)[0]
    longer = struct.pack(">BBH", 0xFF, 0xDA, length + len(TEXT)) + frame[at + 4 : at + 2 + length] + TEXT
    content = _with_frame(JPEGBaseline8Bit, frame[:at] + longer + frame[at + 2 + length :])
    assert stop(content).reason_code == "pixel_data_mismatch"


@pytest.mark.real_data
def test_of_a_jfif_or_adobe_segment_only_what_decodes_is_kept() -> None:
    frame = _frame(JPEGBaseline8Bit)
    marks = _jpeg_segment(0xE0, b"JFIF\0KLINIKU\0\0") + _jpeg_segment(0xEE, b"AdobeKLINIK\0")
    cleaned = clean_jpeg(frame[:2] + marks + frame[2:]).content
    assert b"KLINIK" not in cleaned
    assert b"JFIF" in cleaned
    assert b"Adobe" in cleaned


@pytest.mark.real_data
@pytest.mark.parametrize("transfer_syntax", [JPEGBaseline8Bit, JPEGLSLossless], ids=lambda uid: uid.name)
def test_text_before_a_jpeg_end_of_image_waits(transfer_syntax: str) -> None:
    frame = _frame(transfer_syntax)
    end = frame.rindex(b"\xff\xd9")
    content = _with_frame(transfer_syntax, frame[:end] + TEXT + frame[end:])
    assert stop(content).reason_code == "pixel_data_mismatch"


@pytest.mark.real_data
def test_a_jpeg_2000_tile_part_of_open_length_gets_its_length_and_text_behind_it_waits() -> None:
    frame = _frame(JPEG2000Lossless)
    at, end = frame.index(b"\xff\x90"), frame.rindex(b"\xff\xd9")
    opened = frame[: at + 6] + b"\0\0\0\0" + frame[at + 10 : end]
    assert clean_jpeg2000(opened + b"\xff\xd9").content == clean_jpeg2000(frame).content
    content = _with_frame(JPEG2000Lossless, opened + TEXT + b"\xff\xd9")
    assert stop(content).reason_code == "pixel_data_mismatch"


@pytest.mark.real_data
@pytest.mark.parametrize("text", [b"MRN 2178309 ", b"NAME DOE J. GEB "])
def test_a_short_identifier_printed_in_a_compressed_frame_stops_the_instance(text: bytes) -> None:
    frame = _frame(JPEGBaseline8Bit)
    table = _jpeg_segment(0xDB, b"\3" + text.ljust(64, b"\1"))  # a quantization table that nothing uses
    content = _with_frame(JPEGBaseline8Bit, frame[:2] + table + frame[2:])
    assert stop(content).reason_code == "residual_identifier"


@pytest.mark.real_data
def test_an_extended_offset_table_never_outlives_the_frames_that_it_points_at() -> None:
    ds = _sample(JPEG2000Lossless)
    ds.PatientID = "MRN-4711-X"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    ds.Modality, ds.NumberOfFrames = "XA", "2"
    frame = _with_j2k_comment(_frame(JPEG2000Lossless))
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended([frame] * 2)
    before = dcmread(io.BytesIO(_saved(ds))).pixel_array
    after = release(_saved(ds)).ds
    assert "ExtendedOffsetTable" not in after
    assert np.array_equal(after.pixel_array, before)


@pytest.mark.real_data
def test_text_in_an_extended_offset_table_does_not_leave() -> None:
    ds = _sample(JPEG2000Lossless)
    ds.PatientID = "MRN-4711-X"
    ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = MARK.ljust(16), b"ZQLENGTH"
    ds.add_new(0x7FE00003, "UV", int.from_bytes(b"ZQTOTALS", "little"))
    content = release(_saved(ds)).content
    assert [mark for mark in (MARK, b"ZQLENGTH", b"ZQTOTALS") if mark in content] == []


def test_frames_beyond_the_basic_offset_table_get_an_extended_one() -> None:
    item = encapsulated([b"abc", b"defgh"], widest_offset=20)
    assert item[0x7FE00001].value == struct.pack("<2Q", 0, 12)
    assert item[0x7FE00002].value == struct.pack("<2Q", 4, 6)
    assert item[0x7FE00010].value == Fragments(b"", (b"abc\0", b"defgh\0"))
    near = encapsulated([b"abc", b"defgh"])
    assert set(near) == {0x7FE00010}
    assert near[0x7FE00010].value == Fragments(struct.pack("<2L", 0, 12), (b"abc\0", b"defgh\0"))


@pytest.mark.real_data
def test_frames_in_several_fragments_become_one_fragment_each() -> None:
    folder = shared_data_dir() / "dicom/dicomParser/testImages/encapsulated"
    for path in sorted(folder.rglob("*fragmented_bot*")):
        ds = dcmread(path)
        ds.PatientName, ds.PatientID = "Doe^Jane", "MRN-4711-X"
        buffer = io.BytesIO()
        ds.save_as(buffer)
        outcome = deidentify(buffer.getvalue(), CONTEXT)
        assert not isinstance(outcome, Quarantined), (path.name, outcome)
        after = dcmread(io.BytesIO(b"".join(outcome[1])))
        frames = int(ds.get("NumberOfFrames", 1))
        assert len(list(generate_frames(after.PixelData, number_of_frames=frames))) == frames


def test_one_trailing_byte_of_native_pixel_data_is_set_to_zero() -> None:
    ds = ct(rows=3, columns=3)
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = bytes(range(9)) + b"Q"
    ds["PixelData"].VR = "OB"
    assert release(ds).ds.PixelData == bytes(range(9)) + b"\0"


def test_bytes_after_native_pixel_data_wait() -> None:
    ds = ct()
    ds.PixelData = ds.PixelData + b"DOE^JOHN"
    assert stop(ds).reason_code == "pixel_data_mismatch"
