"""Boxes are black in every transfer syntax, and nothing else changes."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from anonymizer import frames, masking, part10, pixels
from anonymizer.boxes import Box, outside
from anonymizer.elements import Element
from anonymizer.errors import StopError
from tests.anonymizer.material import ct, encode
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from anonymizer.masking import Masked

DCMDUMP: Final = "/usr/bin/dcmdump"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
J2K, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
NOT_OF_PIXELS: Final = pixels.ALL | pixels.OFFSETS_AND_LENGTH | {0x00880200}

# Real files, and the transfer syntax that lossless recompression writes; None: as it was.
FILES: Final = {
    "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm": None,
    "CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm": None,
    "CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm": None,
    "CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm": None,
    "CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm": EXPLICIT,
    "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm": EXPLICIT,
    "CTImage.dcm_JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm": EXPLICIT,
    "CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm": EXPLICIT,
    "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm": None,
    "CTImage.dcm_JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm": JPEG_LS,
    "CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm": None,
    "CTImage.dcm_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm": J2K,
    "HTJ2KLossless_08_RGB.dcm": J2K,
    "HTJ2K_08_RGB.dcm": J2K,
    "US1_J2KR.dcm": None,
    "examples_ybr_color.dcm": EXPLICIT,
    "SC_rgb_dcmtk_+eb+cr.dcm": EXPLICIT,
    "JLSL_16_15_1_1F.dcm": None,
    "SC_rgb_rle_16bit_2frame.dcm": None,
    "rtdose_rle.dcm": EXPLICIT,
    "SC_rgb_expb_32bit_2frame.dcm": None,
    "SC_rgb_small_odd_big_endian.dcm": None,
    "ExplVR_BigEnd.dcm": None,
    "OBXXXX1A_expb_2frame.dcm": None,
    "OBXXXX1A_rle_2frame.dcm": None,
    "gdcm-US-ALOKA-16.dcm": None,
    "color-pl.dcm": None,
    "SC_ybr_full_422_uncompressed.dcm": None,
    "RG3_JLSL": None,
    "JPEG2000_UNC.dcm": None,
    "liver_nonbyte_aligned.dcm": None,
    "parametric_map_double_float.dcm": None,
    "sm_image_jpegls_nobot.dcm": None,
}


def _file(name: str) -> Path:
    return next((shared_data_dir() / "dicom").rglob(name))


def _mask(content: bytes, boxes: list[Box], recompress: str = masking.LOSSLESS) -> tuple[Masked, bytes]:
    file = part10.read(content)
    item = {tag: element for tag, element in file.item.items() if not 0x50000000 <= tag < 0x7FE00000}
    item.pop(0x00880200, None)
    found = pixels.cleaned(file.item, item, file.transfer_syntax_uid, file.syntax)
    source = frames.read(found, item, file.transfer_syntax_uid, file.syntax)
    masked = masking.mask(source, found, item, boxes, recompress)
    new = {tag: element for tag, element in item.items() if tag not in NOT_OF_PIXELS} | masked.elements
    return masked, b"".join(part10.write(new, file.sop_class_uid, "2.25.1", masked.transfer_syntax_uid))


def _values(content: bytes) -> tuple[np.ndarray[Any, np.dtype[Any]], dict[str, Any]]:
    """Return what pydicom reads: shape (frames, rows, columns, samples)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(io.BytesIO(content))
        uid = ds.file_meta.TransferSyntaxUID
        as_written: Any = {"correct_unused_bits": False}
        array, found = get_decoder(uid).as_array(ds, raw=True, **as_written)
    shape = (
        int(ds.get("NumberOfFrames") or 1),
        int(ds.Rows),
        int(ds.Columns),
        int(ds.get("SamplesPerPixel", 1)),
    )
    return array.reshape(shape), found


def _box(content: bytes) -> Box:
    ds = dcmread(io.BytesIO(content), stop_before_pixels=True)
    rows, columns = int(ds.Rows), int(ds.Columns)
    return Box(columns // 8 * 2, rows // 3, columns // 4 * 2 or 2, rows // 2 + 1, "test")


@pytest.mark.real_data
@pytest.mark.parametrize("name", FILES)
def test_a_box_is_of_one_colour_and_every_other_pixel_is_as_it_was(name: str, tmp_path: Path) -> None:
    content = _file(name).read_bytes()
    box = _box(content)
    masked, written = _mask(content, [box])
    before, _ = _values(content)
    after, _ = _values(written)
    rest = np.ones(before.shape[1:3], bool)
    rest[box.top : box.bottom, box.left : box.right] = False
    assert np.array_equal(after[:, rest], before[:, rest])
    for frame in after:
        inside = frame[box.top : box.bottom, box.left : box.right].reshape(-1, frame.shape[-1])
        assert len(np.unique(inside, axis=0)) == 1
    assert masked.transfer_syntax_uid == (FILES[name] or part10.read(content).transfer_syntax_uid)
    assert masked.boxes == (box,)
    _is_clean(written)
    _is_read_by_dcmtk(written, tmp_path)


def _is_clean(content: bytes) -> None:
    """A second look finds nothing more to leave out."""
    file = part10.read(content)
    found = pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)
    assert found == {tag: file.item[tag] for tag in found}


