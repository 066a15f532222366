"""Query, retrieval and commitment on a node whose processes run, die and come again."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from sqlalchemy import select

from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.db.peers import CommitmentRequest
from appliance.peers import NewPeer, add_peer
from tests.appliance.servers import RedisServer
from tests.appliance.test_commitment import Modality
from tests.appliance.test_receiving import Processes, processes, stored, zone
from tests.dicom_node.support import ct, dcmtk, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.node import ClinicalZone

__all__ = ["processes", "zone"]  # fixtures


@pytest.fixture
def redis(processes: Processes) -> Iterator[RedisServer]:
    server = RedisServer(processes.settings, "clinical")
    server.start()
    yield server
    server.kill()


@pytest.mark.dcmtk
@pytest.mark.slow
def test_a_study_is_sent_committed_after_a_crash_found_and_retrieved(
    processes: Processes, zone: ClinicalZone, redis: RedisServer, tmp_path: Path
) -> None:
    scanner = Modality(0)
    with writing(zone.engine) as session:
        port = scanner.listen()
        sender = NewPeer("scanner", "SCANNER", "127.0.0.1", port, may_send=True, is_destination=True)
        add_peer(session, zone.ledger, sender)
        add_peer(session, zone.ledger, NewPeer("room", "WORKSTATION", "127.0.0.1", may_query=True))
    scp = processes.start("scp")
    scanner.node_port = processes.port()
    study = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "PatientID": "P1"}
    paths = [save(ct(study), tmp_path / f"{number}.dcm") for number in range(3)]
    items = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in map(dcmread, paths)]
    dcmtk("storescu", "-aec", "CLOISTER", "-aet", "SCANNER", "127.0.0.1", str(processes.port()), *paths)
    assert scanner.ask(items, stay=False) == 0
    os.killpg(scp.pid, signal.SIGKILL)
    scp.wait()
    assert stored(zone) == set()
    processes.start("indexer")
    processes.start("clinical_worker")
    wait_until(lambda: scanner.reports, "the report comes on a new association", 60)
    ((event, report),) = scanner.reports
    assert (event, len(report.ReferencedSOPSequence)) == (1, 3)

    def reported() -> bool:
        with reading(zone.engine) as session:
            complete = session.scalars(select(Study.complete)).all()
            states = session.scalars(select(CommitmentRequest.state)).all()
        return states == ["reported"] and complete == [True]

    wait_until(reported, "the request is reported and its study complete")
    processes.start("scp")
    titles = ["-S", "-aet", "WORKSTATION", "-aec", "CLOISTER"]
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.1"]
    peer = ["127.0.0.1", str(processes.port())]
    found = dcmtk("findscu", "-v", *titles, *keys, "-k", "NumberOfStudyRelatedInstances", *peer)
    assert "[3 ]" in found.stdout + found.stderr
    (tmp_path / "got").mkdir()
    dcmtk("getscu", *titles, "-od", tmp_path / "got", *keys, *peer)
    assert {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "got").iterdir()} == {
        u for _, u in items
    }
    scanner.stop()
