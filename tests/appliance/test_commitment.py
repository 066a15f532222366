from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DICOMSequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.pdu import P_DATA_TF
from sqlalchemy import select, text

from appliance import commitment, node
from appliance.catalogue import DatabaseCatalogue
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import CommitmentRequest
from appliance.filing import index_batch, open_inbox
from appliance.work import claimed
from dicom_node.commitment import request_commitment
from dicom_node.inbox import Announcement
from dicom_node.ports import Caller
from dicom_node.scu import Destination
from tests.appliance.dimse_node import CT, EXPLICIT, Node
from tests.appliance.test_catalogue import receive
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import ct, encoded, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PUSH = "1.2.840.10008.1.20.1"
PUSH_INSTANCE = "1.2.840.10008.1.20.1.1"


class Modality:
    """A scanner: asks for commitment, and listens for reports."""

    def __init__(self, node_port: int) -> None:
        self.node_port = node_port
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0
        self._server: Any = None
        self._answered = threading.Event()

    def _on_report(self, event: Any) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return self.status, None

    def _on_sent(self, event: Any) -> None:
        if self.reports and isinstance(event.pdu, P_DATA_TF):
            self._answered.set()

    def ask(self, items: Sequence[tuple[str, str]], *, stay: bool, uid: str = "1.2.77") -> int | None:
        """Send an N-ACTION; stay for the report or leave at once."""
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context(PUSH, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report), (evt.EVT_PDU_SENT, self._on_sent)]
        association = ae.associate("127.0.0.1", self.node_port, ae_title="CLOISTER", evt_handlers=handlers)
        assert association.is_established
        status, _ = association.send_n_action(action(items, uid), 1, PUSH, PUSH_INSTANCE)
        if stay:
            wait_until(self._answered.is_set, "the report comes and is answered")
        association.release()
        code = status.get("Status")
        return None if code is None else int(code)

    def listen(self) -> int:
        """Take associations of the node, in the role of the SCU of commitment."""
        ae = AE(ae_title="SCANNER")
        context = build_context(PUSH, ExplicitVRLittleEndian)
        context.scu_role, context.scp_role = True, True
        self._server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            contexts=[context],
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)],
        )
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.shutdown()


def action(items: Sequence[tuple[str, str]], transaction_uid: str) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    references = []
    for sop_class, uid in items:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = sop_class, uid
        references.append(one)
    ds.ReferencedSOPSequence = DICOMSequence(references)
    return ds


@pytest.fixture
def modality(running: Node) -> Iterator[Modality]:
    """Give the scanner that the node knows."""
    made = Modality(running.port)
    yield made
    made.stop()


def stored(running: Node, number: int = 2) -> list[tuple[str, str]]:
    study = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "PatientID": "P1"}
    return [(CT, receive(running.zone, **study)) for _ in range(number)]


def run_job(zone: node.ClinicalZone) -> ClinicalJob:
    """Do the newest job of commitment as a worker does; return its row."""
    with reading(zone.engine) as session:
        newest = select(ClinicalJob.id).where(ClinicalJob.kind == "report")
        job_id = session.scalars(newest.order_by(ClinicalJob.created_at.desc())).first()
    assert job_id is not None
    with writing(zone.engine) as session:
        session.get_one(ClinicalJob, job_id).next_try_at = now()
    with claimed(zone.engine, ClinicalJob, job_id, "worker", 60) as claim:
        assert claim is not None
        commitment.report(zone, claim)
    with reading(zone.engine) as session:
        return session.get_one(ClinicalJob, job_id)


def request_row(zone: node.ClinicalZone) -> CommitmentRequest:
    with reading(zone.engine) as session:
        return session.scalars(select(CommitmentRequest)).one()


