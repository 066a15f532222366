"""Folders of instances, and what is in OUT afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anonymizer.batch.journal import FOLDER
from anonymizer.batch.run import deidentify_tree
from tests.anonymizer.material import DEFAULT, ct, encode

if TYPE_CHECKING:
    from anonymizer.batch.report import Report

ROOT: Final = Path(__file__).resolve().parents[3]


def instance(number: int, *, patient_id: str = "MRN-4711-X", rows: int = 8) -> bytes:
    """Return an instance whose SOP Instance UID ends in ``number``."""
    ds = ct(patient_id, rows=rows)
    ds.SOPInstanceUID = f"1.3.6.1.4.1.99999.7.100.{number}"
    return encode(ds)


def filled(folder: Path, count: int) -> Path:
    """Make a folder of ``count`` instances of two patients, in two folders."""
    for number in range(count):
        path = folder / f"P{number % 2}" / f"{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(instance(number, patient_id=f"MRN-815{number % 2}-X"))
    return folder


def run(source: Path, target: Path, **options: Any) -> Report:
    """Run with keys that are kept."""
    return deidentify_tree(source, target, options.pop("context", DEFAULT), resumable=True, **options)


def outcomes(report: Report) -> dict[str, str]:
    """Return outcome, or reason's code, by source."""
    return {entry.source: entry.code or entry.outcome for entry in report.files}


def tree(target: Path) -> dict[str, bytes]:
    """Return the files of OUT that are no record of the run."""
    files = (path for path in target.rglob("*") if path.is_file())
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith(FOLDER)}


def unfinished(target: Path) -> list[str]:
    """Return the names of files that were begun."""
    return [path.name for path in target.rglob("*.part")]


def command(
    *arguments: object, prefix: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``cloister deidentify`` as a process of its own."""
    argv = [*prefix, sys.executable, "-m", "appliance.cli", "deidentify", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT, **options)
