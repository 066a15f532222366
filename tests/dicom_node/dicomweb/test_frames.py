"""Frames over WADO-RS: as stored, decoded, compressed on the way, and as pictures."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from PIL import Image as Pillow
from pydicom.encaps import get_frame

from dicom_node.dicomweb import frames
from dicom_node.transcoding import JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS, transcode
from tests.dicom_node.dicomweb.server import frame, served
from tests.dicom_node.dicomweb.test_wado import Shelf, get, parts
from tests.dicom_node.support import ct, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

OCTETS = 'multipart/related; type="application/octet-stream"'
FRAMES, SIDE = 5, 32


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A multi-frame instance, uncompressed and in RLE."""
    shelf = Shelf(tmp_path)
    pixels = np.random.default_rng(4).integers(0, 4096, (FRAMES, SIDE, SIDE), dtype=np.uint16)
    for number, syntax in enumerate(("1.2.840.10008.1.2.1", RLE_LOSSLESS)):
        ds = ct(
            size=SIDE, StudyInstanceUID="1.2.3", SeriesInstanceUID=f"1.2.3.{number}", NumberOfFrames=FRAMES
        )
        ds.SOPInstanceUID, ds.PixelData = f"1.2.3.{number}.1", pixels.tobytes()
        ds.WindowCenter, ds.WindowWidth = 2048, 4096
        plain = save(ds, tmp_path / f"plain{number}.dcm")
        transcode(plain, tmp_path / f"{number}.dcm", syntax)
        shelf.add(tmp_path / f"{number}.dcm")
    return shelf


@pytest.fixture
def url(shelf: Shelf) -> Iterator[str]:
    failures: list[Exception] = []
    surroundings = frame(failures)
    object.__setattr__(surroundings, "catalogue", shelf)
    app = FastAPI()
    app.include_router(frames.router(surroundings, lambda *_: None))
    with served(app) as address:
        yield address
    assert failures == []


def ask(url: str, number: int, rest: str, accept: str) -> httpx.Response:
    return get(url, f"/studies/1.2.3/series/1.2.3.{number}/instances/1.2.3.{number}.1{rest}", accept)


def pixels(shelf: Shelf) -> list[bytes]:
    array = pydicom.dcmread(shelf.held[0].path).pixel_array
    return [one.tobytes() for one in array]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("listed", ["1", "5,1,3"])
def test_frames_are_decoded_by_default(url: str, shelf: Shelf, number: int, listed: str) -> None:
    expected = [pixels(shelf)[int(one) - 1] for one in listed.split(",")]
    for accept in (OCTETS, "*/*", f"{OCTETS}; transfer-syntax=1.2.840.10008.1.2.1"):
        got = parts(ask(url, number, f"/frames/{listed}", accept))
        assert [content for _, content in got] == expected
        assert {kind for kind, _ in got} == {"application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"}


def test_frames_come_as_they_are_stored(url: str, shelf: Shelf) -> None:
    ds = pydicom.dcmread(shelf.held[1].path)
    expected = [get_frame(ds.PixelData, index, number_of_frames=FRAMES) for index in (1, 3)]
    for accept in (f"{OCTETS}; transfer-syntax=*", 'multipart/related; type="image/dicom-rle"'):
        got = parts(ask(url, 1, "/frames/2,4", accept))
        assert got == [(f"image/dicom-rle; transfer-syntax={RLE_LOSSLESS}", content) for content in expected]
    alone = ask(url, 1, "/frames/2", "image/dicom-rle")
    assert alone.content == expected[0]


@pytest.mark.parametrize(
    ("kind", "syntax"), [("image/jls", JPEG_LS_LOSSLESS), ("image/jp2", JPEG_2000_LOSSLESS)]
)
def test_frames_are_compressed_without_loss_for_who_asks(
    url: str, shelf: Shelf, tmp_path: Path, kind: str, syntax: str
) -> None:
    ((said, content),) = parts(ask(url, 0, "/frames/2", f'multipart/related; type="{kind}"'))
    assert said == f"{kind}; transfer-syntax={syntax}"
    transcode(shelf.held[0].path, tmp_path / "expected.dcm", syntax)
    ds = pydicom.dcmread(tmp_path / "expected.dcm")
    assert content == get_frame(ds.PixelData, 1, number_of_frames=FRAMES)
    assert np.array_equal(ds.pixel_array, pydicom.dcmread(shelf.held[0].path).pixel_array)


