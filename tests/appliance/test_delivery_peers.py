"""Deliveries to DCMTK and to our own DICOMweb service, on both kinds of database, and after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from pynetdicom import AE, evt
from pynetdicom.sop_class import SecondaryCaptureImageStorage

from appliance import deliveries, proofs
from appliance.db.engine import reading
from appliance.db.peers import Delivery, Peer
from dicom_node.commitment import Report
from dicom_node.dicomweb import stow
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller
from tests.appliance.delivery_scene import Scene, running_scene
from tests.appliance.test_catalogue import zone
from tests.dicom_node.dicomweb.server import frame, served
from tests.dicom_node.support import DCMTK, free_port, kill_group, listening, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone

__all__ = ["zone"]  # a fixture
DELIVER = """
import sys
from pathlib import Path
from appliance import delivery, node
from appliance.db.clinical import ClinicalJob
from appliance.settings import load_settings
from appliance.work import claimed
zone = node.open_clinical(load_settings(Path(sys.argv[1])))
with claimed(zone.engine, ClinicalJob, sys.argv[2], "test", 600) as claim:
    delivery.deliver(zone, claim)
"""


@pytest.fixture
def scene(clinical_zone: ClinicalZone, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(clinical_zone, tmp_path) as found:
        yield found


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    command = [program(DCMTK / "storescp"), *options, "-od", str(folder), "-aet", "ROOM", str(port)]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listening(port), "storescp listens")
        yield port
    finally:
        kill_group(child)


@pytest.mark.dcmtk
def test_storescp_gets_the_result_after_it_died_and_refused(scene: Scene, tmp_path: Path) -> None:
    for option, state in (("--abort-during", "queued"), ("--refuse", "dead")):
        with storescp(tmp_path / state, option) as port:
            scene.change(Peer, ae_title="ROOM", port=port)
            scene.make_due()
            assert scene.deliver().state == state, option
    deliveries.retry(scene.zone, scene.delivery_id, actor="ada")  # it rejected for good
    with storescp(tmp_path / "whole") as port:
        scene.change(Peer, port=port)
        row = scene.deliver()
    assert (row.state, row.proof, row.reason) == ("delivered", "stored", None)
    assert len(list((tmp_path / "whole").iterdir())) == 1


def test_our_own_service_gets_the_result_over_the_web(scene: Scene, tmp_path: Path) -> None:
    failures: list[Exception] = []
    inbox = Inbox(tmp_path / "other", min_free_bytes=1 << 60)
    reception = stow.Reception(
        inbox=inbox,
        caller_of=lambda _: Caller("CLOISTER", "OTHER", "127.0.0.1"),
        on_stored=lambda *_: None,
        max_requests=2,
        timeout_s=5,
    )
    app = FastAPI()
    app.include_router(stow.router(frame(failures), reception))
    with served(app) as url:
        scene.change(Peer, protocol="dicomweb", url=url, port=0)
        row = scene.deliver()
        assert (row.state, scene.row(Peer, row.peer_id).failures) == ("queued", 1), row.reason
        inbox.min_free_bytes = 1
        scene.make_due()
        row = scene.deliver()
    assert (row.state, row.proof, row.reason) == ("delivered", "stored", None)
    (entry,) = inbox.entries(10)
    assert entry.sop_instance_uid == scene.result.SOPInstanceUID
    assert failures == []


def test_a_worker_that_is_killed_while_it_sends_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    came, go_on, stored = threading.Event(), threading.Event(), list[str]()

    def store(event: Any) -> int:
        came.set()
        go_on.wait(30)
        stored.append(event.request.AffectedSOPInstanceUID)
        return 0

    ae = AE(ae_title="SLOW")
    ae.add_supported_context(SecondaryCaptureImageStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    scene.change(Peer, ae_title="SLOW", port=server.server_address[1])
    config = tmp_path / "cloister.toml"
    config.write_text(f'data_root = "{scene.zone.settings.data_root}"\n')
    child = subprocess.Popen([sys.executable, "-c", DELIVER, str(config), scene.job_id])
    try:
        assert came.wait(60)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
        go_on.set()
        assert scene.row(Delivery, scene.delivery_id).proof == ""
        row = scene.deliver()
    finally:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait(20)
        server.shutdown()
    assert (row.state, row.proof, scene.job.state) == ("delivered", "stored", "done")
    assert set(stored) == {scene.result.SOPInstanceUID}


def test_a_report_settles_a_delivery_on_both_kinds_of_database(zone: ClinicalZone, tmp_path: Path) -> None:
    with running_scene(zone, tmp_path) as scene:
        scene.change(Delivery, proof="stored", transaction_uid="2.25.7", reason=proofs.WAITS)
        item = (str(scene.result.SOPClassUID), str(scene.result.SOPInstanceUID))
        peer = scene.row(Peer, scene.row(Delivery, scene.delivery_id).peer_id)
        reporter = Caller(peer.ae_title, "CLOISTER", "127.0.0.1")
        assert proofs.take_report(zone, reporter, Report("2.25.7", (), ((*item, 0x0110),)))
        assert scene.row(Delivery, scene.delivery_id).proof == ""
        scene.change(Delivery, proof="stored", transaction_uid="2.25.8", reason=proofs.WAITS)
        assert not proofs.take_report(zone, reporter, Report("2.25.7", (item,), ()))
        assert proofs.take_report(zone, reporter, Report("2.25.8", (item,), ()))
        assert scene.deliver().proof == "committed"
        with reading(zone.engine) as session:
            (there,) = deliveries.destinations(session)
            (row,) = deliveries.listed(session, "ws", "delivered")
        assert (there.committed, row.proof, scene.received) == (1, "committed", [])
