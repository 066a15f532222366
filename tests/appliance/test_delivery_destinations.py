"""Deliveries to real destinations: their protocols, hours and rests, and what proves a delivery."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import SecondaryCaptureImageStorage, StorageCommitmentPushModel
from sqlalchemy import select

from appliance import breakers, deliveries, dimse, proofs, secrets
from appliance.callers import DatabaseCallers
from appliance.db.base import now
from appliance.db.clinical import ClinicalJob, ClinicalLedgerEntry
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery, Peer
from appliance.filing import open_inbox
from appliance.names import Names
from appliance.peers import NewPeer, add_peer
from appliance.schedules import DAYS
from appliance.work import retry
from dicom_node.commitment import Report, read_request, send_report
from dicom_node.ports import Caller
from dicom_node.scp import SCPConfig, StorageSCP
from dicom_node.scu import Destination
from dicom_node.sending import SendingError
from tests.appliance.delivery_scene import Scene, running_scene
from tests.dicom_node.archives import running_dcmqrscp
from tests.dicom_node.dicomweb.web_archive import PLUGIN, orthanc_web_archive
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import Heard, free_port, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


def ledger_bodies(scene: Scene) -> list[dict[str, Any]]:
    with reading(scene.zone.engine) as session:
        wanted = select(ClinicalLedgerEntry.body).where(ClinicalLedgerEntry.kind == "result.delivered")
        return [json.loads(body) for body in session.scalars(wanted)]


def run_again(scene: Scene) -> Delivery:
    scene.make_due()
    return scene.deliver()


def test_a_destination_that_can_show_nothing_more_has_said_that_it_stored(scene: Scene) -> None:
    row = scene.deliver()
    assert (row.state, row.proof, row.proved_at is not None) == ("delivered", "stored", True)
    (body,) = ledger_bodies(scene)
    assert (body["proof"], body["status"]) == ("stored", 0)


def test_outside_its_hours_a_destination_is_not_called_and_no_attempt_is_used_up(scene: Scene) -> None:
    today = DAYS[now().astimezone().weekday()]
    scene.change(Peer, schedule={"days": [day for day in DAYS if day != today]})
    row = scene.deliver()
    assert (row.state, scene.job.state, scene.job.attempts) == ("queued", "failed", 0)
    assert row.reason is not None
    assert row.reason.startswith("waits for the destination's hours")
    scene.change(Peer, schedule={})
    assert run_again(scene).state == "delivered"


def test_a_destination_that_is_away_again_and_again_rests_and_then_one_tries_it(scene: Scene) -> None:
    scene.change(ClinicalJob, max_attempts=40)
    scene.workstation.inbox.min_free_bytes = 1 << 60
    for _ in range(breakers.THRESHOLD):
        run_again(scene)
    peer_id = scene.row(Delivery, scene.delivery_id).peer_id
    attempts = scene.job.attempts
    rested = run_again(scene)
    assert rested.reason == breakers.RESTS
    assert scene.job.attempts == attempts, "the rest is no attempt"
    scene.change(Peer, rests_until=now() - timedelta(seconds=1))
    assert breakers.enter(scene.zone, peer_id) == 0
    assert breakers.enter(scene.zone, peer_id) > 0, "one alone tries"
    scene.workstation.inbox.min_free_bytes = 0
    scene.change(Peer, rests_until=now() - timedelta(seconds=1))
    assert run_again(scene).state == "delivered"
    peer = scene.row(Peer, peer_id)
    assert (peer.failures, peer.rests_until) == (0, None)


def test_rests_grow_to_a_quarter_of_an_hour() -> None:
    rests = [breakers.rest_s(failures, "0" * 32) for failures in range(5, 30)]
    assert 30 <= rests[0] <= 36
    assert 900 <= rests[-1] <= 1080
    assert all(one < 2.4 * other for other, one in pairwise(rests))


def test_a_result_goes_out_in_the_transfer_syntax_that_its_destination_wants(scene: Scene) -> None:
    scene.change(Peer, transfer_syntax_uid=ImplicitVRLittleEndian)
    assert scene.deliver().state == "delivered"
    (entry,) = scene.workstation.inbox.entries(10)
    sent = dcmread(entry.path)
    assert sent.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert sent.PixelData == scene.result.PixelData
    assert not list((scene.zone.root / "sending").iterdir())


def test_a_result_that_cannot_be_converted_is_left_to_a_person(scene: Scene) -> None:
    scene.change(Peer, transfer_syntax_uid="1.2.840.10008.1.2.4.50")
    row = scene.deliver()
    assert (row.state, scene.job.state) == ("dead", "dead")
    assert row.reason is not None
    assert "transfer syntax" in row.reason


@pytest.mark.parametrize(
    ("status", "state"), [(0xB007, "delivered"), (0xA701, "queued"), (0xA900, "dead"), (0xC123, "dead")]
)
def test_odd_statuses_are_permanent_or_tried_again(scene: Scene, status: int, state: str) -> None:
    with odd_peer(scene, on_store=lambda _: status):
        row = scene.deliver()
    assert row.state == state
    assert scene.row(Peer, row.peer_id).failures == (1 if status == 0xA701 else 0)


class odd_peer:  # noqa: N801 - read as: with odd_peer(...)
    """A pynetdicom destination whose answers a test writes."""

    def __init__(self, scene: Scene, on_store: Callable[[Any], int] = lambda _: 0) -> None:
        self.scene = scene
        self.on_store = on_store
        self.asked: list[Any] = []
        self.stored = 0

    def __enter__(self) -> Self:
        ae = AE(ae_title="ODD")
        ae.add_supported_context(SecondaryCaptureImageStorage)
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.scene.change(Peer, ae_title="ODD", port=self.server.server_address[1])
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def _store(self, event: Any) -> int:
        self.stored += 1
        return self.on_store(event)

    def _action(self, event: Any) -> tuple[int, None]:
        self.asked.append(read_request(event.action_information))
        return 0, None


@dataclass
class Ears:
    """The node's own SCP, which hears reports."""

    callers: DatabaseCallers
    port: int

    def hear(self, report: Report, title: str = "ODD") -> None:
        """Let a destination report, which the node knows by its row."""
        self.callers.refresh()
        send_report(Destination("CLOISTER", "127.0.0.1", self.port), title, report)