def _is_read_by_dcmtk(content: bytes, folder: Path) -> None:
    if shutil.which(DCMDUMP) is None:
        return
    path = folder / "masked.dcm"
    path.write_bytes(content)
    run = subprocess.run([DCMDUMP, "-q", str(path)], capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "recompress", "expected"),
    [
        ("CTImage.dcm_JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm", "as-received", None),
        ("CTImage.dcm_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm", "as-received", None),
        ("CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm", "as-received", None),
        ("CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm", "as-received", EXPLICIT),
        ("CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm", "native", None),
        ("US1_J2KR.dcm", "native", EXPLICIT),
        ("JLSL_16_15_1_1F.dcm", "native", EXPLICIT),
    ],
)
def test_recompression_is_a_setting(name: str, recompress: str, expected: str | None) -> None:
    content = _file(name).read_bytes()
    box = _box(content)
    masked, written = _mask(content, [box], recompress)
    before, after = _values(content)[0], _values(written)[0]
    rest = np.ones(before.shape[1:3], bool)
    rest[box.top : box.bottom, box.left : box.right] = False
    assert np.array_equal(after[:, rest], before[:, rest])
    assert masked.transfer_syntax_uid == (expected or part10.read(content).transfer_syntax_uid)


def test_an_unknown_way_of_recompression_is_refused() -> None:
    with pytest.raises(ValueError, match="lossless, as-received, native"):
        masking.target_syntax(EXPLICIT, "zip")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("US1_UNCR.dcm", [0, 0, 0]),
        ("US1_J2KI.dcm", [0, 0, 0]),
        ("SC_ybr_full_uncompressed.dcm", [0, 128, 128]),
        ("SC_ybr_full_422_uncompressed.dcm", [0, 128, 128]),
        ("examples_ybr_color.dcm", [0, 128, 128]),
        ("dx_image.dcm", [255]),
        ("RG3_JLSL", [1023]),
        ("CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm", [-2000]),
    ],
)
def test_what_is_masked_shows_black(name: str, colour: list[int]) -> None:
    content = _file(name).read_bytes()
    box = _box(content)
    after = _values(_mask(content, [box])[1])[0]
    assert after[0, box.top, box.left].tolist() == colour


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["OBXXXX1A.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm"])
def test_what_is_masked_has_the_darkest_entry_of_its_palette(name: str) -> None:
    content = _file(name).read_bytes()
    box = _box(content)
    written = _mask(content, [box])[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        colours = apply_color_lut(_values(written)[0][0, :, :, 0], dcmread(io.BytesIO(written)))
    assert colours[box.top, box.left].max() == 0


@pytest.mark.real_data
def test_only_the_named_frames_are_masked() -> None:
    content = _file("sm_image_jpegls.dcm").read_bytes()
    masked, written = _mask(content, [Box(0, 0, 4, 4, "test", frames=(2, 7))])
    before, after = _values(content)[0], _values(written)[0]
    changed = [index for index in range(25) if not np.array_equal(before[index], after[index])]
    assert changed == [2, 7]
    assert masked.transfer_syntax_uid == JPEG_LS


@pytest.mark.real_data
@pytest.mark.parametrize(
    "boxes",
    [[], [Box(600, 0, 700, 9)], [Box(4, 4, 4, 9)], [Box(0, 0, 9, 9, frames=(5,))]],
    ids=["none", "outside", "empty", "no-frame"],
)
def test_without_a_box_in_the_image_no_byte_changes(boxes: list[Box]) -> None:
    content = _file("CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm").read_bytes()
    file = part10.read(content)
    found = pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)
    masked, _ = _mask(content, boxes)
    assert masked.elements == found
    assert masked.transfer_syntax_uid == file.transfer_syntax_uid
    assert masked.boxes == ()


@pytest.mark.real_data
def test_what_was_lossy_says_so_after_it_was_decoded() -> None:
    ds = dcmread(_file("CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm"))
    del ds.LossyImageCompression
    buffer = io.BytesIO()
    ds.save_as(buffer)
    after = dcmread(io.BytesIO(_mask(buffer.getvalue(), [Box(0, 0, 9, 9)])[1]))
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert after.LossyImageCompression == "01"


