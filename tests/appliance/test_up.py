"""A whole node as staff run it: ``cloister up``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance import children, health
from tests.appliance.servers import end_group, wait_until
from tests.appliance.test_supervisor import alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.settings import Settings

pytestmark = pytest.mark.e2e

IDLE_NODE_MIB = 520  # by itself on a machine; what others share of the libraries counts less


@pytest.fixture
def up(node_settings: Settings, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    config = tmp_path / "cloister.toml"
    config.write_text(f'data_root = "{node_settings.data_root}"\n[dicom]\nport = 0\n[web]\nport = 0\n')
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "appliance.cli", "up", "--config", str(config), *words]
        started.append(subprocess.Popen(argv, process_group=0, stderr=subprocess.DEVNULL))
        return started[-1]

    yield begin
    for process in started:
        for pid in children.descendants_of(process.pid):
            children.send_signal(pid, signal.SIGKILL)
        end_group(process)


def is_well(settings: Settings) -> bool:
    return health.overall(settings).well


def pss_mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def test_a_node_gets_well_stays_small_and_ends_in_time(
    node_settings: Settings, up: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = up()
    wait_until(lambda: is_well(node_settings), 90, "the node is well")
    everybody = [process.pid, *children.descendants_of(process.pid)]
    total_mib = sum(pss_mib(pid) for pid in everybody)
    assert total_mib < IDLE_NODE_MIB
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(12) == 0
    assert time.monotonic() - began < 8
    assert [pid for pid in everybody if alive(pid)] == []


def test_nothing_of_a_node_outlives_its_killed_supervisor(
    node_settings: Settings, up: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = up()
    wait_until(lambda: is_well(node_settings), 90, "the node is well")
    everybody = children.descendants_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in everybody), 60, "everybody is gone")


def test_the_zones_run_side_by_side_each_under_its_own_supervisor(
    node_settings: Settings, up: Callable[..., subprocess.Popen[bytes]]
) -> None:
    clinical, research = up("--zone", "clinical"), up("--zone", "research")
    wait_until(lambda: is_well(node_settings), 90, "the node is well")
    assert up("--zone", "research").wait(60) == 1
    assert up().wait(60) == 1
    assert research.poll() is None
    research.terminate()
    assert research.wait(12) == 0
    names = {check.name for check in health.overall(node_settings).checks if not check.ok}
    assert names == {"process research_agent", "process research_worker", "research redis"}
    clinical.terminate()
    assert clinical.wait(12) == 0