@pytest.fixture
def ears(scene: Scene) -> Iterator[Ears]:
    zone = scene.zone
    callers = DatabaseCallers(zone.engine, Names(), zone.root / "callers.json")
    services = dimse.services(zone, partial(proofs.take_report, zone))
    scene.change(Peer, commitment=True)
    scp = StorageSCP(SCPConfig("CLOISTER", port=0), open_inbox(zone), callers, Heard(), services)
    yield Ears(callers, scp.start())
    scp.stop()


def test_delivered_means_committed_where_the_destination_commits(scene: Scene, ears: Ears) -> None:
    with odd_peer(scene) as peer:
        row = scene.deliver()
        assert (row.state, row.proof, row.reason) == ("queued", "stored", proofs.WAITS)
        assert scene.job.attempts == 0
        assert run_again(scene).state == "queued"
        ((transaction_uid, items),) = peer.asked
        ears.hear(Report(transaction_uid, tuple(items), ()))
        row = scene.row(Delivery, scene.delivery_id)
        assert (row.state, row.proof) == ("delivered", "committed")
        ears.hear(Report(transaction_uid, tuple(items), ()))
        scene.deliver()
    assert scene.job.state == "done"
    assert peer.stored == 1
    assert [body["proof"] for body in ledger_bodies(scene)] == ["committed"]


def test_what_a_destination_does_not_commit_is_sent_again(scene: Scene, ears: Ears) -> None:
    with odd_peer(scene) as peer:
        scene.deliver()
        (transaction_uid, ((sop_class, uid),)) = peer.asked[0]
        ears.hear(Report(transaction_uid, (), ((sop_class, uid, 0x0112),)))
        row = scene.row(Delivery, scene.delivery_id)
        assert (row.state, row.proof) == ("queued", "")
        assert row.reason == "the destination did not commit what it stored: 0x0112"
        run_again(scene)
        transaction_uid, items = peer.asked[1]
        ears.hear(Report(transaction_uid, tuple(items), ()))
    assert peer.stored == 2
    assert scene.row(Delivery, scene.delivery_id).proof == "committed"


def test_a_report_that_nobody_asked_for_proves_nothing(scene: Scene) -> None:
    for uid in ("", "1.2.3"):
        report = Report(uid, (("1.2", "1.3"),), ())
        assert not proofs.take_report(scene.zone, Caller("ODD", "CLOISTER", "127.0.0.1"), report)


def test_what_another_peer_reports_changes_nothing(scene: Scene, ears: Ears) -> None:
    other = NewPeer(
        "other", "OTHER", "127.0.0.1", port=104, may_send=False, is_destination=True, commitment=True
    )
    with odd_peer(scene) as peer:
        with writing(scene.zone.engine) as session:
            add_peer(session, scene.zone.ledger, other)
        scene.deliver()
        ((transaction_uid, items),) = peer.asked
        with pytest.raises(SendingError, match="0x0112"):
            ears.hear(Report(transaction_uid, tuple(items), ()), "OTHER")
        row = scene.row(Delivery, scene.delivery_id)
        assert (row.state, row.proof, row.reason) == ("queued", "stored", proofs.WAITS)
        ears.hear(Report(transaction_uid, tuple(items), ()))
    assert scene.row(Delivery, scene.delivery_id).proof == "committed"