@pytest.mark.real_data
def test_decoded_colour_is_described_as_it_was_decoded() -> None:
    content = _file("SC_rgb_dcmtk_+eb+cy+s2.dcm").read_bytes()
    ds = dcmread(io.BytesIO(content))
    after = dcmread(io.BytesIO(_mask(content, [Box(0, 0, 1, 1)])[1]))
    assert (ds.PhotometricInterpretation, after.PhotometricInterpretation) == ("YBR_FULL_422", "YBR_FULL")
    assert np.array_equal(ds.pixel_array[1:], after.pixel_array[1:])


def test_a_smallest_pixel_value_stays_true() -> None:
    ds = ct()
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 5, 63
    after = dcmread(io.BytesIO(_mask(encode(ds), [Box(0, 0, 2, 2)])[1]))
    assert (after.SmallestImagePixelValue, after.LargestImagePixelValue) == (0, 63)


@pytest.mark.parametrize("tag", [0x00880200, 0x60003000, 0x60020010, 0x50003000])
def test_a_picture_beside_masked_pixel_data_is_refused(tag: int) -> None:
    file = part10.read(encode(ct()))
    found = pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)
    source = frames.read(found, file.item, file.transfer_syntax_uid, file.syntax)
    item = file.item | {tag: Element(tag, "OB", b"\0\0")}
    with pytest.raises(StopError) as stopped:
        masking.mask(source, found, item, [Box(0, 0, 2, 2)], masking.LOSSLESS)
    assert stopped.value.code == "picture_left_over"


def _damaged(change: str) -> bytes:
    ds = ct()
    if change == "bits":
        ds.BitsStored, ds.HighBit = 20, 19
    elif change == "high-bit":
        ds.HighBit = 3
    elif change == "palette":
        ds.PhotometricInterpretation = "PALETTE COLOR"
    elif change == "segments":
        ds.PhotometricInterpretation = "PALETTE COLOR"
        for colour in ("Red", "Green", "Blue"):
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(ds, f"Segmented{colour}PaletteColorLookupTableData", struct.pack("<3H", 1, 256, 9))
    return encode(ds)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("bits", "pixel_data_mismatch"),
        ("high-bit", "pixel_data_mismatch"),
        ("palette", "palette_not_judged"),
        ("segments", "palette_not_judged"),
    ],
)
def test_pixel_data_that_cannot_be_judged_stops_the_instance(change: str, code: str) -> None:
    with pytest.raises(StopError) as stopped:
        _mask(_damaged(change), [Box(0, 0, 4, 4)])
    assert stopped.value.code == code


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm", "RG2_JPLY"]
)
def test_a_codestream_that_cannot_be_decoded_stops_the_instance(name: str) -> None:
    with pytest.raises(StopError) as stopped:
        _mask(_file(name).read_bytes(), [Box(0, 0, 4, 4)])
    assert stopped.value.code == "pixel_data_not_decodable"


def test_a_frame_that_claims_more_than_memory_allows_stops_the_instance() -> None:
    ds = dcmread(io.BytesIO(encode(ct(rows=64, columns=64))))
    ds.compress(JPEG2000Lossless)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.Rows = ds.Columns = 65535
    ds.PixelData = encapsulate([frame[:8] + b"\0\0\xff\xff\0\0\xff\xff" + frame[16:]])
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    with pytest.raises(StopError) as stopped:
        _mask(buffer.getvalue(), [Box(0, 0, 4, 4)])
    assert stopped.value.code == "pixel_data_too_large"


def test_one_bit_a_pixel_is_masked_bit_by_bit() -> None:
    ds = ct(rows=3, columns=5)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.NumberOfFrames = 1, 1, 0, 2
    ds.PixelData = b"\xff\xff\xff\x3f"
    after = _values(_mask(encode(ds), [Box(1, 1, 3, 2, frames=(1,))])[1])[0]
    assert after[0].all()
    assert np.argwhere(after[1, :, :, 0] == 0).tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize(
    "kept", [[], [Box(2, 3, 5, 7)], [Box(0, 0, 4, 4), Box(3, 2, 9, 6), Box(8, 8, 20, 20)]]
)
def test_the_outside_of_boxes_is_all_of_the_image_but_them(kept: list[Box]) -> None:
    inside, covered = np.zeros((10, 12), int), np.zeros((10, 12), int)
    for box in kept:
        inside[box.top : box.bottom, box.left : box.right] = 1
    for box in outside(kept, 10, 12, "test"):
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert np.array_equal(covered, 1 - inside)
