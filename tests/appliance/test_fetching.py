from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from appliance import fetching, node
from appliance.archives import FetchError
from appliance.catalogue import DatabaseCatalogue
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import Fetch, Peer
from appliance.facts import gather
from appliance.fetching import Manner, Order, Priors
from dicom_node.scu import Destination
from tests.appliance.fetch_node import add_archive, finish, indexing, load, rows, step, study_files
from tests.dicom_node.archives import fill, odd_archive, orthanc_archive, running_dcmqrscp
from tests.dicom_node.dicomweb.web_archive import orthanc_web_archive
from tests.dicom_node.support import free_port, wait_until
from tests.dicom_node.test_retrieve_scu import data_of
from tests.further import FURTHER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone
    from tests.appliance.dimse_node import Node

AT_ONCE = Manner(at_once=True)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    one = {"PatientID": "P1"}
    return [
        *study_files(tmp_path, "1.2.1", 3, **one, StudyDate="20200101"),
        *study_files(tmp_path, "1.2.2", 2, **one, StudyDate="20230101", Modality="MR"),
        *study_files(tmp_path, "1.2.3", 2, **one, StudyDate="20240101"),
        *study_files(tmp_path, "1.2.4", 1, **one, StudyDate="20250101"),
        *study_files(tmp_path, "1.2.5", 1, PatientID="P2", StudyDate="20240101"),
    ]


NEEDS = {"dcmqrscp": pytest.mark.dcmtk, "orthanc": pytest.mark.orthanc}
ARCHIVES = ["dcmqrscp-get", "dcmqrscp-move", "orthanc-get", "orthanc-move", "orthanc-web"]


def from_archives(*first: str) -> pytest.MarkDecorator:
    """Run a test with each archive and way to fetch; in ``make test`` with the ``first`` ones."""
    return pytest.mark.parametrize(
        "archive",
        [
            pytest.param(name, marks=(NEEDS[name.partition("-")[0]], *(() if name in first else (FURTHER,))))
            for name in ARCHIVES
        ],
        indirect=True,
    )


@pytest.fixture
def archive(
    request: pytest.FixtureRequest, running: Node, tmp_path: Path, files: list[Path]
) -> Iterator[Node]:
    program, _, method = request.param.partition("-")
    if program == "dcmqrscp":
        with running_dcmqrscp(tmp_path, ours_port=running.port) as at, indexing(running.zone):
            fill(at, files)
            add_archive(running.zone, at, may_send=method == "move")
            running.callers.refresh()
            yield running
    elif method == "web":
        with orthanc_web_archive(tmp_path) as (_, web, at), indexing(running.zone):
            fill(at, files)
            add_archive(running.zone, at, ae_title="", protocol="dicomweb", url=web.url)
            yield running
    else:
        with orthanc_archive(tmp_path, ours_port=running.port) as (_, at), indexing(running.zone):
            fill(at, files)
            add_archive(running.zone, at, may_send=method == "move")
            running.callers.refresh()
            yield running


def held(zone: ClinicalZone) -> dict[str, int]:
    with reading(zone.engine) as session:
        return {study.study_instance_uid: study.instance_count for study in session.query(Study)}


def kinds(zone: ClinicalZone) -> list[str]:
    with reading(zone.engine) as session:
        return [entry.kind for entry in session.query(ClinicalLedgerEntry)]


@from_archives(*ARCHIVES)
def test_a_cohort_is_listed_looked_at_and_pulled(archive: Node) -> None:
    zone = archive.zone
    fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}), actor="staff")
    listed = finish(zone, fetch_id)
    assert (listed.state, listed.options["found"]["studies"], listed.options["found"]["here"]) == (
        "listed",
        4,
        0,
    )
    assert held(zone) == {}
    fetching.act(zone, fetch_id, "start", actor="staff")
    done = finish(zone, fetch_id)
    assert (done.state, done.reason) == ("done", None)
    assert [(row.state, row.expected, row.received) for row in rows(zone, fetch_id)] == [
        ("done", 3, 3),
        ("done", 2, 2),
        ("done", 2, 2),
        ("done", 1, 1),
    ]
    assert held(zone) == {"1.2.1": 3, "1.2.2": 2, "1.2.3": 2, "1.2.4": 1}
    entries = kinds(zone)
    assert entries.count("study.fetched") == 4
    assert {"fetch.ordered", "fetch.listed", "fetch.started", "fetch.ended"} <= set(entries)


