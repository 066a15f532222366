"""Instances per second received from DCMTK's dcmsend: Cloister beside Orthanc, DCMTK's storescp and a sink.

Every figure comes from a fresh receiver with empty storage, fed by one ``dcmsend`` for each association at
once. The receivers take turns, so that a busy machine is as unkind to one as to the others. What they do
before they answer differs: Cloister has synchronised file and folder, Orthanc has stored, synchronised and
indexed, storescp has written without synchronising, the sink has kept nothing: it is the sender's ceiling.
The disk's ceiling is measured beside them: files as long as the instances, as many writers as associations.

DCMTK's socket buffers of 32 KiB are smaller than one segment of the loopback interface; ``--buffers`` gives
its programs others (``TCP_BUFFER_LENGTH``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    MRImageStorage,
    generate_uid,
)

from tests.benchmarks.disk import durable_per_s
from tests.benchmarks.receivers import CALLING, RECEIVERS, Memory, Receiver, installed
from tests.dicom_node.support import DCMTK, ct, program, save, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ASSOCIATIONS: Final = (1, 2, 4, 8)
WRITE_BYTES: Final = 1 << 20
KEPT_MIB: Final = 1


@dataclass(frozen=True)
class Case:
    """Instances of one kind: so many in all, or so many for each association."""

    name: str
    sop_class: UID
    rows: int
    columns: int
    frames: int = 1
    count: int = 0
    each: int = 0

    def total(self, associations: int) -> int:
        """Return how many instances are sent."""
        return self.count or self.each * associations

    @property
    def mib(self) -> float:
        """Size of the pixel data."""
        return self.rows * self.columns * 2 * self.frames / 2**20


CASES: Final = (
    Case("CT 0.5 MB", CTImageStorage, 512, 512, count=400),
    Case("MR 0.2 MB", MRImageStorage, 320, 320, count=600),
    Case("DX 15 MB", DigitalXRayImageStorageForPresentation, 2800, 2700, count=24),
    Case("multi-frame 500 MB", EnhancedMRImageStorage, 512, 512, frames=954, each=1),
)


def draw(folder: Path, case: Case) -> list[Path]:
    """Write the instances of a case, as many as the most associations need."""
    folder.mkdir()
    pixels = np.random.default_rng(7).integers(0, 4096, (case.rows, case.columns), dtype=np.uint16)
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(case.total(max(ASSOCIATIONS))):
        ds = ct(size=2, StudyInstanceUID=study, SeriesInstanceUID=series, SOPClassUID=case.sop_class)
        ds.Rows, ds.Columns, ds.InstanceNumber = case.rows, case.columns, number + 1
        if case.frames > 1:
            ds.NumberOfFrames = case.frames
        ds.PixelData = np.roll(pixels, number).tobytes() * case.frames
        paths.append(save(ds, folder / f"{number:04d}.dcm"))
    return paths


def warm(paths: Sequence[Path]) -> None:
    """Have files in the page cache, so that the first receiver does not pay for reading them."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(WRITE_BYTES):
                pass


