"""Text in pixels is found and blacked out, wherever it comes from."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from importlib.metadata import distributions
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom import dcmread

from anonymizer import burnt_in, part10, pixels
from anonymizer.boxes import Box
from anonymizer.burnt_in import Cleaned, PixelOptions
from anonymizer.errors import StopError
from tests.anonymizer import burnt_text
from tests.anonymizer.material import ct, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]
DETECTION = PixelOptions(regions=(), ultrasound_regions=False)
NOTHING = PixelOptions(detect_text=False, regions=(), ultrasound_regions=False)
SOME = ("CT head", "CT WG04", "MR head 2", "DX chest", "CT small")
DRAWN_OVER = (*SOME, "US cine", "endoscopy")


def _clean(content: bytes, options: PixelOptions) -> tuple[Cleaned, bytes]:
    file = part10.read(content)
    item = {tag: element for tag, element in file.item.items() if not 0x50000000 <= tag < 0x7FE00000}
    item.pop(0x00880200, None)
    cleaned = burnt_in.clean(file.item, item, file.transfer_syntax_uid, file.syntax, options)
    kept = {
        tag: element for tag, element in item.items() if tag not in pixels.ALL | pixels.OFFSETS_AND_LENGTH
    }
    written = part10.write(kept | cleaned.elements, file.sop_class_uid, "2.25.1", cleaned.transfer_syntax_uid)
    return cleaned, b"".join(written)


def _drawn(name: str, seed: int = 0) -> tuple[bytes, list[burnt_text.Line], tuple[int, int]]:
    ds, values = burnt_text.one_frame(name)
    lines = burnt_text.draw(values, Random(f"{name}{seed}"), 6)  # noqa: S311
    return burnt_text.encoded(ds, values), lines, (values.shape[0], values.shape[1])


def _pixels(content: bytes) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(io.BytesIO(content)).pixel_array


@pytest.mark.real_data
@pytest.mark.slow
def test_text_drawn_over_real_images_is_found() -> None:
    names = {**burnt_text.WITHOUT_TEXT, **burnt_text.WITH_TEXT}
    hits: dict[str, list[bool]] = {}
    for kind in DRAWN_OVER:
        content, lines, shape = _drawn(names[kind])
        found = _clean(content, DETECTION)[0].boxes
        hits[kind] = [
            burnt_text.covered(line.box, list(found), shape) >= 0.8
            for line in lines
            if line.contrast != "faint"
        ]
    every = [hit for of_image in hits.values() for hit in of_image]
    assert len(every) >= 25
    assert sum(every) / len(every) >= 0.97, hits


@pytest.mark.real_data
@pytest.mark.slow
def test_little_is_masked_where_there_is_no_text() -> None:
    areas = []
    for kind in SOME:
        ds, values = burnt_text.one_frame(burnt_text.WITHOUT_TEXT[kind])
        found = _clean(burnt_text.encoded(ds, values), DETECTION)[0].boxes
        rows, columns = values.shape[:2]
        areas.append(burnt_text.covered(Box(0, 0, columns, rows), list(found), (rows, columns)))
    assert sum(areas) / len(areas) < 0.02, areas


@pytest.mark.real_data
def test_what_a_box_covers_is_black_and_all_else_is_as_it_was() -> None:
    content, lines, shape = _drawn(burnt_text.WITHOUT_TEXT["CT head"])
    cleaned, written = _clean(content, DETECTION)
    before, after = _pixels(content), _pixels(written)
    masked = np.zeros(shape, bool)
    for box in cleaned.boxes:
        masked[box.top : box.bottom, box.left : box.right] = True
    assert lines
    assert np.array_equal(before[~masked], after[~masked])
    assert set(np.unique(after[masked])) == {before.min()}


def _texts(shape: tuple[int, int], text: str, at: tuple[int, int], *, upright: bool = False) -> Array:
    """Return a picture of one line, of letters 20 pixels high; upright: read from bottom to top."""
    picture = np.zeros(shape, np.uint8)
    letters = np.round(burnt_text.letters(text, burnt_text.OUR_OWN, 20) * 255).astype(np.uint8)
    letters = np.rot90(letters) if upright else letters
    picture[at[0] : at[0] + letters.shape[0], at[1] : at[1] + letters.shape[1]] = letters
    return picture


def _multi_frame(frames: Sequence[Array]) -> bytes:
    ds = ct(rows=frames[0].shape[0], columns=frames[0].shape[1])
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.NumberOfFrames = len(frames)
    ds.PixelData = np.stack(frames).tobytes()
    return encode(ds)


def _shaded(number: int) -> Array:
    down, across = np.mgrid[0:160, 0:320]
    waves: Array = 60 + 50 * np.sin((across + 40 * number) / 37) * np.cos(down / 29)
    return waves.astype(np.uint8)


def test_text_in_a_single_frame_is_masked_in_that_frame() -> None:
    frames = [_shaded(number) for number in range(4)]
    frames[2] = np.maximum(frames[2], _texts((160, 320), "SMITH 1948-02-11", (60, 80)))
    found = _clean(_multi_frame(frames), DETECTION)[0].boxes
    assert any(box.applies_to(2) and box.left < 100 and box.right > 200 for box in found)
    after = _pixels(_clean(_multi_frame(frames), DETECTION)[1])
    assert not (after[2, 60:75, 84:200] > 150).any()


def test_text_that_stands_still_is_masked_in_every_frame() -> None:
    still = _texts((160, 320), "SMITH 1948-02-11", (60, 80))
    found = _clean(_multi_frame([np.maximum(_shaded(n), still) for n in range(3)]), DETECTION)[0].boxes
    assert any(box.frames is None and box.left < 100 and box.right > 200 for box in found)


def test_frames_of_the_same_values_share_their_boxes() -> None:
    plain, written = _shaded(0), np.maximum(_shaded(1), _texts((160, 320), "ID 4711-0815", (60, 80)))
    found = _clean(_multi_frame([plain, written, plain, written]), DETECTION)[0].boxes
    assert {box.frames for box in found} <= {None, (1, 3)}
    assert found


@pytest.mark.parametrize("upright", [False, True], ids=["across", "upright"])
@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
def test_text_is_found_across_upright_and_inverted(*, upright: bool, inverted: bool) -> None:
    picture = np.maximum(_shaded(0), _texts((160, 320), "ROE 12/64", (20, 60), upright=upright))
    ds = dcmread(io.BytesIO(_multi_frame([255 - picture if inverted else picture])))
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    found = _clean(encode(ds), DETECTION)[0].boxes
    place = Box(62, 26, 72, 100) if upright else Box(66, 24, 140, 34)
    assert burnt_text.covered(place, list(found), (160, 320)) > 0.9


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sources", "header"),
    [
        ("US1_UNCR.dcm", {"table"}, False),
        ("OBXXXX1A_rle_2frame.dcm", {"table", "header"}, True),
        ("gdcm-US-ALOKA-16_big.dcm", {"table", "header"}, True),
        ("US-YBR_FULL_422-EVRLE.dcm", {"header"}, True),
        ("examples_ybr_color.dcm", set(), False),
    ],
)
def test_boxes_say_where_they_come_from(name: str, sources: set[str], header: bool) -> None:
    content = burnt_text.path_of(name).read_bytes()
    cleaned, written = _clean(content, PixelOptions(detect_text=False))
    assert {box.source for box in cleaned.boxes} == sources
    assert cleaned.header_regions is header
    assert not cleaned.searched
    for box in cleaned.boxes:
        part = _pixels(written)[..., box.top : box.bottom, box.left : box.right]
        assert part.size


def test_without_anything_to_look_for_no_byte_changes() -> None:
    content = encode(ct())
    file = part10.read(content)
    cleaned = _clean(content, NOTHING)[0]
    assert cleaned.boxes == ()
    assert cleaned.elements == pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)


def test_an_instance_without_an_image_has_no_boxes() -> None:
    ds = ct()
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    cleaned = _clean(encode(ds), PixelOptions())[0]
    assert (cleaned.elements, cleaned.boxes, cleaned.searched) == ({}, (), False)


def test_pixel_data_that_does_not_fit_its_description_stops_the_instance() -> None:
    ds = ct()
    ds.PixelData = ds.PixelData[:-2]
    with pytest.raises(StopError) as stopped:
        _clean(encode(ds), PixelOptions())
    assert stopped.value.code == "pixel_data_mismatch"


def test_neither_opencv_nor_onnxruntime_is_imported_before_a_picture_is_searched() -> None:
    program = "import sys, anonymizer.engine, anonymizer.burnt_in; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"cv2", "onnxruntime", "rapidocr_onnxruntime", "shapely"} & set(done.stdout.split())


def test_opencv_is_there_once_and_needs_no_display() -> None:
    names = {str(found.metadata["Name"]).lower() for found in distributions()}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}
