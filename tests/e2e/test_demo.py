"""``cloister demo`` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from appliance.demo.hospitals import HOSPITALS
from appliance.demo.proc import descendants
from appliance.demo.stages_federation import MARGIN
from tests.dicom_node.support import wait_until
from tests.further import FURTHER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KEYS: Final = (
    "instances_sent",
    "instances_received",
    "studies_assembled",
    "studies_deidentified",
    "studies_quarantined",
    "identifiers_leaked",
    "rounds_completed",
    "sites_per_round",
    "bytes_sent_per_round",
    "local_auc_per_site",
    "pooled_auc",
    "global_auc",
    "onnx_parity_max_abs",
    "results_delivered",
    "result_sop_classes",
    "seconds_study_to_result",
    "ledger_entries",
    "ledger_ok",
    "peak_pss_mib",
)


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "appliance.cli", "demo", *map(str, arguments)]


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "COLUMNS": "120"}


@dataclass(frozen=True)
class Shown:
    """A demonstration that ran, stayed up and was ended."""

    figures: dict[str, Any]
    processes: list[int]
    alive: list[int]
    left: list[Path]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Run the demonstration once, as the README says: all of it stays up until Ctrl-C."""
    folder = tmp_path_factory.mktemp("demo")
    sockets = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))  # a path short enough for them
    target, terminal = tmp_path_factory.mktemp("told") / "figures.json", folder / "terminal.txt"
    with started(terminal, sockets, "--json", target) as child:
        wait_until(lambda: _told(terminal, "stays up") or child.poll() is not None, "the story's end", 780)
        assert child.poll() is None, terminal.read_text(encoding="utf-8")[-4000:]
        assert list(sockets.iterdir())
        below = interrupted(child)
        assert child.returncode == 0, terminal.read_text(encoding="utf-8")[-4000:]
    alive = [] if wait_for_end(below) else _alive(below)
    left = [*folder.glob("cloister-*"), *sockets.iterdir()]
    shutil.rmtree(sockets)
    return Shown(json.loads(target.read_text(encoding="utf-8")), below, alive, left)


@pytest.fixture(scope="module")
def figures(shown: Shown) -> dict[str, Any]:
    """What was measured."""
    return shown.figures


def test_every_stage_does_its_work(figures: dict[str, Any]) -> None:
    assert figures["ok"]
    assert set(KEYS) <= set(figures)
    assert len(figures["seconds_per_stage"]) == 10


def test_every_instance_arrives_and_is_judged(figures: dict[str, Any]) -> None:
    sent = sum(hospital.studies for hospital in HOSPITALS)
    assert figures["instances_sent"] == figures["instances_received"] == sent + len(HOSPITALS)
    assert figures["studies_assembled"] == sent + len(HOSPITALS)
    assert figures["studies_deidentified"] == sent
    assert figures["studies_quarantined"] == len(HOSPITALS)
    assert figures["quarantine_reasons"] == {"unusable_patient_id": len(HOSPITALS)}


def test_three_sites_train_in_every_round(figures: dict[str, Any]) -> None:
    assert figures["rounds_completed"] == 10
    assert figures["sites_per_round"] == [3] * 10
    assert all(size > 0 for size in figures["bytes_sent_per_round"])


def test_the_global_model_is_better_elsewhere_than_each_local_one(figures: dict[str, Any]) -> None:
    assert 0.85 < figures["global_auc"] <= 1.0
    assert figures["pooled_auc"] is not None
    assert set(figures["local_auc_per_site"]) == {hospital.site for hospital in HOSPITALS}
    assert all(margin >= MARGIN for margin in figures["margins"].values())


def test_report_and_capture_reach_the_workstation(figures: dict[str, Any]) -> None:
    assert figures["results_delivered"] == 2
    assert "1.2.840.10008.5.1.4.1.1.7" in figures["result_sop_classes"]
    assert 0 < figures["seconds_study_to_result"] < 60
    assert 0 <= figures["next_study_probability"] <= 1
    assert figures["onnx_parity_max_abs"] < 1e-4


def test_nothing_leaks_and_every_ledger_verifies(figures: dict[str, Any]) -> None:
    assert figures["identifiers_leaked"] == 0
    assert figures["identifiers_searched"] > 1000
    assert figures["identifiers_found_in_clinical_zone"] > 1000
    assert figures["ledger_ok"]
    assert figures["ledger_entries"] > 1000


def test_it_stays_below_four_gibibytes(figures: dict[str, Any]) -> None:
    assert 500 < figures["peak_pss_mib"] < figures["pss_limit_mib"]


def test_ctrl_c_ends_every_process_and_leaves_nothing_behind(shown: Shown) -> None:
    assert len(shown.processes) > 20
    assert shown.alive == []
    assert shown.left == []


@FURTHER
def test_ctrl_c_in_the_midst_ends_every_process_and_leaves_nothing_behind(tmp_path: Path) -> None:
    sockets = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
    terminal = tmp_path / "terminal.txt"
    with started(terminal, sockets) as child:
        wait_until(lambda: _told(terminal, "3/10") or child.poll() is not None, "the PACS sends", 240)
        assert child.poll() is None, terminal.read_text(encoding="utf-8")
        below = interrupted(child)
    assert len(below) > 20
    assert wait_for_end(below), _alive(below)
    assert not list(tmp_path.glob("cloister-*"))
    sockets.rmdir()  # and that it is empty


@contextlib.contextmanager
def started(terminal: Path, sockets: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the demonstration in a session of its own, its temporary folder beside its terminal's text."""
    with terminal.open("wb") as stream:
        child = subprocess.Popen(
            _command(*arguments),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_environment(terminal.parent), "XDG_RUNTIME_DIR": str(sockets)},
        )
    try:
        yield child
    finally:
        _kill(child, descendants(child.pid))


def interrupted(child: subprocess.Popen[bytes]) -> list[int]:
    """Press Ctrl-C and wait for the program's end; return the processes that were below it."""
    below = descendants(child.pid)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(timeout=150)  # three hospitals end, on a machine that does other work
    return below


def wait_for_end(below: Sequence[int]) -> bool:
    """Whether all these processes end within a minute."""
    deadline = time.monotonic() + 60
    while _alive(below) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not _alive(below)


@FURTHER
def test_killing_the_demonstration_ends_everything_below_it(tmp_path: Path) -> None:
    terminal = tmp_path / "terminal.txt"
    with terminal.open("wb") as stream:
        child = subprocess.Popen(
            _command("--folder", tmp_path / "all"),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    below: list[int] = []
    try:
        wait_until(lambda: _told(terminal, "3/10") or child.poll() is not None, "the PACS sends", 240)
        below = descendants(child.pid)
        assert len(below) > 20
        child.kill()
        child.wait(timeout=10)
        wait_until(lambda: not _alive(below), "no process is left", 60)
    finally:
        _kill(child, below)


def test_wrong_use_ends_with_two(tmp_path: Path) -> None:
    done = subprocess.run(_command("--data", tmp_path), capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    (tmp_path / "file").write_text("here", encoding="ascii")
    done = subprocess.run(_command("--folder", tmp_path), capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert b"not empty" in done.stderr


def _told(terminal: Path, text: str) -> bool:
    return text in terminal.read_text(encoding="utf-8", errors="replace")


def _alive(pids: Sequence[int]) -> list[int]:
    """Return those that run; a zombie that nobody reaps here is no process any more."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if state.rpartition(")")[2].split()[0] != "Z":
            alive.append(pid)
    return alive


def _kill(child: subprocess.Popen[bytes], below: Sequence[int]) -> None:
    for pid in [child.pid, *_alive(below)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.wait(timeout=10)