@pytest.mark.parametrize(
    ("rest", "accept", "status"),
    [
        ("/frames/6", "*/*", 404),
        ("/frames/0", "*/*", 400),
        ("/frames/-1", "*/*", 400),
        ("/frames/1,,2", "*/*", 400),
        ("/frames/1e3", "*/*", 400),
        (f"/frames/{'1,' * 20000}1", "*/*", 400),
        ("/frames/1", "image/jpeg", 406),
        ("/frames/1,2", "application/octet-stream", 406),
        ("/frames/1", "text/plain", 406),
        ("/rendered?window=1", "*/*", 400),
        ("/rendered?window=1,0", "*/*", 400),
        ("/rendered?window=nan,10", "*/*", 400),
        ("/rendered?viewport=0,10", "*/*", 400),
        ("/rendered?viewport=99999999999999,10", "*/*", 400),
        ("/rendered?quality=0", "*/*", 400),
        ("/rendered", "image/gif", 406),
        ("/frames/1,2/rendered", "*/*", 400),
    ],
)
def test_what_cannot_be_meant_or_given_is_refused(url: str, rest: str, accept: str, status: int) -> None:
    assert ask(url, 0, rest, accept).status_code == status


@pytest.mark.parametrize("number", [0, 1])
def test_a_picture_shows_the_frame_through_its_window(url: str, shelf: Shelf, number: int) -> None:
    answer = ask(url, number, "/frames/2/rendered", "image/png")
    assert answer.headers["content-type"] == "image/png"
    shown = np.asarray(Pillow.open(BytesIO(answer.content)))
    values = pydicom.dcmread(shelf.held[0].path).pixel_array[1]
    assert np.abs(shown.astype(int) - np.rint(values / 4095 * 255)).max() <= 1


def test_a_window_and_a_viewport_of_the_asker_count(url: str) -> None:
    answer = ask(url, 0, "/rendered?window=100,2&viewport=64,16", "image/png")
    picture = Pillow.open(BytesIO(answer.content))
    assert picture.size == (16, 16)
    answer = ask(url, 0, "/frames/1/rendered?window=100,2", "image/png")
    shown = np.asarray(Pillow.open(BytesIO(answer.content)))
    assert (shown > 250).mean() > 0.9


def test_thumbnails_are_small_at_every_level(url: str) -> None:
    for path in ("", "/series/1.2.3.1", "/series/1.2.3.0/instances/1.2.3.0.1"):
        answer = get(url, f"/studies/1.2.3{path}/thumbnail", "*/*")
        assert answer.headers["content-type"] == "image/jpeg"
        assert max(Pillow.open(BytesIO(answer.content)).size) == 128


def test_inverted_grey_is_shown_upright(url: str, shelf: Shelf, tmp_path: Path) -> None:
    values = np.tile(np.arange(SIDE, dtype=np.uint16) * 100, (SIDE, 1))
    for number, kind in enumerate(("MONOCHROME1", "MONOCHROME2")):
        ds = ct(size=SIDE, StudyInstanceUID="1.2.5", SeriesInstanceUID=f"1.2.5.{number}")
        ds.PhotometricInterpretation, ds.PixelData = kind, values.tobytes()
        shelf.add(save(ds, tmp_path / f"{kind}.dcm"))
    shown = []
    for number in range(2):
        answer = get(url, f"/studies/1.2.5/series/1.2.5.{number}/rendered", "image/png")
        shown.append(np.asarray(Pillow.open(BytesIO(answer.content))).astype(int))
    assert np.array_equal(shown[0], 255 - shown[1])
    assert shown[1][0, -1] > shown[1][0, 0]
