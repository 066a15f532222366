from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from appliance import children, health, node
from tests.appliance.servers import end_group, wait_until
from tests.further import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.settings import Settings

pytestmark = pytest.mark.e2e

Run = "Callable[..., subprocess.Popen[bytes]]"


@pytest.fixture
def run(node_settings: Settings) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(*names: str) -> subprocess.Popen[bytes]:
        argv = [
            sys.executable,
            "-m",
            "tests.appliance.probe_supervisor",
            str(node_settings.data_root),
            *names,
        ]
        process = subprocess.Popen(argv, process_group=0)
        started.append(process)
        return process

    yield begin
    for process in started:
        for pid in children.descendants_of(process.pid):
            children.send_signal(pid, signal.SIGKILL)
        end_group(process)


def table(settings: Settings) -> dict[str, Any]:
    path = node.run_dir(settings) / "processes.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())["processes"]
    return found


def all_run(settings: Settings, *names: str) -> bool:
    found = table(settings)
    return bool(found) and all(found[name]["pid"] is not None for name in names)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_descendants(process: subprocess.Popen[bytes], count: int) -> list[int]:
    wait_until(lambda: len(children.descendants_of(process.pid)) >= count, 60, f"{count} descendants")
    return children.descendants_of(process.pid)


@pytest.mark.parametrize("number", cases([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], [signal.SIGTERM]))
def test_a_signal_ends_everything_within_eight_seconds(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    process = run("good", "stubborn", "parent")
    wait_until(lambda: all_run(node_settings, "good", "stubborn", "parent"), 60, "all run")
    everybody = wait_for_descendants(process, 5)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(12) == 0
    assert time.monotonic() - began < 8
    assert [pid for pid in everybody if alive(pid)] == []


def test_a_killed_process_is_started_again(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run("good")
    wait_until(lambda: all_run(node_settings, "good"), 60, "it runs")
    first = table(node_settings)["good"]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: table(node_settings)["good"]["pid"] not in {None, first}, what="it runs again")
    assert table(node_settings)["good"]["restarts"] == 1


def test_a_process_that_fails_is_started_ever_more_slowly(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run("failing", "good")
    wait_until(lambda: table(node_settings).get("failing", {}).get("restarts", 0) >= 2, 60, "two restarts")
    began = time.monotonic()
    wait_until(lambda: table(node_settings)["failing"]["restarts"] >= 4, 60, "four restarts")
    assert time.monotonic() - began > 2.5
    assert table(node_settings)["good"]["restarts"] == 0


def test_a_process_that_hangs_before_its_first_sign_of_life_is_started_again(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run("--start-within-s", "1", "good", "clinical_redis")  # "good" gives no sign of life
    wait_until(lambda: table(node_settings).get("good", {}).get("restarts", 0) >= 1, 60, "it was ended")
    assert table(node_settings)["clinical_redis"]["restarts"] == 0


def test_what_a_dead_process_leaves_behind_is_ended(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = run("parent", "good")
    wait_until(lambda: all_run(node_settings, "parent", "good"), 60, "all run")
    before = set(wait_for_descendants(process, 3))
    parent, good = table(node_settings)["parent"]["pid"], table(node_settings)["good"]["pid"]
    grandchildren = before - {parent, good}
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in grandchildren), what="the grandchild is gone")
    assert alive(good)


def test_a_node_is_run_by_one_supervisor(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run("good")
    wait_until(lambda: all_run(node_settings, "good"), 60, "it runs")
    assert run("good").wait(60) == 1
    assert all_run(node_settings, "good")


def test_nothing_outlives_a_supervisor_that_was_killed(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    names = ("clinical_redis", "clinical_worker", "research_redis", "research_worker")
    process = run(*names)
    wait_until(lambda: health.last_beat(node_settings, "clinical_worker") is not None, 60, "worker ready")
    wait_until(lambda: health.last_beat(node_settings, "research_worker") is not None, 60, "worker ready")
    everybody = wait_for_descendants(process, 6)
    assert len(everybody) == 6
    loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in everybody}
    assert [pid for pid, maps in loaded.items() if "torch" in maps or "onnxruntime" in maps] == []
    began = time.monotonic()
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in everybody), 60, "everybody is gone")
    assert time.monotonic() - began < 8


def test_a_real_node_s_workers_and_redis_end_in_time(
    node_settings: Settings, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = run("clinical_redis", "clinical_worker")
    wait_until(lambda: health.last_beat(node_settings, "clinical_worker") is not None, 60, "worker ready")
    everybody = wait_for_descendants(process, 3)
    began = time.monotonic()
    process.terminate()
    assert process.wait(12) == 0
    assert time.monotonic() - began < 8
    assert not any(alive(pid) for pid in everybody)
    assert not node.redis_socket(node_settings, "clinical").exists()
