from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from dicom_node.archive import ArchiveError
from dicom_node.query import Level, Query, QueryError
from dicom_node.query_scu import find, inventory
from dicom_node.scu import Destination
from tests.dicom_node.archives import fill, odd_archive, orthanc_archive, running_dcmqrscp
from tests.dicom_node.scripted import scripted_acceptor
from tests.dicom_node.support import ct, free_port, pdu, pdv, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    one = {"PatientID": "P1", "StudyInstanceUID": "1.2.1", "StudyDate": "20240105"}
    two = {"PatientID": "P1", "StudyInstanceUID": "1.2.2", "StudyDate": "20250105", "Modality": "MR"}
    umlaut = {"PatientID": "P2", "PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"}
    sets = [
        ct({**one, "SeriesInstanceUID": "1.2.1.1", "SOPInstanceUID": "1.2.1.1.1"}),
        ct({**one, "SeriesInstanceUID": "1.2.1.1", "SOPInstanceUID": "1.2.1.1.2"}),
        ct({**one, "SeriesInstanceUID": "1.2.1.2", "SOPInstanceUID": "1.2.1.2.1"}),
        ct({**two, "SeriesInstanceUID": "1.2.2.1", "SOPInstanceUID": "1.2.2.1.1"}),
        ct({**umlaut, "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1"}),
    ]
    return [save(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(sets)]


@pytest.fixture(
    params=[
        pytest.param("dcmqrscp", marks=pytest.mark.dcmtk),
        pytest.param("orthanc", marks=pytest.mark.orthanc),
    ]
)
def archive(request: pytest.FixtureRequest, tmp_path: Path, files: list[Path]) -> Iterator[Destination]:
    if request.param == "dcmqrscp":
        with running_dcmqrscp(tmp_path) as destination:
            fill(destination, files)
            yield destination
        return
    with orthanc_archive(tmp_path) as (_, destination):
        fill(destination, files)
        yield destination


def studies(archive: Destination, limit: int = 0, **match: str) -> list[str]:
    answers = find(archive, "CLOISTER", Query(Level.STUDY, match, limit=limit), silence_s=10)
    return sorted(found["StudyInstanceUID"] for found in answers.found)


def test_studies_series_and_instances_of_a_real_archive_are_found(archive: Destination) -> None:
    assert studies(archive, PatientID="P1") == ["1.2.1", "1.2.2"]
    assert studies(archive, PatientID="P1", StudyDate="20250101-") == ["1.2.2"]
    assert studies(archive, PatientID="nobody") == []
    series = find(archive, "CLOISTER", Query(Level.SERIES, {"StudyInstanceUID": "1.2.1"}))
    assert sorted(found["SeriesInstanceUID"] for found in series.found) == ["1.2.1.1", "1.2.1.2"]
    keys = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1"}
    instances = find(archive, "CLOISTER", Query(Level.IMAGE, keys))
    assert sorted(found["SOPInstanceUID"] for found in instances.found) == ["1.2.1.1.1", "1.2.1.1.2"]


def test_the_inventory_of_a_study_names_every_instance(archive: Destination) -> None:
    listed = inventory(archive, "CLOISTER", "1.2.1")
    assert sorted((one.series_instance_uid, one.sop_instance_uid) for one in listed) == [
        ("1.2.1.1", "1.2.1.1.1"),
        ("1.2.1.1", "1.2.1.1.2"),
        ("1.2.1.2", "1.2.1.2.1"),
    ]
    assert {one.sop_class_uid for one in listed} <= {str(CTImageStorage), ""}
    assert inventory(archive, "CLOISTER", "1.2.99") == ()


def test_names_outside_ascii_are_asked_for_and_read(archive: Destination) -> None:
    answers = find(archive, "CLOISTER", Query(Level.STUDY, {"PatientName": "Müller*"}))
    assert [found["PatientName"] for found in answers.found] == ["Müller^Jörg"]


def test_what_exceeds_the_limit_is_left_and_said(archive: Destination) -> None:
    answers = find(archive, "CLOISTER", Query(Level.STUDY, {}, limit=2))
    assert (len(answers.found), answers.complete) == (2, False)
    assert find(archive, "CLOISTER", Query(Level.STUDY, {}, limit=3)).complete


def test_a_key_that_means_nothing_is_refused_before_anything_is_sent() -> None:
    nowhere = Destination("NOBODY", "127.0.0.1", free_port(), timeout_s=1)
    with pytest.raises(QueryError, match="RequestedProcedureID"):
        find(nowhere, "CLOISTER", Query(Level.STUDY, {"RequestedProcedureID": "1"}))
    with pytest.raises(ArchiveError, match="connect") as error:
        find(nowhere, "CLOISTER", Query(Level.STUDY, {"PatientID": "P1"}))
    assert (error.value.step, error.value.retryable) == ("connect", True)


def answer(**values: str) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_an_archive_that_overlooks_the_patient_gives_us_nobody_elses_studies() -> None:
    def everybody(_: Any) -> Iterator[tuple[int, Dataset]]:
        yield 0xFF00, answer(StudyInstanceUID="1.2.1", PatientID="P1")
        yield 0xFF00, answer(StudyInstanceUID="1.2.2", PatientID="P2")
        yield 0xFF00, answer(StudyInstanceUID="1.2.3")
        yield 0xFF00, answer(StudyInstanceUID="", PatientID="P1")

    with odd_archive(find=everybody) as archive:
        answers = find(archive, "CLOISTER", Query(Level.STUDY, {"PatientID": "P1"}))
    assert [found["StudyInstanceUID"] for found in answers.found] == ["1.2.1"]
    assert (answers.dropped, answers.complete) == (3, True)


def test_an_archive_that_overlooks_dates_and_modalities_gives_no_more_than_was_asked_for() -> None:
    def everything(_: Any) -> Iterator[tuple[int, Dataset]]:
        for number, (date, modalities) in enumerate(
            (("20240105", "CT"), ("20230105", "CT"), ("20240106", "MR"), ("", ""), ("20240131", "CT\\SR"))
        ):
            found = answer(StudyInstanceUID=f"1.2.{number}", StudyDate=date)
            found.ModalitiesInStudy = modalities
            yield 0xFF00, found

    match = {"StudyDate": "20240101-20240131", "ModalitiesInStudy": "CT\\PT"}
    with odd_archive(find=everything) as archive:
        answers = find(archive, "CLOISTER", Query(Level.STUDY, match))
    assert [found["StudyInstanceUID"] for found in answers.found] == ["1.2.0", "1.2.3", "1.2.4"]
    assert answers.dropped == 2


@pytest.mark.parametrize(
    ("status", "retryable"), [(0xA700, True), (0xA900, False), (0x0124, False), (0xC123, True)]
)
def test_a_refusal_says_whether_another_try_may_help(status: int, retryable: bool) -> None:
    with odd_archive(find=lambda _: iter([(status, None)])) as archive:
        with pytest.raises(ArchiveError, match=f"query: status 0x{status:04X}") as error:
            find(archive, "CLOISTER", Query(Level.STUDY, {"PatientID": "P1"}))
        assert error.value.retryable is retryable


def test_an_archive_that_never_stops_answering_is_stopped() -> None:
    stopped: list[bool] = []

    def endless(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        number = 0
        while not event.is_cancelled:
            number += 1
            yield 0xFF00, answer(StudyInstanceUID=f"1.2.{number}")
        stopped.append(True)
        yield 0xFE00, None

    with odd_archive(find=endless) as archive:
        answers = find(archive, "CLOISTER", Query(Level.STUDY, {}, limit=50))
        assert (len(answers.found), answers.complete) == (50, False)
        wait_until(lambda: stopped, "the archive has heard the cancel")


def test_an_archive_that_ends_in_the_midst_or_is_silent_is_an_error_that_may_pass() -> None:
    def leaves(event: Any) -> Iterator[tuple[int, Dataset]]:
        yield 0xFF00, answer(StudyInstanceUID="1.2.1")
        event.assoc.abort()

    def sleeps(event: Any) -> Iterator[tuple[int, None]]:
        while event.assoc.is_established:
            time.sleep(0.05)
        yield 0, None

    with odd_archive(find=leaves) as archive, pytest.raises(ArchiveError, match="ended") as error:
        find(archive, "CLOISTER", Query(Level.STUDY, {}))
    assert error.value.retryable
    with odd_archive(find=sleeps) as archive, pytest.raises(ArchiveError, match="no answer for 1 s"):
        find(archive, "CLOISTER", Query(Level.STUDY, {}), silence_s=1)


@pytest.mark.parametrize(
    "sent",
    [
        pdu(0x04, b"\xff\xff\xff\xff\x01\x03"),
        b"\x04\x00\xff\xff\xff\xff" + pdv(1, 0x00, b"x"),
        b"\x07\x00\xff\xff\xff\xff",
        b"\x63\x00\x00\x00\x00\x01x",
        pdu(0x04, pdv(1, 0x03, b"no command set at all")),
        pdu(0x04, pdv(7, 0x03, b"")),
        b"",
    ],
)
def test_bytes_that_are_no_answer_end_the_query_soon(sent: bytes) -> None:
    with scripted_acceptor("1.2.840.10008.5.1.4.1.2.2.1", sent) as port:
        archive = Destination("ODD", "127.0.0.1", port, timeout_s=3)
        started = time.monotonic()
        with pytest.raises(ArchiveError, match="query"):
            find(archive, "CLOISTER", Query(Level.STUDY, {}), silence_s=3)
        assert time.monotonic() - started < 12
