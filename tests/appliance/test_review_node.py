"""Review on a whole node: a real ultrasound picture is stopped, looked at, and leaves as it was shown."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import select

from appliance import children, node
from appliance.auth import Right, users
from appliance.db.clinical import QuarantineItem
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer
from appliance.db.research import ResearchInstance
from dicom_node.scu import Destination
from tests.appliance.servers import end_group, wait_until
from tests.appliance.test_up import is_well
from tests.dicom_node.archives import fill
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.real_data]

PASSWORD = "correct horse battery"
PEOPLE = ("one", "two")
BOX = (0, 0, 320, 20)


@pytest.fixture
def running(node_settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    config = tmp_path / "cloister.toml"
    config.write_text(
        f'data_root = "{node_settings.data_root}"\n[dicom]\nport = 0\n[web]\nport = 0\n'
        "[assembly]\nquiet_period_s = 1\nmax_wait_s = 30\n[deidentification]\nfour_eyes = true\n"
    )
    zone = node.open_clinical(node_settings)
    with writing(zone.engine) as session:
        rights = [Right.VIEW, Right.VIEW_IDENTITY, Right.REVIEW_QUARANTINE]
        for name in PEOPLE:
            users.add_user(session, zone.ledger, name=name, password=PASSWORD, rights=rights)
        session.add(Peer(name="sender", ae_title="FILLER", host="127.0.0.1", may_send=True))
    zone.engine.dispose()
    argv = [sys.executable, "-m", "appliance.cli", "up", "--config", str(config)]
    process = subprocess.Popen(argv, process_group=0, stderr=subprocess.DEVNULL)
    yield node_settings
    for pid in children.descendants_of(process.pid):
        children.send_signal(pid, signal.SIGKILL)
    end_group(process)


@contextmanager
def person(settings: Settings, name: str) -> Iterator[httpx.Client]:
    """Sign in, and speak to the API as this person."""
    port = node.bound_port(settings, "web", 60)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
        answer = client.post("/session", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        yield client


def act(client: httpx.Client, item_id: str, action: str, **fields: str) -> None:
    answer = client.post(f"/quarantine/{item_id}/actions/{action}", json=fields)
    assert answer.status_code == 200, answer.text


def trial(client: httpx.Client, item_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/quarantine/{item_id}").json()["trial"] or {}
    return found


def test_what_two_people_release_reaches_research_as_they_saw_it(running: Settings) -> None:
    source = next((shared_data_dir() / "dicom").rglob("examples_rgb_color.dcm"))
    port = node.bound_port(running, "scp", 60)
    wait_until(lambda: is_well(running), 90, "the node is well")
    fill(Destination("CLOISTER", "127.0.0.1", port), [source])
    zone = node.open_clinical(running)

    def stopped() -> QuarantineItem | None:
        with reading(zone.engine) as session:
            return session.scalar(select(QuarantineItem).where(QuarantineItem.stage == "deidentify"))

    wait_until(lambda: stopped() is not None, 120, "the instance is stopped")
    item = stopped()
    assert item is not None
    assert item.reason_code == "ultrasound_without_regions"
    with person(running, "one") as first, person(running, "two") as second:
        act(first, item.id, "try", boxes=" ".join(map(str, BOX)))
        wait_until(lambda: trial(first, item.id).get("state") == "done", 120, "it is tried out")
        decision_id = trial(first, item.id)["decision_id"]
        assert trial(first, item.id)["outcome"] == "released"
        act(first, item.id, "release", decision_id=decision_id, scope="instance", number="1")
        refused = first.post(f"/quarantine/{item.id}/actions/confirm", json={"decision_id": decision_id})
        assert refused.status_code == 409
        act(second, item.id, "confirm", decision_id=decision_id)
    research = node.open_research(running)

    def arrived() -> ResearchInstance | None:
        with reading(research.engine) as session:
            return session.scalar(select(ResearchInstance))

    wait_until(lambda: arrived() is not None, 120, "the research zone has it")
    found = arrived()
    assert found is not None
    before, after = dcmread(source), dcmread(research.root / found.path)
    left, top, right, bottom = BOX
    assert (after.pixel_array[top:bottom, left:right] == after.pixel_array[0, 0]).all()
    assert not np.array_equal(before.pixel_array[top:bottom], after.pixel_array[top:bottom])
    assert after.PatientID != before.PatientID
    closed = stopped()
    assert closed is not None
    assert closed.resolution == "released"
    zone.engine.dispose()
    research.engine.dispose()