@from_archives("orthanc-get", "orthanc-web")
def test_what_is_here_whole_is_not_asked_for_again(archive: Node) -> None:
    zone = archive.zone
    match = {"StudyInstanceUID": "1.2.1\\1.2.2"}
    finish(zone, fetching.order(zone, Order("archive", match, AT_ONCE), actor="staff"))
    before = kinds(zone).count("study.fetched")
    again = fetching.order(zone, Order("archive", match, AT_ONCE), actor="staff")
    assert finish(zone, again).state == "done"
    assert [(row.state, row.received, row.attempts) for row in rows(zone, again)] == [
        ("done", 3, 0),
        ("done", 2, 0),
    ]
    assert kinds(zone).count("study.fetched") == before


@from_archives("dcmqrscp-move", "orthanc-web")
def test_the_latest_priors_of_the_patient_are_pulled_and_marked_as_fetched(archive: Node) -> None:
    zone = archive.zone
    alone = {"StudyInstanceUID": "1.2.4"}
    finish(zone, fetching.order(zone, Order("archive", alone, AT_ONCE), actor="staff"))
    with reading(zone.engine) as session:
        study_id = session.query(Study.id).filter_by(study_instance_uid="1.2.4").scalar()
    wanted = Priors(study_id, modalities=("CT",), most=1)
    fetch_id = fetching.order_priors(zone, wanted, "archive", AT_ONCE, actor="staff")
    assert finish(zone, fetch_id).state == "done"
    assert set(held(zone)) == {"1.2.4", "1.2.3"}
    with reading(zone.engine) as session:
        prior_id = session.query(Study.id).filter_by(study_instance_uid="1.2.3").scalar()
        assert gather(session, prior_id, now()).fetched


@from_archives("dcmqrscp-get")
def test_priors_older_than_wanted_stay_where_they_are(archive: Node) -> None:
    zone = archive.zone
    alone = {"StudyInstanceUID": "1.2.4"}
    finish(zone, fetching.order(zone, Order("archive", alone, AT_ONCE), actor="staff"))
    with reading(zone.engine) as session:
        study_id = session.query(Study.id).filter_by(study_instance_uid="1.2.4").scalar()
    fetch_id = fetching.order_priors(zone, Priors(study_id, years=3), "archive", AT_ONCE, actor="staff")
    finish(zone, fetch_id)
    assert {row.study_instance_uid for row in rows(zone, fetch_id)} == {"1.2.2", "1.2.3"}


def test_only_what_is_missing_of_a_study_is_pulled(running: Node, tmp_path: Path, files: list[Path]) -> None:
    with running_dcmqrscp(tmp_path) as at, indexing(running.zone):
        more = [*files]
        two = {"StudyInstanceUID": "1.2.1", "PatientID": "P1"}
        more += study_files(tmp_path, "1.2.1.7", 2, **two)
        fill(at, more[:3])
        add_archive(running.zone, at)
        match = {"StudyInstanceUID": "1.2.1"}
        finish(running.zone, fetching.order(running.zone, Order("archive", match, AT_ONCE), actor="staff"))
        assert held(running.zone) == {"1.2.1": 3}
        fill(at, more[-2:])
        again = fetching.order(running.zone, Order("archive", match, AT_ONCE), actor="staff")
        assert finish(running.zone, again).state == "done"
    assert held(running.zone) == {"1.2.1": 5}


def answers(*studies: tuple[str, int]) -> Any:
    """Answer queries as if there were these studies, of one series each, with so many instances."""

    def find(event: Any) -> Iterator[tuple[int, Dataset]]:
        asked = event.identifier
        for uid, count in studies:
            if asked.get("StudyInstanceUID") not in {"", None, uid}:
                continue
            ds = Dataset()
            ds.StudyInstanceUID, ds.PatientID = uid, "P1"
            if asked.QueryRetrieveLevel == "STUDY":
                ds.NumberOfStudyRelatedInstances = str(count)
                yield 0xFF00, ds
            elif asked.QueryRetrieveLevel == "SERIES":
                ds.SeriesInstanceUID = f"{uid}.1"
                yield 0xFF00, ds
            else:
                for number in range(count):
                    one = Dataset()
                    one.update(ds)
                    one.SeriesInstanceUID, one.SOPInstanceUID = f"{uid}.1", f"{uid}.1.{number}"
                    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
                    yield 0xFF00, one

    return find


def gives(files: dict[str, list[Path]], leave: int = 10**6) -> Any:
    def get(event: Any) -> Iterator[Any]:
        paths = files[str(event.identifier.StudyInstanceUID)]
        yield len(paths)
        for number, path in enumerate(paths):
            if number >= leave:
                event.assoc.abort()
                return
            yield 0xFF00, dcmread(path)

    return get


