"""The SCP and the indexer as the processes they are, killed and restarted under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom.uid import CTImageStorage
from sqlalchemy import func, select

from appliance import health, intake, node, peers
from appliance.db.clinical import Instance, Study
from appliance.db.engine import reading, writing
from appliance.db.peers import RejectedCaller
from appliance.peers import NewPeer, add_peer
from appliance.processes.indexer import MAX_FAILURES, Duty
from tests.dicom_node.authority import Authority, Issued
from tests.dicom_node.support import (
    DCMTK,
    BytePeer,
    ct,
    dcmtk,
    encoded,
    free_port,
    kill_group,
    program,
    save,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.node import ClinicalZone
    from appliance.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


class Processes:
    """Processes of one node, started as the supervisor does."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self.settings = settings
        self.config = config
        self.running: list[subprocess.Popen[bytes]] = []
        self.log = config.with_suffix(".log")

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start one, with additions to its environment, and wait for its sign of life."""
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", f"appliance.processes.{name}", "--config", str(self.config)],
                cwd=ROOT,
                start_new_session=True,
                stderr=log,
                env={**os.environ, **environment},
            )
        self.running.append(child)

        def beating() -> bool:
            last = health.last_beat(self.settings, name)
            return last is not None and last.pid == child.pid

        wait_until(beating, f"{name} gives a sign of life", 60)
        return child

    def port(self) -> int:
        """Return the SCP's port."""
        return node.bound_port(self.settings, "scp", 10)

    def stop(self) -> None:
        """Kill what still runs."""
        for child in self.running:
            kill_group(child)


@pytest.fixture
def processes(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[Processes]:
    settings = make_node(
        dicom={"port": 0, "min_free_mib": 1, "network_timeout_s": 60}, assembly={"quiet_period_s": 1}
    )
    config = tmp_path / "cloister.toml"
    config.write_text(
        f'name = "node"\ndata_root = "{settings.data_root}"\n'
        "[dicom]\nport = 0\nmin_free_mib = 1\nnetwork_timeout_s = 60\n[assembly]\nquiet_period_s = 1\n",
        encoding="utf-8",
    )
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("pacs", "PACS", "127.0.0.0/8", may_send=True))
    zone.engine.dispose()
    group = Processes(settings, config)
    yield group
    group.stop()


@pytest.fixture
def zone(processes: Processes) -> Iterator[ClinicalZone]:
    opened = node.open_clinical(processes.settings)
    yield opened
    opened.engine.dispose()


def stored(zone: ClinicalZone) -> set[str]:
    with reading(zone.engine) as session:
        return set(session.scalars(select(Instance.sop_instance_uid)))


def succeeded(output: str, files: list[Path]) -> set[str]:
    """Return the SOP Instance UIDs that storescu saw answered with success, in the order of its files."""
    answered: set[str] = set()
    current = ""
    by_name = {str(path): pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in files}
    for line in output.splitlines():
        sending = re.search(r"Sending file: (\S+)", line)
        if sending:
            current = by_name[sending.group(1)]
        if "Received Store Response (Success)" in line:
            answered.add(current)
    return answered


