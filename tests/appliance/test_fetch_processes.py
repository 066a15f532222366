"""A fetch by the node's own processes, killed in the midst."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydicom import dcmread

from appliance import fetching
from appliance.db.clinical import Study
from appliance.db.engine import reading
from appliance.fetching import Manner, Order
from tests.appliance.fetch_node import add_archive, load, rows, study_files
from tests.appliance.servers import RedisServer
from tests.appliance.test_fetching import answers
from tests.appliance.test_receiving import Processes, processes, zone
from tests.dicom_node.archives import odd_archive
from tests.dicom_node.support import wait_until

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


def counts(zone: ClinicalZone) -> dict[str, int]:
    with reading(zone.engine) as session:
        return {study.study_instance_uid: study.instance_count for study in session.query(Study)}


@pytest.mark.e2e
@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_midst_goes_on_and_fetches_nothing_twice(
    processes: Processes, zone: ClinicalZone, redis: RedisServer, tmp_path: Path
) -> None:
    del redis
    uids = [f"1.2.{number}" for number in range(1, 5)]
    served = {uid: study_files(tmp_path, uid, 6, PatientID="P1") for uid in uids}
    asked: list[str] = []

    def slow(event: Any) -> Iterator[Any]:
        uid = str(event.identifier.StudyInstanceUID)
        asked.append(uid)
        yield len(served[uid])
        for path in served[uid]:
            time.sleep(0.15)
            yield 0xFF00, dcmread(path)

    with odd_archive(find=answers(*((uid, 6) for uid in uids)), get=slow) as at:
        add_archive(zone, at)
        processes.start("indexer")
        worker = processes.start("fetch_worker")
        order = Order("archive", {"PatientID": "P1"}, Manner(at_once=True))
        fetch_id = fetching.order(zone, order, actor="staff")
        wait_until(
            lambda: len(asked) >= 2 and sum(counts(zone).values()) >= 8, "it is in the second study", 60
        )
        for child in psutil.Process(worker.pid).children(recursive=True):
            child.kill()
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        whole = [row.study_instance_uid for row in rows(zone, fetch_id) if row.state == "done"]
        assert whole
        before = len(asked)
        processes.start("fetch_worker")
        wait_until(lambda: load(zone, fetch_id).state == "done", "all has come", 90)
    assert not set(whole) & set(asked[before:])
    assert counts(zone) == dict.fromkeys(uids, 6)
    assert {row.state for row in rows(zone, fetch_id)} == {"done"}