def test_a_study_of_which_fewer_come_than_the_archive_says_is_told_and_given_up_in_the_end(
    running: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone, paths = running.zone, study_files(tmp_path, "1.2.1", 3, PatientID="P1")
    monkeypatch.setattr("appliance.fetch_work.retry_in_s", lambda *_: 0.0)
    served = {"1.2.1": paths[:2]}
    with odd_archive(find=answers(("1.2.1", 3)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}, AT_ONCE), actor="staff")
        step(zone, fetch_id)
        step(zone, fetch_id)
        (row,) = rows(zone, fetch_id)
        assert (row.state, row.received, row.expected) == ("queued", 2, 3)
        assert row.reason is not None
        assert row.reason.startswith("2 of 3 instances came")
        ended = finish(zone, fetch_id)
        assert (ended.state, ended.reason) == ("done", "1 of 1 studies did not come whole")
        assert rows(zone, fetch_id)[0].state == "failed"
        served["1.2.1"] = paths
        fetching.act(zone, fetch_id, "resume", actor="staff")
        assert finish(zone, fetch_id).reason is None
    assert held(zone) == {"1.2.1": 3}


def test_an_archive_that_aborts_midway_is_tried_again_and_gives_the_rest(
    running: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone, paths = running.zone, study_files(tmp_path, "1.2.1", 4, PatientID="P1")
    monkeypatch.setattr("appliance.fetch_work.retry_in_s", lambda *_: 0.0)
    with indexing(zone):
        with odd_archive(find=answers(("1.2.1", 4)), get=gives({"1.2.1": paths}, leave=2)) as at:
            add_archive(zone, at)
            fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}, AT_ONCE), actor="staff")
            step(zone, fetch_id)
            step(zone, fetch_id)
        (row,) = rows(zone, fetch_id)
        assert (row.state, row.received) == ("queued", 2)
        with odd_archive(find=answers(("1.2.1", 4)), get=gives({"1.2.1": paths})) as at:
            with writing(zone.engine) as session:
                session.query(Peer).filter_by(name="archive").update({"port": at.port})
            assert finish(zone, fetch_id).state == "done"
    assert held(zone) == {"1.2.1": 4}


def test_an_archive_that_is_away_is_waited_for_and_no_study_pays_for_it(running: Node) -> None:
    zone = running.zone
    add_archive(zone, Destination("AWAY", "127.0.0.1", free_port()))
    fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}), actor="staff")
    step(zone, fetch_id)
    waiting = load(zone, fetch_id)
    assert waiting.state == "looking"
    assert waiting.reason is not None
    assert waiting.reason.startswith("connect")
    failed = finish(zone, fetch_id)
    assert (failed.state, failed.options["failures"]) == ("failed", 4)
    fetching.act(zone, fetch_id, "resume", actor="staff")
    assert load(zone, fetch_id).state == "looking"


def test_a_fetch_waits_for_its_hours_and_for_its_bound_in_an_hour(running: Node, tmp_path: Path) -> None:
    zone = running.zone
    served = {uid: study_files(tmp_path, uid, 1, PatientID="P1") for uid in ("1.2.1", "1.2.2")}
    closed = now().astimezone().hour
    night = f"{(closed + 2) % 24:02d}:00-{(closed + 3) % 24:02d}:00"
    with odd_archive(find=answers(("1.2.1", 1), ("1.2.2", 1)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        match = {"PatientID": "P1"}
        late = fetching.order(zone, Order("archive", match, Manner(hours=night, at_once=True)), actor="staff")
        for _ in range(3):
            step(zone, late)
        assert (load(zone, late).reason or "").startswith("waits for its hours")
        slow = fetching.order(zone, Order("archive", match, Manner(per_hour=1, at_once=True)), actor="staff")
        for _ in range(4):
            step(zone, slow)
        assert load(zone, slow).reason == "waits: 1 studies an hour"
    assert len(held(zone)) == 1


def test_a_fetch_is_paused_resumed_and_cancelled(running: Node, tmp_path: Path) -> None:
    zone = running.zone
    served = {uid: study_files(tmp_path, uid, 1, PatientID="P1") for uid in ("1.2.1", "1.2.2")}
    with odd_archive(find=answers(("1.2.1", 1), ("1.2.2", 1)), get=gives(served)) as at, indexing(zone):
        add_archive(zone, at)
        fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}, AT_ONCE), actor="staff")
        step(zone, fetch_id)
        step(zone, fetch_id)
        fetching.act(zone, fetch_id, "pause", actor="staff")
        assert finish(zone, fetch_id).state == "paused"
        assert len(held(zone)) == 1
        with pytest.raises(FetchError, match="it is paused"):
            fetching.act(zone, fetch_id, "start", actor="staff")
        fetching.act(zone, fetch_id, "resume", actor="staff")
        assert finish(zone, fetch_id).state == "done"
        assert len(held(zone)) == 2
        with pytest.raises(FetchError, match="it is done"):
            fetching.act(zone, fetch_id, "cancel", actor="staff")
        with pytest.raises(FetchError, match="everything"):
            fetching.act(zone, fetch_id, "resume", actor="staff")


