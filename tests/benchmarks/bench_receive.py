"""Instances per second received from DCMTK's dcmsend: Cloister's SCP beside Orthanc and DCMTK's storescp.

Every run gets a fresh receiver with empty storage. The receivers take turns, so that a busy machine is as
unkind to one as to the others. What they do before they answer differs: Cloister has fsynced file and folder,
Orthanc has stored and indexed, storescp has written without fsync.

DCMTK's socket buffers of 32 KiB are smaller than one segment of the loopback interface. So that this does not
decide, its programs run once with these and once with buffers of 256 KiB (``TCP_BUFFER_LENGTH``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
from pydicom.uid import generate_uid

from appliance import node
from appliance.db.engine import writing
from appliance.peers import NewPeer, add_peer
from appliance.settings import load_settings
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import DCMTK, ct, free_port, kill_group, listening, program, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

SIZE: Final = 512  # rows and columns of a CT slice
BUFFERS: Final = {"dcmtk_default": None, "256_kib": "262144"}
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Receiver:
    """A receiver that listens: how to reach it, how to count what it holds, its process."""

    port: int
    ae_title: str
    count: Callable[[], int]
    pid: int


@contextmanager
def cloister(folder: Path, environment: dict[str, str], associations: int) -> Iterator[Receiver]:
    """Run the SCP process of a node."""
    del associations
    config = folder / "cloister.toml"
    config.write_text("[dicom]\nport = 0\nmin_free_mib = 1\n[logging]\nlevel = 'ERROR'\n", encoding="utf-8")
    settings = load_settings(config)
    node.create_node(settings)
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("sender", "DCMSEND", "127.0.0.1", may_send=True))
    command = [sys.executable, "-m", "appliance.processes.scp", "--config", str(config)]
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    entries = zone.root / "inbox" / "entries"
    try:
        port = node.bound_port(settings, "scp", 60)
        yield Receiver(port, "CLOISTER", lambda: sum(1 for _ in entries.iterdir()), child.pid)
    finally:
        kill_group(child)
        zone.engine.dispose()
        shutil.rmtree(node.run_dir(settings), ignore_errors=True)


@contextmanager
def orthanc(folder: Path, environment: dict[str, str], associations: int) -> Iterator[Receiver]:
    """Run Orthanc with its defaults."""
    del environment, associations
    with running_orthanc(folder) as running:
        pid = next(
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if str(folder / "orthanc.json") in (process.info["cmdline"] or [])
        )
        yield Receiver(
            running.dicom_port, "ORTHANC", lambda: int(running.get("statistics")["CountInstances"]), pid
        )


@contextmanager
def storescp(folder: Path, environment: dict[str, str], associations: int) -> Iterator[Receiver]:
    """Run DCMTK's storescp; for several associations it forks a child for each."""
    port, storage = free_port(), folder / "stored"
    storage.mkdir()
    options = ["--fork"] if associations > 1 else []
    child = subprocess.Popen(
        [program(DCMTK / "storescp"), *options, "-od", str(storage), str(port)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listening(port), "storescp listens")
        yield Receiver(port, "STORESCP", lambda: sum(1 for _ in storage.iterdir()), child.pid)
    finally:
        kill_group(child)


RECEIVERS: Final[dict[str, Callable[[Path, dict[str, str], int], AbstractContextManager[Receiver]]]] = {
    "cloister": cloister,
    "orthanc": orthanc,
    "storescp": storescp,
}


def draw(folder: Path, count: int) -> None:
    """Write CT slices, in halves for two senders."""
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 4096, (SIZE, SIZE), dtype=np.uint16)
    study, series = generate_uid(), generate_uid()
    for number in range(count):
        half = folder / ("a" if number < count // 2 else "b")
        half.mkdir(parents=True, exist_ok=True)
        ds = ct(size=2, StudyInstanceUID=study, SeriesInstanceUID=series, Rows=SIZE, Columns=SIZE)
        ds.PixelData = np.roll(pixels, number).tobytes()
        save(ds, half / f"{number:04d}.dcm")


def send(receiver: Receiver, folders: list[list[Path]], environment: dict[str, str]) -> float:
    """Send with one dcmsend for each list of folders, at once; return seconds until the last one ended."""
    base = [program(DCMTK / "dcmsend"), "-aet", "DCMSEND", "-aec", receiver.ae_title]
    started = time.perf_counter()
    senders = [
        subprocess.Popen(
            [*base, "127.0.0.1", str(receiver.port), "--scan-directories", *map(str, group)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for group in folders
    ]
    codes = [sender.wait(600) for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"dcmsend ended with {codes}")
    return seconds


def measure(
    name: str, material: Path, count: int, associations: int, buffers: str | None
) -> tuple[float, float]:
    """Run one receiver once; return instances per second, and its resident memory at the end in MiB."""
    environment = dict(os.environ)
    if buffers is not None:
        environment["TCP_BUFFER_LENGTH"] = buffers
    halves = [material / "a", material / "b"]
    groups = [halves] if associations == 1 else [[half] for half in halves]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        receiver = stack.enter_context(RECEIVERS[name](folder, environment, associations))
        seconds = send(receiver, groups, environment)
        wait_until(lambda: receiver.count() == count, f"{name} holds all instances")
        memory = psutil.Process(receiver.pid).memory_info().rss / 2**20
    return count / seconds, memory


def run(instances: int = 200, repeats: int = 3) -> dict[str, Any]:
    """Measure all receivers in turn.

    Returns
    -------
    dict
        ``instances_per_second``: buffers -> receiver -> associations -> median; ``memory_mib``: the largest
        resident memory of each receiver at the end of a run.
    """
    speeds: dict[tuple[str, str, int], list[float]] = {}
    memories: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-material-") as material:
        draw(Path(material), instances)
        for _ in range(repeats):
            for label, buffers in BUFFERS.items():
                for associations in (1, 2):
                    for name in RECEIVERS:
                        speed, memory = measure(name, Path(material), instances, associations, buffers)
                        speeds.setdefault((label, name, associations), []).append(speed)
                        memories.setdefault(name, []).append(memory)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (label, name, associations), values in speeds.items():
        cell = table.setdefault(label, {}).setdefault(name, {})
        cell[str(associations)] = round(statistics.median(values), 1)
    return {
        "instances": instances,
        "bytes_each": SIZE * SIZE * 2,
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
        "instances_per_second": table,
        "memory_mib": {name: round(max(values), 1) for name, values in memories.items()},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.instances, arguments.repeats), indent=2))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