@pytest.mark.dcmtk
@pytest.mark.e2e
def test_the_scp_killed_with_sigkill_in_mid_send_loses_nothing_it_answered(
    processes: Processes, zone: ClinicalZone, tmp_path: Path
) -> None:
    files = [save(ct(size=300), tmp_path / f"{number:03d}.dcm") for number in range(120)]
    scp = processes.start("scp")
    command = [program(DCMTK / "storescu"), "-v", "-xe", "-aec", "CLOISTER", "-aet", "PACS"]
    sender = subprocess.Popen(
        [*command, "127.0.0.1", str(processes.port()), *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    entries = zone.root / "inbox" / "entries"
    wait_until(lambda: sum(1 for _ in entries.iterdir()) >= 20, "some instances arrived")
    os.killpg(scp.pid, signal.SIGKILL)
    output, _ = sender.communicate(timeout=60)
    promised = succeeded(output, files)
    assert 19 <= len(promised) < len(files)

    indexer = processes.start("indexer")
    processes.start("scp")
    wait_until(lambda: promised <= stored(zone), "everything that was answered is filed")
    os.killpg(indexer.pid, signal.SIGKILL)
    rest = [str(path) for path in files]
    dcmtk("storescu", "-xe", "-aec", "CLOISTER", "-aet", "PACS", "127.0.0.1", str(processes.port()), *rest)
    processes.start("indexer")
    wait_until(lambda: len(stored(zone)) == len(files), "the sender's second try completed the rest")
    assert list((zone.root / "inbox" / "incoming").rglob("*.dcm")) == []
    for path in files:
        ds = pydicom.dcmread(path)
        with reading(zone.engine) as session:
            row = session.scalars(
                select(Instance).where(Instance.sop_instance_uid == ds.SOPInstanceUID)
            ).one()
        assert pydicom.dcmread(zone.root / row.path) == ds


@pytest.mark.e2e
def test_the_indexer_killed_again_and_again_files_everything_once(
    processes: Processes, zone: ClinicalZone
) -> None:
    processes.start("scp")
    instances = [ct(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4") for _ in range(60)]
    with BytePeer(processes.port()) as peer:
        peer.associate()
        for number, ds in enumerate(instances):
            assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID, number + 1) == 0
            if number % 20 == 10:
                indexer = processes.start("indexer")
                os.killpg(indexer.pid, signal.SIGKILL)
                indexer.wait(10)
    processes.start("indexer")
    wait_until(lambda: len(stored(zone)) == 60, "all are filed")

    def assembled() -> bool:
        with reading(zone.engine) as session:
            study = session.scalars(select(Study)).one()
        return study.state == "assembled" and study.instance_count == 60

    wait_until(assembled, "the study is assembled", 30)
    with reading(zone.engine) as session:
        paths = session.scalars(select(Instance.path)).all()
    assert len(set(paths)) == 60
    assert len(list((zone.root / "instances").rglob("*.dcm"))) == 60


@pytest.mark.dcmtk
@pytest.mark.e2e
def test_callers_of_the_database_may_send_and_others_are_listed(
    processes: Processes, zone: ClinicalZone, tmp_path: Path
) -> None:
    scp = processes.start("scp")
    path = save(ct(PatientName="Planted^Name", PatientID="PLANTED-ID"), tmp_path / "a.dcm")
    target = ["127.0.0.1", str(processes.port()), str(path)]
    assert dcmtk("storescu", "-aec", "CLOISTER", "-aet", "EVIL", *target, check=False).returncode != 0
    dcmtk("storescu", "-aec", "CLOISTER", "-aet", "PACS", *target)

    def listed() -> Any:
        with reading(zone.engine) as session:
            return [(row.calling_ae_title, row.reason) for row in session.scalars(select(RejectedCaller))]

    wait_until(listed, "the rejected caller is in the database")
    assert listed() == [("EVIL", "unknown_ae_title")]
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("evil", "EVIL", "127.0.0.1", may_send=True))

    def accepted() -> bool:
        return dcmtk("echoscu", "-aec", "CLOISTER", "-aet", "EVIL", *target[:2], check=False).returncode == 0

    wait_until(accepted, "a new peer may call without a restart")
    with reading(zone.engine) as session:
        assert peers.get_peer(session, "pacs").last_seen_at is not None
    scp.terminate()
    assert scp.wait(6) == 0
    text = processes.log.read_text(encoding="utf-8")
    assert "Planted" not in text
    assert "PLANTED-ID" not in text
    assert str(pydicom.dcmread(path).SOPInstanceUID) not in text
    assert all(json.loads(line) for line in text.splitlines())


@pytest.mark.e2e
def test_receiving_does_not_wait_for_the_database(processes: Processes, zone: ClinicalZone) -> None:
    processes.start("scp")
    instances = [ct() for _ in range(5)]
    with BytePeer(processes.port()) as peer:
        peer.associate()
        with writing(zone.engine) as session:  # holds SQLite's write lock
            session.execute(select(func.count()).select_from(Instance))
            for number, ds in enumerate(instances):
                assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID, number + 1) == 0
    assert intake.index_batch(zone, intake.open_inbox(zone)).filed == 5


@pytest.mark.e2e
def test_an_scp_that_starts_again_while_the_database_is_away_receives(
    processes: Processes, zone: ClinicalZone
) -> None:
    scp = processes.start("scp")
    os.killpg(scp.pid, signal.SIGKILL)
    scp.wait(10)
    database, aside = zone.root / "clinical.db", zone.root / "aside.db"
    zone.engine.dispose()
    database.rename(aside)
    database.mkdir()
    processes.start("scp")
    ds = ct()
    with BytePeer(processes.port()) as peer:
        assert peer.associate()[0] == 0x02
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID, 1) == 0
    database.rmdir()
    aside.rename(database)
    assert intake.index_batch(zone, intake.open_inbox(zone)).filed == 1


def test_a_duty_that_fails_is_tried_again_and_ends_the_process_in_the_end() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("no")

    duty = Duty("test", fail, 0)
    at = 0.0
    for _ in range(MAX_FAILURES - 1):
        duty.step(at)
        duty.step(at + 0.1)
        at += 100
    with pytest.raises(OSError, match="no"):
        duty.step(at)
    assert len(calls) == MAX_FAILURES


@pytest.mark.dcmtk
@pytest.mark.e2e
def test_a_caller_over_tls_is_turned_away_allowed_by_its_certificate_and_then_heard(
    processes: Processes, zone: ClinicalZone, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    ours, theirs, other = (authority.issue(name) for name in ("cloister", "scanner", "impostor"))
    port = free_port()
    values = {"tls_certificate": ours.certificate, "tls_key": ours.key, "tls_ca": authority.file}
    lines = "".join(f'{name} = "{path}"\n' for name, path in values.items())
    lines += f"tls_port = {port}\nplain = false\n"
    text = processes.config.read_text(encoding="utf-8")
    processes.config.write_text(text.replace("[dicom]\n", f"[dicom]\n{lines}"), encoding="utf-8")
    processes.start("scp")
    assert processes.port() == port, "the port without TLS is off"

    def echo(shown: Issued) -> int:
        tls = ("+tls", shown.key, shown.certificate, "+cf", authority.file)
        titles = ("-aet", "SCANNER", "-aec", "CLOISTER", "127.0.0.1", str(port))
        return dcmtk("echoscu", *tls, *titles, check=False).returncode

    assert echo(theirs) != 0
    wait_until(lambda: _turned_away(zone, "unknown_ae_title"), "the caller is listed")
    (caller,) = _turned_away(zone, "unknown_ae_title")
    assert (caller.tls, caller.certificate_sha256) == (True, theirs.sha256)
    with writing(zone.engine) as session:
        peers.allow_caller(session, zone.ledger, caller_id=caller.id, name="scanner")
    wait_until(lambda: echo(theirs) == 0, "it is heard")
    assert echo(other) != 0
    wait_until(lambda: _turned_away(zone, "wrong_certificate"), "the impostor is listed")
    (impostor,) = _turned_away(zone, "wrong_certificate")
    assert impostor.certificate_sha256 == other.sha256


def _turned_away(zone: ClinicalZone, reason: str) -> list[RejectedCaller]:
    with reading(zone.engine) as session:
        return list(session.scalars(select(RejectedCaller).where(RejectedCaller.reason == reason)))
