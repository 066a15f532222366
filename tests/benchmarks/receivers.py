"""Receivers side by side: Cloister's SCP, Orthanc, DCMTK's storescp, and a sink that keeps nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from appliance import health, node
from appliance.db.engine import writing
from appliance.peers import NewPeer, add_peer
from appliance.settings import load_settings
from tests.dicom_node.orthanc import ORTHANC, running_orthanc
from tests.dicom_node.support import DCMTK, free_port, kill_group, listening, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CALLING: Final = "DCMSEND"
LOOK_EVERY_S: Final = 0.5
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Receiver:
    """A receiver that listens: how to reach it, how to count what it holds, its process."""

    port: int
    ae_title: str
    count: Callable[[], int | None]  # None: it keeps nothing
    pid: int


@contextmanager
def cloister(folder: Path, processes: int) -> Iterator[Receiver]:
    """Run the SCP process of a node; every success is durable."""
    config = folder / "cloister.toml"
    config.write_text(
        f"[dicom]\nport = 0\nmin_free_mib = 1\nprocesses = {processes}\n[logging]\nlevel = 'ERROR'\n",
        encoding="utf-8",
    )
    settings = load_settings(config)
    node.create_node(settings)
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        add_peer(session, zone.ledger, NewPeer("sender", CALLING, "127.0.0.1", may_send=True))
    command = [sys.executable, "-m", "appliance.processes.scp", "--config", str(config)]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    entries = zone.root / "inbox" / "entries"
    try:
        port = node.bound_port(settings, "scp", 60)
        names = ["scp", *(f"scp_{number}" for number in range(1, processes))]
        wait_until(
            lambda: all(health.last_beat(settings, name) for name in names), "every process receives", 60
        )
        yield Receiver(port, "CLOISTER", lambda: sum(1 for _ in entries.iterdir()), child.pid)
    finally:
        kill_group(child)
        zone.engine.dispose()
        shutil.rmtree(node.run_dir(settings), ignore_errors=True)


@contextmanager
def orthanc(folder: Path, processes: int) -> Iterator[Receiver]:
    """Run Orthanc, whose storage area is synchronised to the disk."""
    del processes
    with running_orthanc(folder, SyncStorageArea=True) as running:
        pid = next(
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if str(folder / "orthanc.json") in (process.info["cmdline"] or [])
        )
        yield Receiver(
            running.dicom_port, "ORTHANC", lambda: int(running.get("statistics")["CountInstances"]), pid
        )


@contextmanager
def storescp(folder: Path, processes: int) -> Iterator[Receiver]:
    """Run DCMTK's storescp with a child for each association; it does not synchronise."""
    del processes
    port, storage = free_port(), folder / "stored"
    storage.mkdir()
    child = subprocess.Popen(
        [program(DCMTK / "storescp"), "--fork", "-od", str(storage), str(port)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listening(port), "storescp listens")
        yield Receiver(port, "STORESCP", lambda: sum(1 for _ in storage.iterdir()), child.pid)
    finally:
        kill_group(child)


@contextmanager
def sink(folder: Path, processes: int) -> Iterator[Receiver]:
    """Run the sink: the ceiling of the sender."""
    del folder, processes
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.sink"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        yield Receiver(int(child.stdout.readline()), "SINK", lambda: None, child.pid)
    finally:
        kill_group(child)


RECEIVERS: Final[dict[str, Callable[[Path, int], AbstractContextManager[Receiver]]]] = {
    "cloister": cloister,
    "orthanc": orthanc,
    "dcmtk": storescp,
    "sink": sink,
}


def installed(name: str) -> bool:
    """Whether the program of a receiver is here."""
    needed = {"orthanc": ORTHANC, "dcmtk": DCMTK / "storescp"}.get(name)
    return needed is None or os.access(needed, os.X_OK)


class Memory:
    """Watches the memory of a process and those it started: pages that they share count once (PSS).

    Parameters
    ----------
    pid : int
        Of the first one.
    """

    def __init__(self, pid: int) -> None:
        self.peak_mib = 0.0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        held = sum(_pss(one) for one in (self._process, *self._process.children(recursive=True)))
        self.peak_mib = max(self.peak_mib, held / 2**20)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it ended since it was listed
        return 0