def test_a_fetch_that_is_paused_in_the_midst_of_a_study_takes_it_back(running: Node, tmp_path: Path) -> None:
    zone = running.zone
    paths = study_files(tmp_path, "1.2.1", 40, PatientID="P1")
    fetch_ids: list[str] = []

    def slow(event: Any) -> Iterator[Any]:
        yield len(paths)
        for number, path in enumerate(paths):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            if number == 3:
                fetching.act(zone, fetch_ids[0], "pause", actor="staff")
            time.sleep(0.2 if number < 20 else 0)
            yield 0xFF00, dcmread(path)

    with odd_archive(find=answers(("1.2.1", 40)), get=slow) as at, indexing(zone):
        add_archive(zone, at)
        fetch_ids.append(fetching.order(zone, Order("archive", {"PatientID": "P1"}, AT_ONCE), actor="staff"))
        assert finish(zone, fetch_ids[0]).state == "paused"
        (row,) = rows(zone, fetch_ids[0])
        assert (row.state, row.reason) == ("queued", None)
        assert 3 <= row.received < 40


def test_a_query_that_matches_too_much_is_refused(running: Node) -> None:
    zone = running.zone
    many = [(f"1.2.{number}", 1) for number in range(zone.settings.fetch.max_studies + 5)]
    with odd_archive(find=answers(*many)) as at:
        add_archive(zone, at)
        fetch_id = fetching.order(zone, Order("archive", {"PatientID": "P1"}), actor="staff")
        ended = finish(zone, fetch_id)
    assert ended.state == "failed"
    assert "more than 2000 studies match" in (ended.reason or "")
    assert rows(zone, fetch_id) == []


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Order("archive", {}), "query: expected at least one key"),
        (Order("archive", {"PatientID": " "}), "query: expected at least one key"),
        (Order("archive", {"Rows": "5"}), "query: Rows"),
        (Order("archive", {"StudyDate": "yesterday"}), "query: StudyDate"),
        (Order("archive", {"PatientID": "P1"}, Manner(method="move")), "allow this peer to send"),
        (Order("archive", {"PatientID": "P1"}, Manner(method="web")), "method: expected"),
        (Order("archive", {"PatientID": "P1"}, Manner(hours="at night")), "hours"),
        (Order("archive", {"PatientID": "P1"}, Manner(pause_s=-1)), "pause_s"),
        (Order("SCANNER", {"PatientID": "P1"}), "peer: expected"),
    ],
)
def test_an_order_that_cannot_be_carried_out_names_what_is_wrong(
    running: Node, order: Order, words: str
) -> None:
    add_archive(running.zone, Destination("A", "127.0.0.1", 1))
    with pytest.raises(FetchError, match=words):
        fetching.order(running.zone, order, actor="staff")
    with reading(running.zone.engine) as session:
        assert session.query(Fetch).count() == session.query(ClinicalJob).count() == 0


def test_our_own_node_is_an_archive_to_another(
    running: Node, tmp_path: Path, make_node: Any, files: list[Path]
) -> None:
    other = node.open_clinical(make_node("other"))
    running.peer("CLOISTER-2", ae_title="CLOISTER", may_query=True)
    running.peer("FILLER", may_send=True)
    here = Destination("CLOISTER", "127.0.0.1", running.port)
    with indexing(running.zone), indexing(other):
        fill(here, files)
        wait_until(lambda: sum(held(running.zone).values()) == len(files), "every file is filed", 60)
        add_archive(other, here)
        fetch_id = fetching.order(other, Order("archive", {"PatientID": "P1"}, AT_ONCE), actor="staff")
        assert finish(other, fetch_id).state == "done"
    assert held(other) == {"1.2.1": 3, "1.2.2": 2, "1.2.3": 2, "1.2.4": 1}
    ours, theirs = (
        {one.sop_instance_uid: data_of(one.path) for one in DatabaseCatalogue(held_by).instances("1.2.1")}
        for held_by in (running.zone, other)
    )
    assert ours == theirs
    other.engine.dispose()
