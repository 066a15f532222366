from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dicom_node import query_scu, scu
from dicom_node.archive import ArchiveError
from dicom_node.arriving import Arrivals
from dicom_node.dicomweb.http import WebDestination
from dicom_node.dicomweb.retrieve_client import PAGE, find, inventory, retrieve
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller
from dicom_node.query import Level, Query
from dicom_node.retrieve_scu import get
from tests.dicom_node.archives import fill
from tests.dicom_node.dicomweb.web_archive import (
    MULTIPART,
    answer_of,
    as_json,
    multipart,
    orthanc_web_archive,
    web_server,
)
from tests.dicom_node.support import ct, free_port, save
from tests.dicom_node.test_retrieve_scu import STUDY, Patience, held, sent, study
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

CALLER = Caller("WEBPACS", "CLOISTER", "127.0.0.1")


def pull(archive: WebDestination, inbox: Inbox, series: str = "", **more: Any) -> Any:
    return retrieve(archive, STUDY, series, more.pop("watch", Patience()), inbox, CALLER, **more)


@pytest.mark.orthanc
def test_a_real_archive_is_searched_and_gives_its_studies_byte_for_byte(inbox: Inbox, tmp_path: Path) -> None:
    paths = study(tmp_path)
    umlaut = {"PatientID": "P2", "PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"}
    other = save(ct({**umlaut, "StudyInstanceUID": "1.2.3"}), tmp_path / "other.dcm")
    with orthanc_web_archive(tmp_path) as (_, archive, filled):
        fill(filled, [*paths, other])
        everything = find(archive, Query(Level.STUDY, {}))
        assert {one["StudyInstanceUID"] for one in everything.found} == {STUDY, "1.2.3"}
        named = find(archive, Query(Level.STUDY, {"PatientID": "P2"}))
        assert [one["PatientName"] for one in named.found] == ["Müller^Jörg"]
        (one,) = find(archive, Query(Level.STUDY, {"PatientID": "4711"})).found
        assert (one["NumberOfStudyRelatedInstances"], one["ModalitiesInStudy"]) == ("5", "CT")
        series = find(archive, Query(Level.SERIES, {"StudyInstanceUID": STUDY})).found
        assert {row["SeriesInstanceUID"] for row in series} == {f"{STUDY}.0", f"{STUDY}.1"}
        assert len(inventory(archive, STUDY)) == 5
        assert not find(archive, Query(Level.STUDY, {}, limit=1)).complete
        assert pull(archive, inbox, f"{STUDY}.1").stored == 2
        for entry in inbox.entries(9):
            inbox.remove(entry)
        done = pull(archive, inbox)
    assert (done.stored, done.refused, done.cancelled) == (5, {}, False)
    assert held(inbox) == sent(paths)
    assert {entry.calling_ae_title for entry in inbox.entries(9)} == {"WEBPACS"}


@pytest.mark.orthanc
@pytest.mark.real_data
def test_vendors_files_of_many_encodings_come_as_they_are_stored(tmp_path: Path) -> None:
    folder = shared_data_dir() / "dicom" / "pydicom" / "src" / "pydicom" / "data" / "test_files"
    names = (
        *("JPEG2000.dcm", "JPEG-lossy.dcm", "SC_rgb_rle.dcm", "CT_small.dcm", "MR_small_bigendian.dcm"),
        *("MR_small_implicit.dcm", "693_J2KR.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_ybr_color.dcm"),
    )
    paths = [folder / name for name in names if (folder / name).is_file()]
    by_get, by_web = (Inbox(tmp_path / name, min_free_bytes=1) for name in ("get", "web"))
    expected: dict[str, bytes] = {}
    with orthanc_web_archive(tmp_path) as (orthanc, archive, filled):
        scu.store(paths, filled, "FILLER")
        for number, instance in enumerate(orthanc.instances()):  # it encodes some of them anew
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(orthanc.file(instance))
            expected.update(sent([path]))
        studies = [one["StudyInstanceUID"] for one in find(archive, Query(Level.STUDY, {})).found]
        for uid in studies:
            retrieve(archive, uid, "", Patience(), by_web, CALLER)
            classes = sorted({one.sop_class_uid for one in query_scu.inventory(filled, "CLOISTER", uid)})
            arriving = Arrivals(by_get, CALLER, uid)
            keys = {"StudyInstanceUID": uid}
            get(filled, "CLOISTER", keys, Patience(), arriving, sop_classes=[one for one in classes if one])
    assert len(expected) >= 5
    assert held(by_web) == expected
    kept = [
        {one.sop_instance_uid: one.transfer_syntax_uid for one in box.entries(99)} for box in (by_get, by_web)
    ]
    assert kept[0] == kept[1]  # Orthanc encodes anew what it sends by C-GET, in the same transfer syntax
    assert len(set(kept[0].values())) >= 4


