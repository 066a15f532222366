"""Fifty senders, and processes that are killed at random: what was answered is there, once."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import pytest
from sqlalchemy import select

from appliance import health, node
from appliance.db.clinical import Instance, QuarantineItem
from appliance.db.engine import reading, writing
from appliance.filing import open_inbox
from appliance.peers import NewPeer, add_peer
from tests.appliance.servers import RedisServer
from tests.appliance.test_receiving import Processes
from tests.dicom_node.support import DCMTK, ct, program, save, wait_until
from tests.further import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings

ASSOCIATIONS = 50
EACH = {"ten thousand": 200, "three thousand": 60}
AT_ONCE = 10
HELD_BACK = 10  # groups that are sent once every process was killed, however fast the others were
KILLED = ("scp", "scp_1", "indexer", "clinical_worker", "redis")
KILL_EVERY_S = (0.3, 1.5)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.dcmtk]


@pytest.fixture
def processes(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[Processes]:
    dicom = {"port": 0, "min_free_mib": 1, "processes": 2}
    settings = make_node(dicom=dicom, assembly={"quiet_period_s": 5})
    config = tmp_path / "cloister.toml"
    config.write_text(
        f'name = "node"\ndata_root = "{settings.data_root}"\n'
        "[dicom]\nport = 0\nmin_free_mib = 1\nprocesses = 2\n[assembly]\nquiet_period_s = 5\n",
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
def redis(processes: Processes) -> Iterator[RedisServer]:
    server = RedisServer(processes.settings, "clinical")
    server.start()
    yield server
    server.kill()


def draw(folder: Path, group: int, each: int) -> dict[str, Path]:
    """Write the instances of one study; return them by name."""
    ds = ct(size=8, StudyInstanceUID=f"1.2.{group + 100}", SeriesInstanceUID=f"1.2.{group + 100}.1")
    ds.SOPInstanceUID = f"1.2.{group + 100}.1.10000"
    template = save(ds, folder / f"{group}.dcm").read_bytes()
    files = {}
    for number in range(each):
        uid = f"1.2.{group + 100}.1.{number + 10000}"
        path = folder / f"{group}-{number}.dcm"
        path.write_bytes(template.replace(str(ds.SOPInstanceUID).encode(), uid.encode()))
        files[path.stem] = path
    return files


class Storm:
    """Kills one process after another, and starts again what does not come back by itself."""

    def __init__(self, processes: Processes, redis: RedisServer, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self._redis = redis
        self._processes = processes
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._over = threading.Event()
        self._each = threading.Event()
        self._thread = threading.Thread(target=self._rage, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def wait_for_each(self) -> None:
        """Wait until every process was killed once."""
        assert self._each.wait(240), self.kills

    def _rage(self) -> None:
        turn: list[str] = []
        while not self._over.wait(self._random.uniform(*KILL_EVERY_S)):
            turn = turn or self._random.sample(KILLED, len(KILLED))
            if self._kill(turn[-1]):
                self.kills[turn.pop()] += 1
            else:
                turn.insert(0, turn.pop())
            if all(self.kills[name] for name in KILLED):
                self._each.set()

    def _kill(self, name: str) -> bool:
        if name == "redis":
            self._redis.kill()
            self._redis.start()
            return True
        beat = health.last_beat(self._processes.settings, name)
        if beat is None or beat.gone:
            return False
        try:
            os.kill(beat.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        if name != "scp_1":
            self._processes.start(name)
        return True


def send(processes: Processes, files: dict[str, Path]) -> set[str]:
    """Send until each file was answered with success; return the names of those that were."""
    answered: set[str] = set()
    deadline = time.monotonic() + 240
    while len(answered) < len(files):
        assert time.monotonic() < deadline, "the senders get no answers"
        left = [str(path) for name, path in files.items() if name not in answered]
        command = [program(DCMTK / "storescu"), "-v", "-xe", "-aec", "CLOISTER", "-aet", "PACS", "-to", "5"]
        done = subprocess.run(
            [*command, "127.0.0.1", str(processes.port()), *left], capture_output=True, text=True, check=False
        )
        current = ""
        for line in (done.stdout + done.stderr).splitlines():
            found = re.search(r"Sending file: \S*/(\S+)\.dcm", line)
            current = found[1] if found else current
            if "Received Store Response (Success)" in line:
                answered.add(current)
    return answered


@pytest.mark.timeout(600)
@pytest.mark.parametrize("many", cases(EACH, ["three thousand"]))
def test_thousands_of_instances_survive_random_kills_of_every_process(
    processes: Processes, redis: RedisServer, tmp_path: Path, many: str
) -> None:
    each = EACH[many]
    groups = [draw(tmp_path, group, each) for group in range(ASSOCIATIONS)]
    uids = {
        f"1.2.{group + 100}.1.{number + 10000}" for group in range(ASSOCIATIONS) for number in range(each)
    }
    for name in ("scp", "indexer", "clinical_worker"):
        processes.start(name)

    with Storm(processes, redis, seed=20) as storm, ThreadPoolExecutor(AT_ONCE) as pool:
        answered = list(pool.map(lambda files: send(processes, files), groups[:-HELD_BACK]))
        storm.wait_for_each()
        answered += pool.map(lambda files: send(processes, files), groups[-HELD_BACK:])
    assert sum(map(len, answered)) == ASSOCIATIONS * each
    assert all(storm.kills[name] for name in KILLED), storm.kills

    zone = node.open_clinical(processes.settings)
    inbox = open_inbox(zone)
    wait_until(lambda: inbox.count() == 0, "the inbox is filed", 240)
    with reading(zone.engine) as session:
        counts = Counter(session.scalars(select(Instance.sop_instance_uid)))
        stopped = session.scalars(select(QuarantineItem.reason_code)).all()
        paths = session.scalars(select(Instance.path)).all()
    assert set(counts) == uids
    assert set(counts.values()) == {1}
    assert stopped == []
    assert all((zone.root / path).stat().st_size > 0 for path in paths)
    held = sum(1 for path in (zone.root / "instances").rglob("*.dcm"))
    assert held == len(uids), "no file is without a row"
    assert list((zone.root / "inbox" / "incoming").rglob("*.dcm")) == []
    zone.engine.dispose()
