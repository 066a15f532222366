"""WADO-RS over real files: instances, metadata, bulk data."""

from __future__ import annotations

import json
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pydicom
import pytest
from fastapi import FastAPI

from dicom_node import part10
from dicom_node.dicomweb import wado
from dicom_node.query import StoredInstance
from dicom_node.transcoding import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
    transcode,
)
from tests.dicom_node.dicomweb.server import EmptyCatalogue, frame, served
from tests.dicom_node.support import ct, save

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LOSSY = "1.2.840.10008.1.2.4.50"
MULTIPART = 'multipart/related; type="application/dicom"'


class Shelf(EmptyCatalogue):
    """A catalogue of files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: list[StoredInstance] = []

    def add(self, path: Path) -> StoredInstance:
        """Hold a file."""
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        one = StoredInstance(
            id=path.stem,
            path=path,
            study_instance_uid=str(ds.StudyInstanceUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            sop_instance_uid=str(ds.SOPInstanceUID),
            sop_class_uid=str(ds.SOPClassUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            size_bytes=path.stat().st_size,
            number_of_frames=ds.get("NumberOfFrames"),
        )
        self.held.append(one)
        return one

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        return [
            one
            for one in self.held
            if one.study_instance_uid == study_uid
            and series_uid in {"", one.series_instance_uid}
            and sop_uid in {"", one.sop_instance_uid}
        ]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A study of three instances in two series: explicit, implicit and JPEG-LS."""
    shelf = Shelf(tmp_path)
    for number, syntax in enumerate((EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, JPEG_LS_LOSSLESS)):
        ds = ct(size=64, StudyInstanceUID="1.2.3", SeriesInstanceUID=f"1.2.3.{number // 2}")
        ds.PatientName, ds.SpecificCharacterSet = "Müller^Jörg", "ISO_IR 100"
        plain = save(ds, tmp_path / f"plain{number}.dcm")
        transcode(plain, tmp_path / f"{number}.dcm", syntax)
        shelf.add(tmp_path / f"{number}.dcm")
    return shelf


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def url(shelf: Shelf, told: list[int]) -> Iterator[str]:
    failures: list[Exception] = []
    surroundings = frame(failures)
    object.__setattr__(surroundings, "catalogue", shelf)
    app = FastAPI()
    app.include_router(wado.router(surroundings, lambda _, instances: told.append(len(instances))))
    with served(app) as address:
        yield address
    assert failures == []


def get(url: str, path: str, accept: str = f"{MULTIPART}; transfer-syntax=*") -> httpx.Response:
    return httpx.get(f"{url}{path}", headers={"accept": accept}, timeout=30)


