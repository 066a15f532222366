"""Each zone as an operating-system user of its own: all that must pass does, nothing else can."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from appliance import children
from tests.cxr import CXRStudy, write_studies
from tests.dicom_node.support import kill_group, wait_until
from tests.e2e.peers import storescu
from tests.e2e.two_users import IDS, ZONES, Installation, installation

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.real_data, pytest.mark.dcmtk, pytest.mark.timeout(300)]

PASSWORD: Final = "correct horse battery"
CONFIG: Final = """
name = "st-anna"
[dicom]
port = 0
[web]
port = 0
[assembly]
quiet_period_s = 1
"""


@dataclass
class Running:
    """Both zones, and somebody signed in to the panel."""

    place: Installation
    zones: dict[str, subprocess.Popen[bytes]]
    studies: list[CXRStudy]
    panel: httpx.Client = field(init=False)

    def port(self, name: str) -> int:
        return int((self.place.data / "clinical" / "run" / "ports" / name).read_text())

    def view(self, path: str) -> Any:
        return self.panel.get(f"/api/v1/{path}").raise_for_status().json()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    studies = write_studies("nih", tmp_path_factory.mktemp("studies"), 2)
    with ExitStack() as stack:
        place = stack.enter_context(installation(CONFIG))
        zones = {}
        for zone in ZONES:
            zones[zone] = place.start(zone)
            stack.callback(kill_group, zones[zone])
            stack.callback(_end_all, zones[zone])
        found = Running(place, zones, studies)
        _wait_for_start(found)
        _introduce(found)
        address = f"http://127.0.0.1:{found.port('web')}"
        found.panel = stack.enter_context(httpx.Client(base_url=address, timeout=30))
        answer = found.panel.post("/api/v1/session", json={"name": "anna", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        yield found


def _end_all(process: subprocess.Popen[bytes]) -> None:
    everybody = children.descendants_of(process.pid)
    process.terminate()
    with suppress(Exception):
        process.wait(15)
    for pid in everybody:
        children.send_signal(pid, signal.SIGKILL)


def _wait_for_start(found: Running) -> None:
    beats = {
        "clinical": ("scp", "indexer", "clinical_worker", "fetch_worker", "inference_worker", "web"),
        "research": ("research_agent", "research_worker"),
    }
    folders = {zone: found.place.data / zone / "run" / "health" for zone in ZONES}
    waited = [folders[zone] / f"{name}.json" for zone in ZONES for name in beats[zone]]

    def up() -> bool:
        for zone, process in found.zones.items():
            log = found.place.folder / f"{zone}.log"
            assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        return all(path.exists() for path in waited)

    wait_until(up, "every process of both zones has given a sign of life", 90)


def _introduce(found: Running) -> None:
    """Give the node a PACS and a person."""
    place = found.place
    words = ("user", "add", "anna", "--role", "admin", "--password-stdin")
    people = place.cloister("clinical", *words, text=PASSWORD)
    assert people.returncode == 0, people.stderr
    peer = place.cloister("clinical", "peer", "add", "pacs", "PACS", "127.0.0.1", "--may-send")
    assert peer.returncode == 0, peer.stderr


def test_a_study_crosses_over_and_its_bundle_is_cleared_away(running: Running) -> None:
    def sent() -> bool:
        with suppress(AssertionError):  # the new peer is known to the listener within a second
            storescu([study.path for study in running.studies], "PACS", "CLOISTER", running.port("scp"))
            return True
        return False

    wait_until(sent, "the node takes the studies", 30)
    wait_until(
        lambda: running.view("federation")["summary"]["instances"] == len(running.studies),
        "the research zone has both studies, and tells the panel",
        60,
    )
    crossing = running.place.data / "crossing"
    wait_until(lambda: not any((crossing / "to_research").iterdir()), "bundles are removed", 30)
    wait_until(lambda: not any((crossing / "to_clinical" / "acks").iterdir()), "and acknowledgements", 30)


def test_a_model_package_comes_back_through_the_other_door(running: Running) -> None:
    done = running.place.run("research", "-m", "tests.e2e.offer_package")
    assert done.returncode == 0, done.stderr
    wait_until(
        lambda: [row["state"] for row in running.view("models")["rows"]] == ["evaluated"],
        "the clinical zone has checked the package",
        60,
    )


@pytest.mark.parametrize("zone", ZONES)
def test_neither_user_reaches_into_the_other_zone(running: Running, zone: str) -> None:
    other = next(name for name in ZONES if name != zone)
    spool = running.place.data / "crossing" / {"clinical": "to_clinical", "research": "to_research"}[zone]
    pids = [str(pid) for pid in children.descendants_of(running.zones[other].pid)]
    assert len(pids) >= 3
    program = "/mnt/cloister/tests/e2e/trespass.py"
    done = running.place.run(zone, program, str(running.place.data / other), str(spool), *pids)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("refused")] == []
    assert len(lines) == 9 + 2 * len(pids)


def test_each_user_reaches_its_own_zone_in_the_same_way(running: Running) -> None:
    program, root = "/mnt/cloister/tests/e2e/trespass.py", running.place.data / "research"
    spool = running.place.data / "crossing" / "to_clinical"
    done = running.place.run("research", program, str(root), str(spool))
    assert [line for line in done.stdout.splitlines() if line.startswith("refused")] == []
    (spool / "forged").unlink()


def test_what_a_zone_wrote_belongs_to_its_user_and_its_root_is_closed(running: Running) -> None:
    for zone in ZONES:
        root = running.place.data / zone
        assert root.stat().st_mode & 0o077 == 0
        owners = {path.lstat().st_uid for path in root.rglob("*")}
        assert owners == {IDS[f"cloister-{zone}"]}


@pytest.mark.parametrize("zone", ZONES)
def test_the_doctor_finds_each_zone_well_and_apart(running: Running, zone: str) -> None:
    done = running.place.cloister(zone, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert [name for name, check in checks.items() if not check["ok"]] == []
    assert checks["zones"]["detail"] == "separate users"
    assert done.returncode == 0


def test_a_command_as_another_user_is_refused_with_whom_to_be(running: Running) -> None:
    done = running.place.cloister("research", "user", "list")
    assert done.returncode == 1
    assert f"belongs to user {IDS['cloister-clinical']}" in done.stderr


def test_each_zone_ends_in_time(running: Running) -> None:
    for process in running.zones.values():
        process.terminate()
    for process in running.zones.values():
        assert process.wait(15) == 0