def test_who_stays_is_told_on_the_same_association(running: Node, modality: Modality) -> None:
    items = stored(running)
    assert modality.ask(items, stay=True) == 0
    ((event, report),) = modality.reports
    assert (event, report.TransactionUID, report.RetrieveAETitle) == (1, "1.2.77", "CLOISTER")
    named = [
        (one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in report.ReferencedSOPSequence
    ]
    assert named == items
    wait_until(lambda: request_row(running.zone).state == "reported", "the row says so")
    with reading(running.zone.engine) as session:
        assert session.scalars(select(ClinicalJob.state)).one() == WorkState.DONE
        assert session.scalars(select(Study.complete)).one()


def test_what_is_not_held_as_named_is_reported_with_its_reason(
    running: Node,
    modality: Modality,
) -> None:
    (good, damaged, other) = stored(running, 3)
    catalogue = DatabaseCatalogue(running.zone)
    catalogue.instances("1.2.1", "", damaged[1])[0].path.write_bytes(b"")
    items = [good, damaged, ("1.2.840.10008.5.1.4.1.1.4", other[1]), (CT, "1.2.3.4.5")]
    modality.ask(items, stay=True)
    ((event, report),) = modality.reports
    assert event == 2
    assert [one.ReferencedSOPInstanceUID for one in report.ReferencedSOPSequence] == [good[1]]
    assert [one.FailureReason for one in report.FailedSOPSequence] == [0x0110, 0x0119, 0x0112]
    with reading(running.zone.engine) as session:
        assert not session.scalars(select(Study.complete)).one()


def test_who_leaves_is_told_on_a_new_association(running: Node, modality: Modality) -> None:
    assert modality.ask(stored(running), stay=False) == 0
    wait_until(lambda: running.scp.association_count == 0, "the association is over")
    assert run_job(running.zone).state == WorkState.DEAD
    assert "port" in (request_row(running.zone).reason or "")
    running.peer("SCANNER-2", ae_title="SCANNER", port=modality.listen(), may_send=True)
    with writing(running.zone.engine) as session:
        session.query(ClinicalJob).update({"state": WorkState.QUEUED, "attempts": 0})
    assert run_job(running.zone).state == WorkState.DONE
    assert [event for event, _ in modality.reports] == [1]
    assert request_row(running.zone).state == "reported"
    with writing(running.zone.engine) as session:
        session.query(ClinicalJob).update({"state": WorkState.QUEUED})
    assert run_job(running.zone).state == WorkState.DONE
    assert len(modality.reports) == 1


def test_a_report_that_is_not_taken_is_tried_again(running: Node, modality: Modality) -> None:
    running.peer("LATER", ae_title="SCANNER", port=modality.listen(), may_send=True)
    modality.ask(stored(running), stay=False)
    wait_until(lambda: running.scp.association_count == 0, "the association is over")
    modality.status = 0x0110
    assert run_job(running.zone).state == WorkState.FAILED
    modality.status = 0
    assert run_job(running.zone).state == WorkState.DONE
    assert len(modality.reports) == 2


def test_what_still_waits_in_the_inbox_is_not_reported_missing(
    running: Node,
    modality: Modality,
) -> None:
    ds = ct({"StudyInstanceUID": "1.2.1", "PatientID": "P1"})
    uid = str(ds.SOPInstanceUID)
    inbox = open_inbox(running.zone)
    inbox.commit([encoded(ds)], Caller("SCANNER", "CLOISTER", "127.0.0.1"), Announcement(CT, uid, EXPLICIT))
    filing = threading.Timer(0.5, lambda: index_batch(running.zone, inbox))
    filing.start()
    modality.ask([(CT, uid)], stay=True)
    filing.join()
    assert [event for event, _ in modality.reports] == [1]


def test_a_repeated_request_is_answered_again_and_another_one_is_not(
    running: Node,
    modality: Modality,
) -> None:
    items = stored(running)
    modality.ask(items, stay=True)
    modality.reports.clear()
    assert modality.ask(items, stay=True) == 0
    assert modality.ask(items[:1], stay=False) == 0x0110
    assert modality.ask(items[:1], stay=False, uid="1.2.78") == 0


@pytest.mark.parametrize(
    ("ds", "action_type", "instance", "status"),
    [
        (action([(CT, "1.2.3")], "1.2.77"), 2, PUSH_INSTANCE, 0x0123),
        (action([(CT, "1.2.3")], "1.2.77"), 1, "1.2.3", 0x0112),
        (action([], "1.2.77"), 1, PUSH_INSTANCE, 0x0115),
        (action([(CT, "")], "1.2.77"), 1, PUSH_INSTANCE, 0x0115),
        (action([(CT, "1.2.3")], ""), 1, PUSH_INSTANCE, 0x0115),
    ],
)
def test_a_request_without_meaning_is_refused(
    running: Node,
    ds: Dataset,
    action_type: int,
    instance: str,
    status: int,
) -> None:
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(PUSH, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", running.port, ae_title="CLOISTER")
    answer, _ = association.send_n_action(ds, action_type, PUSH, instance)
    assert answer.Status == status
    association.release()
    with reading(running.zone.engine) as session:
        assert session.scalars(select(CommitmentRequest)).all() == []


def test_our_own_request_is_answered_by_another_node(running: Node) -> None:
    items = stored(running)
    there = Destination("CLOISTER", "127.0.0.1", running.port)
    outcome = request_commitment(there, "SCANNER", "1.2.88", items, wait_s=10)
    assert outcome.accepted
    assert outcome.report is not None
    assert outcome.report.committed == tuple(items)
    nobody = Destination("CLOISTER", "127.0.0.1", free_port())
    assert request_commitment(nobody, "SCANNER", "1.2.89", items, wait_s=1).retryable
    stranger = request_commitment(there, "STRANGER", "1.2.90", items, wait_s=1)
    assert (stranger.accepted, stranger.retryable) == (False, False)


def test_a_report_for_what_nobody_asked_is_refused(running: Node) -> None:
    from dicom_node.commitment import Report, send_report  # noqa: PLC0415
    from dicom_node.sending import SendingError  # noqa: PLC0415

    running.peer("ARCHIVE", is_destination=True, commitment=True)
    report = Report(str(generate_uid()), ((str(CTImageStorage), "1.2.3"),), ())
    with pytest.raises(SendingError, match="0x0112"):
        send_report(Destination("CLOISTER", "127.0.0.1", running.port), "ARCHIVE", report)


@pytest.mark.orthanc
def test_orthanc_has_its_instances_committed(running: Node, tmp_path: Path) -> None:
    import httpx  # noqa: PLC0415

    modality = {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": running.port}
    folder = tmp_path / "orthanc"
    items = stored(running)
    with running_orthanc(folder, DicomAet="SCANNER", DicomModalities={"cloister": modality}) as orthanc:
        running.peer("ORTHANC", ae_title="SCANNER", may_send=True, port=orthanc.dicom_port)
        base = f"http://127.0.0.1:{orthanc.http_port}"
        body = {"DicomInstances": [{"SOPClassUID": one, "SOPInstanceUID": uid} for one, uid in items]}
        url = f"{base}/modalities/cloister/storage-commitment"
        asked = httpx.post(url, json=body, timeout=30)
        asked.raise_for_status()
        wait_until(lambda: running.scp.association_count == 0, "the association is over")
        if request_row(running.zone).state != "reported":
            assert run_job(running.zone).state == WorkState.DONE
        answer = httpx.get(f"{base}/storage-commitment/{asked.json()['ID']}", timeout=30).json()
        assert answer["Status"] == "Success"


@pytest.mark.orthanc
def test_orthanc_commits_what_we_ask_for(tmp_path: Path) -> None:
    ours = {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": free_port()}
    with running_orthanc(tmp_path / "orthanc", DicomModalities={"us": ours}) as orthanc:
        there = Destination("ORTHANC", "127.0.0.1", orthanc.dicom_port)
        outcome = request_commitment(there, "CLOISTER", str(generate_uid()), [(CT, "1.2.3")], wait_s=0.2)
        assert outcome.accepted


def test_a_request_that_cannot_be_noted_is_refused(running: Node, modality: Modality) -> None:
    items = stored(running)
    with running.zone.engine.begin() as connection:
        connection.execute(text("ALTER TABLE commitment_request RENAME TO away"))
    assert modality.ask(items, stay=False) == 0x0110
    with running.zone.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO commitment_request"))
    assert modality.ask(items, stay=True) == 0