def test_a_destination_that_never_keeps_what_it_stored_is_left_to_a_person(scene: Scene, ears: Ears) -> None:
    with writing(scene.zone.engine) as session:
        session.get_one(ClinicalJob, scene.job_id).max_attempts = 3
    with odd_peer(scene) as peer:
        scene.deliver()
        for number in range(3):
            (transaction_uid, ((sop_class, uid),)) = peer.asked[number]
            ears.hear(Report(transaction_uid, (), ((sop_class, uid, 0x0112),)))
            if number < 2:
                run_again(scene)
    row = scene.row(Delivery, scene.delivery_id)
    assert (row.state, scene.job.state, peer.stored) == ("dead", "dead", 3)
    assert row.reason == scene.job.reason == "the destination did not commit what it stored: 0x0112"
    deliveries.retry(scene.zone, scene.delivery_id, actor="ada")
    with odd_peer(scene) as peer:
        run_again(scene)
    assert peer.stored == 1


@pytest.mark.dcmtk
def test_a_destination_that_does_not_offer_commitment_is_left_to_a_person(scene: Scene) -> None:
    with dcmqrscp(scene):
        scene.change(Peer, commitment=True)
        row = scene.deliver()
    assert (row.state, row.proof) == ("dead", "stored")
    assert row.reason is not None
    assert row.reason.startswith("stored there; commitment:")
    with writing(scene.zone.engine) as session:
        assert retry(session, ClinicalJob, scene.job_id)
        session.get_one(Delivery, scene.delivery_id).state = "queued"
        session.get_one(Peer, row.peer_id).commitment = False
    assert scene.deliver().state == "delivered"


class dcmqrscp:  # noqa: N801 - read as: with dcmqrscp(...)
    """DCMTK's archive as the scene's destination."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __enter__(self) -> Destination:
        self._running = running_dcmqrscp(self.scene.zone.root / "dcmqrscp")
        there = self._running.__enter__()
        self.scene.change(Peer, ae_title=there.ae_title, port=there.port)
        return there

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)


@pytest.mark.dcmtk
def test_delivered_means_read_back_where_the_destination_can_be_queried(scene: Scene) -> None:
    with dcmqrscp(scene):
        scene.change(Peer, is_archive=True)
        row = scene.deliver()
    assert (row.state, row.proof, row.reason) == ("delivered", "read_back", None)


@pytest.mark.dcmtk
def test_what_is_not_found_is_sent_again(scene: Scene) -> None:
    with dcmqrscp(scene):
        scene.change(Peer, is_archive=True)
        scene.change(Delivery, proof="stored", proved_at=now())
        row = scene.deliver()
        assert (row.state, row.proof, row.reason) == ("queued", "", proofs.NOT_FOUND)
        assert run_again(scene).proof == "read_back"


@pytest.mark.orthanc
def test_orthanc_takes_a_result_over_the_web_and_finds_it(scene: Scene, tmp_path: Path) -> None:
    secrets.write(scene.zone, "pacs", b"cloister:secret")
    with orthanc_web_archive(tmp_path / "orthanc") as (orthanc, web, _):
        scene.change(Peer, protocol="dicomweb", url=web.url, is_archive=True, credential="pacs", port=0)
        row = scene.deliver()
        (held,) = orthanc.instances()
    assert (row.state, row.proof) == ("delivered", "read_back")
    assert held


@pytest.mark.orthanc
def test_orthanc_commits_a_result_and_reports_to_us(scene: Scene, ears: Ears, tmp_path: Path) -> None:
    ours = {"AET": "CLOISTER", "Host": "127.0.0.1", "Port": ears.port}
    with running_orthanc(tmp_path / "orthanc", DicomModalities={"us": ours}) as orthanc:
        scene.change(Peer, ae_title="ORTHANC", port=orthanc.dicom_port)
        ears.callers.refresh()
        row = scene.deliver()
        assert row.proof in {"stored", "committed"}, row.reason

        def committed() -> bool:
            found: Delivery = scene.row(Delivery, scene.delivery_id)
            return found.state == "delivered"

        wait_until(committed, "Orthanc's report")
    assert scene.row(Delivery, scene.delivery_id).proof == "committed"


@pytest.mark.orthanc
def test_a_web_destination_that_comes_back_gets_the_result(scene: Scene, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    scene.change(Peer, protocol="dicomweb", url=url, port=0)
    row = scene.deliver()
    assert (row.state, row.reason) == ("queued", "connect: no connection")
    with running_orthanc(tmp_path / "orthanc", Plugins=[program(PLUGIN)]) as orthanc:
        scene.change(Peer, url=f"http://127.0.0.1:{orthanc.http_port}/dicom-web")
        assert run_again(scene).state == "delivered"
        assert len(orthanc.instances()) == 1