def parts(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Read a multipart message with a parser that is not ours."""
    assert answer.status_code == 200, answer.text
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + answer.content)
    found = [(str(part["content-type"]), part.get_payload(decode=True)) for part in message.iter_parts()]
    return [(kind.replace('"', ""), content) for kind, content in found if isinstance(content, bytes)]


def data_set(content: bytes) -> bytes:
    return content[part10.decode(content[: part10.MAX_META_BYTES]).data_offset :]


@pytest.mark.parametrize(("path", "count"), [("", 3), ("/series/1.2.3.0", 2), ("/series/1.2.3.1", 1)])
def test_instances_come_back_as_they_are_stored(
    url: str, shelf: Shelf, told: list[int], path: str, count: int
) -> None:
    got = parts(get(url, f"/studies/1.2.3{path}"))
    held = {one.sop_instance_uid: one for one in shelf.held}
    assert len(got) == count
    assert told == [count]
    for kind, content in got:
        ds = pydicom.dcmread(BytesIO(content))
        one = held[ds.SOPInstanceUID]
        assert kind == f"application/dicom; transfer-syntax={one.transfer_syntax_uid}"
        assert data_set(content) == data_set(one.path.read_bytes())
        assert "PrivateInformation" not in ds.file_meta
        assert "SourceApplicationEntityTitle" not in ds.file_meta


@pytest.mark.parametrize(
    ("accept", "syntaxes"),
    [
        (MULTIPART, [EXPLICIT_VR_LITTLE_ENDIAN] * 3),
        ("*/*", [EXPLICIT_VR_LITTLE_ENDIAN] * 3),
        (f"{MULTIPART}; transfer-syntax={RLE_LOSSLESS}", [RLE_LOSSLESS] * 3),
        (
            f"{MULTIPART}; transfer-syntax=1.2.840.10008.1.2.4.50, {MULTIPART};q=0.1",
            [EXPLICIT_VR_LITTLE_ENDIAN] * 3,
        ),
        ("application/dicom", None),
        (f"{MULTIPART}; transfer-syntax={LOSSY}", None),
        ("image/jpeg", None),
        ("multipart/related; type=text/html", None),
    ],
)
def test_the_transfer_syntax_is_what_is_accepted(
    url: str, shelf: Shelf, accept: str, syntaxes: list[str] | None
) -> None:
    answer = get(url, "/studies/1.2.3", accept)
    if syntaxes is None:
        assert answer.status_code == 406
        return
    read = [pydicom.dcmread(BytesIO(content)) for _, content in parts(answer)]
    assert [str(ds.file_meta.TransferSyntaxUID) for ds in read] == syntaxes
    for ds, one in zip(read, shelf.held, strict=True):
        assert np.array_equal(ds.pixel_array, pydicom.dcmread(one.path).pixel_array)


def test_one_instance_may_come_alone(url: str, shelf: Shelf) -> None:
    one = shelf.held[1]
    path = f"/studies/1.2.3/series/1.2.3.0/instances/{one.sop_instance_uid}"
    answer = get(url, path, "application/dicom; transfer-syntax=*")
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={IMPLICIT_VR_LITTLE_ENDIAN}"
    assert data_set(answer.content) == data_set(one.path.read_bytes())


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/studies/1.2.4", "*/*", 404),
        ("/studies/1.2.3/series/1.2.9", "*/*", 404),
        ("/studies/1.2.x", "*/*", 400),
        ("/studies/1.2.3/metadata", "text/html", 406),
        ("/studies/1.2.3", f"{MULTIPART}; transfer-syntax=zz", 400),
        ("/studies/1.2.3", ",;=", 200),
        ("/studies/1.2.3", "x/y;" * 2000, 406),
    ],
)
def test_what_cannot_be_meant_or_given_is_refused(url: str, path: str, accept: str, status: int) -> None:
    assert get(url, path, accept).status_code == status


def test_metadata_names_every_attribute_and_where_large_values_are(url: str, shelf: Shelf) -> None:
    answer = get(url, "/studies/1.2.3/metadata", "application/dicom+json")
    described = {one["00080018"]["Value"][0]: one for one in answer.json()}
    assert sorted(described) == sorted(one.sop_instance_uid for one in shelf.held)
    for one in shelf.held:
        attributes = described[one.sop_instance_uid]
        assert attributes["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
        assert attributes["00080005"]["Value"] == ["ISO_IR 192"]
        ds = pydicom.dcmread(one.path)
        assert set(attributes) == {f"{element.tag:08X}" for element in ds}
        place = attributes["7FE00010"]["BulkDataURI"]
        got = get(place, "", "application/octet-stream")
        assert got.content == ds.PixelData
        assert parts(get(place, "", "multipart/related; type=application/octet-stream"))[0][1] == ds.PixelData


@pytest.mark.parametrize(
    "place", ["7FE00011", "00100010", "x", "00100010/1", "7FE00010/0/00100010", "/" * 80]
)
def test_a_place_without_a_binary_value_is_not_found(url: str, shelf: Shelf, place: str) -> None:
    one = shelf.held[0]
    path = f"/studies/1.2.3/series/1.2.3.0/instances/{one.sop_instance_uid}/bulkdata/{place}"
    assert get(url, path, "*/*").status_code == 404


def test_an_attribute_that_is_not_of_its_vr_is_there_without_a_value(url: str, shelf: Shelf) -> None:
    ds: Any = ct(size=4, StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.8.1")
    ds.add_new(0x00200013, "IS", "")
    path = save(ds, shelf.folder / "odd.dcm")
    content = path.read_bytes().replace(b"\x20\x00\x13\x00IS\x00\x00", b"\x20\x00\x13\x00IS\x02\x00\xff\xfe")
    path.write_bytes(content)
    shelf.add(path)
    (described,) = json.loads(get(url, "/studies/1.2.8/metadata", "application/json").content)
    assert described["00200013"] == {"vr": "IS"} or "Value" not in described["00200013"]
    assert described["00100020"]["Value"] == ["4711"]


def test_a_file_that_is_damaged_fails_before_the_answer_begins(url: str, shelf: Shelf) -> None:
    one = shelf.held[2]
    one.path.write_bytes(one.path.read_bytes()[:900])
    assert get(url, "/studies/1.2.3/series/1.2.3.1", MULTIPART).status_code == 406
