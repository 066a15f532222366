from __future__ import annotations

import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import build_role, evt
from pynetdicom.dsutils import decode as decode_data_set
from sqlalchemy import update

from appliance import dimse
from appliance.catalogue import DatabaseCatalogue
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer, Traffic
from appliance.filing import index_batch, open_inbox
from dicom_node.inbox import Announcement
from dicom_node.part10 import MAX_META_BYTES, decode
from dicom_node.ports import Caller
from dicom_node.query import Level, Query
from dicom_node.transcoding import JPEG_LS_LOSSLESS, transcode
from tests.appliance.dimse_node import CT, EXPLICIT, Node
from tests.appliance.test_catalogue import add_result
from tests.appliance.test_dimse import STUDY_GET, STUDY_MOVE, associate, filled, find, identifier
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import (
    DCMTK,
    ct,
    dcmtk,
    encoded,
    free_port,
    listening,
    process,
    program,
    save,
    wait_until,
)
from tests.further import cases
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["filled"]  # a fixture


def stored_data(path: Path) -> bytes:
    content = path.read_bytes()
    return content[decode(content[:MAX_META_BYTES]).data_offset :]


def get(running: Node, ds: Dataset, pairs: Sequence[tuple[str, str]]) -> tuple[Dataset, dict[str, bytes]]:
    """C-GET with a presentation context for each pair; return the last response and the data sets."""
    got: dict[str, bytes] = {}

    def store(event: Any) -> int:
        got[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0

    roles = [build_role(uid, scp_role=True) for uid in dict.fromkeys(uid for uid, _ in pairs)]
    contexts = [(STUDY_GET, [EXPLICIT]), *((uid, [syntax]) for uid, syntax in pairs)]
    association = associate(running, contexts, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert association.is_established
    responses = list(association.send_c_get(ds, STUDY_GET))
    association.release()
    status, failed = responses[-1]
    if failed:
        status.update(failed)
    return status, got


def test_a_study_comes_back_with_its_results_on_the_same_association(filled: Node) -> None:
    add_result(filled.zone, "1.2.1")
    status, got = get(filled, identifier("STUDY", StudyInstanceUID="1.2.1"), [(CT, EXPLICIT)])
    held = DatabaseCatalogue(filled.zone).instances("1.2.1")
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0, 4)
    assert got == {one.sop_instance_uid: stored_data(one.path) for one in held}
    with reading(filled.zone.engine) as session:
        kinds = [entry.kind for entry in session.query(ClinicalLedgerEntry)]
        sent = session.query(Traffic).filter_by(direction="out").one()
    assert kinds.count(dimse.STUDY_RETRIEVED) == 1
    assert (sent.ae_title, sent.associations, sent.instances, sent.failures) == ("WORKSTATION", 1, 4, 0)
    assert sent.size_bytes == sum(one.size_bytes for one in held)


def test_what_the_requestor_does_not_accept_fails_alone(filled: Node) -> None:
    jpeg = "1.2.840.10008.1.2.4.50"
    ds = ct({"PatientID": "P1", "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1"})
    inbox = open_inbox(filled.zone)
    uid = str(ds.SOPInstanceUID)
    inbox.commit([encoded(ds)], Caller("CT1", "CLOISTER", "127.0.0.1"), Announcement(CT, uid, jpeg))
    index_batch(filled.zone, inbox)
    status, got = get(filled, identifier("STUDY", StudyInstanceUID="1.2.1"), [(CT, EXPLICIT)])
    assert (status.Status, status.NumberOfFailedSuboperations, len(got)) == (0xB000, 1, 3)
    assert status.FailedSOPInstanceUIDList == uid
    status, got = get(filled, identifier("STUDY", StudyInstanceUID="1.2.1"), [(CT, "1.2.840.10008.1.2.5")])
    assert (status.Status, len(got)) == (0xA702, 0)


def test_a_requestor_of_the_default_transfer_syntax_alone_gets_that(filled: Node) -> None:
    status, got = get(filled, identifier("STUDY", StudyInstanceUID="1.2.1"), [(CT, "1.2.840.10008.1.2")])
    assert status.Status == 0
    held = DatabaseCatalogue(filled.zone).instances("1.2.1")
    for one in held:
        data = decode_data_set(BytesIO(got[one.sop_instance_uid]), is_implicit_vr=True, is_little_endian=True)
        assert data.to_json_dict() == Dataset(dcmread(one.path)).to_json_dict()


@pytest.mark.parametrize("plain", [EXPLICIT, "1.2.840.10008.1.2"])
def test_what_is_stored_compressed_is_decoded_for_a_requestor_that_knows_no_compression(
    filled: Node, tmp_path: Path, plain: str
) -> None:
    ds = ct({"PatientID": "P1", "StudyInstanceUID": "1.2.77", "SeriesInstanceUID": "1.2.77.1"}, size=32)
    pixels, uid = ds.PixelData, str(ds.SOPInstanceUID)
    transcode(save(ds, tmp_path / "a.dcm"), tmp_path / "b.dcm", JPEG_LS_LOSSLESS)
    inbox = open_inbox(filled.zone)
    announced = Announcement(CT, uid, JPEG_LS_LOSSLESS)
    inbox.commit([stored_data(tmp_path / "b.dcm")], Caller("CT1", "CLOISTER", "127.0.0.1"), announced)
    index_batch(filled.zone, inbox)
    study = identifier("STUDY", StudyInstanceUID="1.2.77")
    status, got = get(filled, study, [(CT, plain)])
    assert status.Status == 0
    data = decode_data_set(BytesIO(got[uid]), is_implicit_vr=plain != EXPLICIT, is_little_endian=True)
    assert data.PixelData == pixels
    status, got = get(filled, study, [(CT, plain), (CT, JPEG_LS_LOSSLESS)])
    assert got[uid] == stored_data(tmp_path / "b.dcm")


def test_nothing_that_matches_is_a_success_without_instances(filled: Node) -> None:
    status, got = get(filled, identifier("STUDY", StudyInstanceUID="1.2.99"), [(CT, EXPLICIT)])
    assert (status.Status, status.NumberOfCompletedSuboperations, got) == (0, 0, {})
    assert get(filled, identifier("STUDY", StudyInstanceUID="*"), [(CT, EXPLICIT)])[0].Status == 0xA900


def test_a_retrieval_ends_when_its_requestor_is_gone(filled: Node) -> None:
    def leave(event: Any) -> int:
        event.assoc.dul.socket.socket.shutdown(2)
        return 0

    association = associate(
        filled,
        [(STUDY_GET, [EXPLICIT]), (CT, [EXPLICIT])],
        ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, leave)],
    )
    list(association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.1"), STUDY_GET))
    wait_until(lambda: filled.scp.association_count == 0, "the association is over")
    assert find(filled, identifier("STUDY", StudyInstanceUID="1.2.1"))[0] == [0xFF00, 0]


def move(running: Node, destination: str, **keys: str) -> tuple[list[Dataset], Dataset | None]:
    association = associate(running, [(STUDY_MOVE, [EXPLICIT])])
    responses = list(association.send_c_move(identifier("STUDY", **keys), destination, STUDY_MOVE))
    association.release()
    return [status for status, _ in responses], responses[-1][1]


@pytest.fixture
def reading_room(filled: Node, tmp_path: Path) -> Iterator[Callable[[], dict[str, bytes]]]:
    """Run DCMTK's storescp as a destination; give what it holds."""
    folder = tmp_path / "reading_room"
    folder.mkdir()
    port = free_port()
    command = [program(DCMTK / "storescp"), "+uc", "+B", "-od", str(folder), "-aet", "ROOM", str(port)]
    for _ in process(command):
        wait_until(lambda: listening(port), "storescp listens")
        filled.peer("ROOM", is_destination=True, port=port)

        def held() -> dict[str, bytes]:
            return {str(dcmread(path).SOPInstanceUID): stored_data(path) for path in folder.iterdir()}

        yield held


@pytest.mark.dcmtk
def test_a_study_goes_to_another_application_entity(
    filled: Node, reading_room: Callable[[], dict[str, bytes]]
) -> None:
    responses, _ = move(filled, "ROOM", StudyInstanceUID="1.2.1")
    assert [one.Status for one in responses] == [0xFF00, 0xFF00, 0]
    assert [one.get("NumberOfRemainingSuboperations") for one in responses] == [2, 1, None]
    held = DatabaseCatalogue(filled.zone).instances("1.2.1")
    assert reading_room() == {one.sop_instance_uid: stored_data(one.path) for one in held}


@pytest.mark.dcmtk
def test_the_speed_to_another_application_entity_is_bounded(
    filled: Node, reading_room: Callable[[], dict[str, bytes]]
) -> None:
    with writing(filled.zone.engine) as session:
        session.execute(update(Peer).where(Peer.name == "ROOM").values(max_kib_per_s=1))
    held = DatabaseCatalogue(filled.zone).instances("1.2.1")
    least_s = sum(len(stored_data(one.path)) for one in held) / 1024 - 1  # one second's share goes at once
    assert least_s > 0.5
    began = time.monotonic()
    move(filled, "ROOM", StudyInstanceUID="1.2.1")
    assert time.monotonic() - began >= least_s
    assert len(reading_room()) == 3


@pytest.mark.dcmtk
def test_programs_of_dcmtk_find_move_and_get(
    filled: Node, reading_room: Callable[[], dict[str, bytes]], tmp_path: Path
) -> None:
    titles = ["-aet", "WORKSTATION", "-aec", "CLOISTER"]
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.1"]
    peer = ["127.0.0.1", str(filled.port)]
    found = dcmtk("findscu", "-v", "-S", *titles, *keys, "-k", "PatientName", *peer)
    assert "Doe^Jane" in found.stdout + found.stderr
    dcmtk("movescu", "-S", *titles, "-aem", "ROOM", *keys, *peer)
    assert len(reading_room()) == 3
    folder = tmp_path / "got"
    folder.mkdir()
    dcmtk("getscu", "-S", *titles, "-od", folder, *keys, *peer)
    held = {one.sop_instance_uid for one in DatabaseCatalogue(filled.zone).instances("1.2.1")}
    assert {str(dcmread(path).SOPInstanceUID) for path in folder.iterdir()} == held


@pytest.mark.dcmtk
def test_a_move_can_be_cancelled(filled: Node, reading_room: Callable[[], dict[str, bytes]]) -> None:
    association = associate(filled, [(STUDY_MOVE, [EXPLICIT])])
    keys = identifier("STUDY", StudyInstanceUID="1.2.1")
    responses = []
    for status, _ in association.send_c_move(keys, "ROOM", STUDY_MOVE, msg_id=7):
        responses.append(status)
        if len(responses) == 1:
            association.send_c_cancel(7, query_model=STUDY_MOVE)
    association.release()
    assert responses[-1].Status in {0xFE00, 0}
    done = responses[-1].NumberOfCompletedSuboperations
    assert done + responses[-1].get("NumberOfRemainingSuboperations", 0) == 3
    assert len(reading_room()) == done


def test_an_unknown_destination_is_refused(filled: Node) -> None:
    assert [one.Status for one in move(filled, "NOBODY", StudyInstanceUID="1.2.1")[0]] == [0xA801]
    assert [one.Status for one in move(filled, "SCANNER", StudyInstanceUID="1.2.1")[0]] == [0xA801]


def test_a_destination_that_is_away_fails_every_instance(filled: Node) -> None:
    filled.peer("AWAY", is_destination=True, port=free_port())
    responses, failed = move(filled, "AWAY", StudyInstanceUID="1.2.1")
    assert responses[-1].Status == 0xA702
    assert responses[-1].NumberOfFailedSuboperations == 3
    assert failed is not None
    assert len(failed.FailedSOPInstanceUIDList) == 3


@pytest.mark.orthanc
def test_orthanc_finds_and_retrieves(filled: Node, tmp_path: Path) -> None:
    import httpx  # noqa: PLC0415

    filled.peer("ORTHANC", may_query=True, is_destination=True)
    modality = {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": filled.port}
    with running_orthanc(tmp_path / "orthanc", DicomModalities={"cloister": modality}) as orthanc:
        with writing(filled.zone.engine) as session:
            session.query(Peer).filter_by(name="ORTHANC").one().port = orthanc.dicom_port
        base = f"http://127.0.0.1:{orthanc.http_port}"
        body = {"Level": "Study", "Query": {"PatientID": "P1", "StudyDate": "20240105"}}
        found = httpx.post(f"{base}/modalities/cloister/query", json=body, timeout=30).json()
        answers = httpx.get(f"{base}/queries/{found['ID']}/answers", timeout=30).json()
        assert answers == ["0"]
        retrieve = httpx.post(f"{base}/queries/{found['ID']}/retrieve", content="ORTHANC", timeout=60)
        retrieve.raise_for_status()
        assert len(orthanc.instances()) == 3


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("which", cases(["one of each kind", "all"], ["one of each kind"]))
def test_every_file_comes_back_byte_for_byte(running: Node, which: str) -> None:
    """A kind is a SOP class in a transfer syntax."""
    inbox = open_inbox(running.zone)
    caller = Caller("SCANNER", "CLOISTER", "127.0.0.1")
    kinds: set[tuple[str, str]] = set()
    for path in sorted((shared_data_dir() / "dicom").rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if content[128:132] != b"DICM":
            continue
        meta = decode(content[:MAX_META_BYTES])
        announced = Announcement(meta.uid(2), meta.uid(3), meta.uid(0x10))
        kind = (meta.uid(2), meta.uid(0x10))
        if all(kind) and meta.uid(3) and (which == "all" or kind not in kinds):
            kinds.add(kind)
            inbox.commit([content[meta.data_offset :]], caller, announced)
    while index_batch(running.zone, inbox).total:
        pass
    catalogue = DatabaseCatalogue(running.zone)
    studies = [one["StudyInstanceUID"] for one in catalogue.find(Query(Level.STUDY))]
    number = 0
    for study in studies:
        held = catalogue.instances(study)
        pairs = list(dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in held))
        status, got = get(running, identifier("STUDY", StudyInstanceUID=study), pairs)
        assert status.Status == 0
        assert got == {one.sop_instance_uid: stored_data(one.path) for one in held}
        number += len(got)
    assert number > (300 if which == "all" else 60)