def send(receiver: Receiver, groups: Sequence[Sequence[Path]], environment: dict[str, str]) -> float:
    """Send with one dcmsend for each group, at once; return seconds until the last one ended."""
    base = [program(DCMTK / "dcmsend"), "-aet", CALLING, "-aec", receiver.ae_title]
    started = time.perf_counter()
    senders = [
        subprocess.Popen(
            [*base, "127.0.0.1", str(receiver.port), *map(str, group)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for group in groups
    ]
    codes = [sender.wait(900) for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"dcmsend ended with {codes}")
    return seconds


@contextmanager
def storage(root: Path, case: Case) -> Iterator[Path]:
    """Make a folder below ``root``, and remove it when it is large.

    Small files are left to the end: ext4 looks for inodes that were not lately freed, one by one, so that
    the files of who comes next would cost more.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=root))
    yield folder
    if case.mib > KEPT_MIB:
        shutil.rmtree(folder)


def measure(
    name: str,
    folder: Path,
    paths: Sequence[Path],
    associations: int,
    environment: dict[str, str],
    processes: int,
) -> tuple[float, float]:
    """Run one receiver once; return instances per second, and its peak of memory in MiB."""
    groups = [paths[number::associations] for number in range(associations)]
    with RECEIVERS[name](folder, processes) as receiver:
        os.sync()
        with ExitStack() as stack:
            memory = stack.enter_context(Memory(receiver.pid)) if name == "cloister" else None
            seconds = send(receiver, groups, environment)
        if receiver.count() is not None:
            wait_until(lambda: receiver.count() == len(paths), f"{name} holds all instances")
    return len(paths) / seconds, memory.peak_mib if memory is not None else 0.0


def run(
    cases: Sequence[str] = (),
    associations: Sequence[int] = ASSOCIATIONS,
    repeats: int = 1,
    buffers: int = 0,
    processes: int = 0,
) -> dict[str, Any]:
    """Measure all receivers in turn.

    Parameters
    ----------
    cases : sequence of str
        Beginnings of the cases' names; all of them when empty.
    associations : sequence of int
        Numbers of senders at once.
    repeats : int
        Runs of each point; figures are medians.
    buffers : int
        Bytes of DCMTK's socket buffers; 0 leaves its default.
    processes : int
        Receiver processes of Cloister; 0 takes one for each processor.

    Returns
    -------
    dict
        ``rows`` of ``case, associations, cloister_per_s, orthanc_per_s, dcmtk_per_s, sink_per_s, disk_per_s``
        (instances per second), the same in MB/s, and ``cloister_peak_mib`` (over all receiver processes,
        pages that they share counted once); null where a receiver is not installed.
    """
    environment = dict(os.environ)
    if buffers:
        environment["TCP_BUFFER_LENGTH"] = str(buffers)
    processes = processes or os.cpu_count() or 1
    chosen = [case for case in CASES if not cases or case.name.startswith(tuple(cases))]
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-material-") as material:
        for number, case in enumerate(chosen):
            paths = draw(Path(material, str(number)), case)
            for count in associations:
                part = paths[: case.total(count)]
                rows.append(_row(Path(material), case, part, count, environment, repeats, processes))
            for path in paths:
                path.unlink()
    return {
        "repeats": repeats,
        "dcmtk_buffers": buffers or "default",
        "cloister_processes": processes,
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }


def _row(
    root: Path,
    case: Case,
    paths: Sequence[Path],
    associations: int,
    environment: dict[str, str],
    repeats: int,
    processes: int,
) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {}
    peaks = []
    warm(paths)
    size = paths[0].stat().st_size
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="bench-disk-") as folder:
            speeds.setdefault("disk", []).append(durable_per_s(Path(folder), size, len(paths), associations))
        for name in RECEIVERS:
            if not installed(name):
                continue
            with storage(root, case) as folder:
                speed, peak = measure(name, folder, paths, associations, environment, processes)
            speeds.setdefault(name, []).append(speed)
            if name == "cloister":
                peaks.append(peak)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    megabytes = case.mib * 2**20 / 1e6
    return {
        "case": case.name,
        "associations": associations,
        **{f"{name}_per_s": _rounded(medians.get(name), 1.0) for name in (*RECEIVERS, "disk")},
        **{f"{name}_mb_per_s": _rounded(medians.get(name), megabytes) for name in (*RECEIVERS, "disk")},
        "cloister_peak_mib": round(max(peaks), 1),
    }


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 2)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--case", action="append", default=[], help="beginning of a case's name; all by default"
    )
    parser.add_argument("--associations", type=int, nargs="*", default=list(ASSOCIATIONS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--buffers", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    given = parser.parse_args()
    figures = run(given.case, given.associations, given.repeats, given.buffers, given.processes)
    print(json.dumps(figures, indent=2))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