def test_pages_are_turned_until_nothing_new_comes() -> None:
    rows = [answer_of(StudyInstanceUID=f"1.2.{number}") for number in range(PAGE + 20)]
    asked: list[int] = []

    def paged(_: str, parameters: dict[str, str]) -> tuple[int, str, bytes]:
        offset = int(parameters["offset"])
        asked.append(offset)
        return as_json(rows[offset : offset + PAGE])

    with web_server(paged) as archive:
        assert len(find(archive, Query(Level.STUDY, {})).found) == PAGE + 20
    assert asked == [0, PAGE]
    with web_server(lambda *_: as_json(rows[:PAGE])) as archive:
        assert len(find(archive, Query(Level.STUDY, {})).found) == PAGE


def test_what_contradicts_the_question_is_dropped() -> None:
    rows = [
        answer_of(StudyInstanceUID="1.2.1", PatientID="P1"),
        answer_of(StudyInstanceUID="1.2.2", PatientID="P2"),
        answer_of(PatientID="P1"),
        {"0020000D": "1.2.3"},
    ]
    with web_server(lambda *_: as_json(rows)) as archive:
        answers = find(archive, Query(Level.STUDY, {"PatientID": "P1"}))
    assert [one["StudyInstanceUID"] for one in answers.found] == ["1.2.1"]
    assert answers.dropped == 3


@pytest.mark.parametrize(
    ("reply", "words", "retryable"),
    [
        ((200, "text/html", b"<html>"), "no JSON", False),
        ((200, "application/dicom+json", b"[" * 100_000), "no JSON", True),
        ((200, "application/dicom+json", b"{}"), "no list", False),
        ((302, "text/plain", b""), "status 302", False),
        ((401, "text/plain", b""), "credential", False),
        ((404, "text/plain", b""), "no such service", False),
        ((500, "text/plain", b""), "status 500", True),
        ((503, "text/plain", b""), "busy", True),
    ],
)
def test_a_search_that_fails_says_why(reply: tuple[int, str, bytes], words: str, retryable: bool) -> None:
    with web_server(lambda *_: reply) as archive, pytest.raises(ArchiveError, match=words) as error:
        find(archive, Query(Level.STUDY, {"PatientID": "P1"}))
    assert error.value.retryable is retryable


def test_an_archive_that_is_away_may_come_back() -> None:
    archive = WebDestination(f"http://127.0.0.1:{free_port()}/web", timeout_s=1)
    with pytest.raises(ArchiveError, match="connect: no connection") as error:
        find(archive, Query(Level.STUDY, {"PatientID": "P1"}))
    assert error.value.retryable


def test_instances_of_another_study_are_not_stored(inbox: Inbox, tmp_path: Path) -> None:
    paths = study(tmp_path, 2)
    stranger = save(ct(StudyInstanceUID="1.2.3"), tmp_path / "stranger.dcm")
    body = multipart([path.read_bytes() for path in (*paths, stranger)])
    with web_server(lambda *_: (200, MULTIPART, body)) as archive:
        done = pull(archive, inbox)
    assert (done.stored, done.refused) == (2, {"other study": 1})
    assert held(inbox) == sent(paths)


def test_a_message_that_is_cut_off_is_an_error_and_what_was_whole_stays(inbox: Inbox, tmp_path: Path) -> None:
    paths = study(tmp_path, 3)
    body = multipart([path.read_bytes() for path in paths], closed=False)[:-200]
    with (
        web_server(lambda *_: (200, MULTIPART, body)) as archive,
        pytest.raises(ArchiveError, match="retrieve: multipart") as error,
    ):
        pull(archive, inbox)
    assert error.value.retryable
    assert len(held(inbox)) == 2
    assert not list(inbox.incoming.glob("*.dcm"))


@pytest.mark.parametrize(
    ("reply", "words", "retryable"),
    [
        ((200, "application/json", b"[]"), "no plain multipart", False),
        ((200, "multipart/related; boundary=", b""), "boundary", False),
        ((404, "text/plain", b""), "nothing of this", True),
        ((406, "text/plain", b""), "as they are stored", False),
    ],
)
def test_a_retrieval_that_fails_says_why(
    inbox: Inbox, reply: tuple[int, str, bytes], words: str, retryable: bool
) -> None:
    with web_server(lambda *_: reply) as archive, pytest.raises(ArchiveError, match=words) as error:
        pull(archive, inbox)
    assert error.value.retryable is retryable
    assert held(inbox) == {}


def test_a_retrieval_is_slowed_down_and_taken_back(inbox: Inbox, tmp_path: Path) -> None:
    paths = [save(ct({"StudyInstanceUID": STUDY}, size=512), tmp_path / f"{n}.dcm") for n in range(12)]
    body = multipart([path.read_bytes() for path in paths])
    with web_server(lambda *_: (200, MULTIPART, body)) as archive:
        done = pull(archive, inbox, watch=Patience(1), max_kib_per_s=1000)
    assert done.cancelled
    assert 1 <= done.stored < 12
    assert not list(inbox.incoming.glob("*.dcm"))
