"""Milliseconds to de-identify a CT instance: Cloister beside dicognito and dicom-anonymizer in the same run.

Each tool reads a file, de-identifies by its defaults and writes a file; none syncs. The tools take turns on
every file, so that a busy machine is as unkind to one as to the others. What they do differs: Cloister also
looks into the pixel data, searches the outcome for the original's identifiers and hashes it. How many of the
original's identifiers the outcomes still hold is counted too, outside of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydicom import dcmread

from anonymizer.engine import Context, Released, deidentify_file
from anonymizer.keys import ProjectKeys
from anonymizer.uids import well_known
from tests.anonymizer.material import ct, encode
from tests.anonymizer.residue import find_residue, identifiers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Tool = Callable[[Path, Path], object]

ROUNDS: Final = 5
CONTEXT: Final = Context(ProjectKeys.derive(b"b" * 32, "bench"), "bench")
SHARED: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MINIMUM_BYTES: Final = 300_000


def _cloister(source: Path, target: Path) -> object:
    return deidentify_file(source, target, CONTEXT)


def _dicognito() -> Tool:
    from dicognito.anonymizer import Anonymizer  # noqa: PLC0415 - an optional dependency

    anonymizer = Anonymizer(seed="bench")

    def run(source: Path, target: Path) -> None:
        with dcmread(source) as ds:
            anonymizer.anonymize(ds)
            ds.save_as(target)

    return run


def _dicom_anonymizer() -> Tool:
    from dicomanonymizer import anonymize_dicom_file  # noqa: PLC0415 - an optional dependency

    def run(source: Path, target: Path) -> None:
        anonymize_dicom_file(str(source), str(target))

    return run


def _tools() -> dict[str, Tool]:
    made: dict[str, Tool] = {"cloister": _cloister}
    for name, make in (("dicognito", _dicognito), ("dicom-anonymizer", _dicom_anonymizer)):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        made[name] = make()
    return made


def _instances(folder: Path) -> tuple[list[Path], str]:
    """Return CT instances that Cloister releases: real ones, or a drawn one where there are none."""
    found = [path for path in sorted(SHARED.rglob("*")) if _is_ct(path)] if SHARED.is_dir() else []
    probe = folder / "probe"
    usable = [path for path in found if isinstance(deidentify_file(path, probe, CONTEXT), Released)]
    if usable:
        return usable, "real"
    path = folder / "drawn.dcm"
    path.write_bytes(encode(ct(rows=512, columns=512)))
    return [path], "drawn"


def _is_ct(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < MINIMUM_BYTES:
        return False
    header = dcmread(path, force=True, specific_tags=["SOPClassUID"], stop_before_pixels=True)
    return str(header.get("SOPClassUID", "")) == CT_IMAGE


def _measure(tools: Mapping[str, Tool], files: list[Path], folder: Path) -> dict[str, dict[str, Any]]:
    took: dict[str, list[float]] = {name: [] for name in tools}
    failed: dict[str, int] = dict.fromkeys(tools, 0)
    for number in range(ROUNDS + 1):
        for path in files:
            for name, tool in tools.items():
                seconds = _clock(partial(tool, path, folder / f"{name}.dcm"))
                if seconds is None:
                    failed[name] += 1
                elif number:  # the first round warms up
                    took[name].append(seconds * 1000)
    return {
        name: {
            "version": version(name),
            "median_ms": round(statistics.median(values), 2),
            "mean_ms": round(statistics.fmean(values), 2),
            "failed": failed[name],
        }
        for name, values in took.items()
        if values
    }


def _clock(work: Callable[[], object]) -> float | None:
    """Return the seconds that some work took, or None when it failed."""
    started = time.perf_counter()
    try:
        work()
    except (AttributeError, KeyError, NotImplementedError, OSError, TypeError, ValueError):
        return None
    return time.perf_counter() - started


def _residues(tools: Mapping[str, Tool], files: list[Path], folder: Path) -> dict[str, int]:
    """Count the places in each tool's outcomes that still hold an identifier of the original."""
    counts = dict.fromkeys(tools, 0)
    for path in files:
        wanted = identifiers_of(dcmread(path), known=well_known())
        for name, tool in tools.items():
            target = folder / f"{name}.dcm"
            target.unlink(missing_ok=True)
            if _clock(partial(tool, path, target)) is not None and target.is_file():
                counts[name] += len({residue.where for residue in find_residue(target, wanted)})
    return counts


def run(json_path: Path | None = None) -> dict[str, Any]:
    """Measure, write the figures to ``json_path`` if given, and return them."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        files, kind = _instances(folder)
        tools = _tools()
        figures: dict[str, Any] = {
            "instances": len(files),
            "instances_are": kind,
            "mean_bytes": round(statistics.fmean(path.stat().st_size for path in files)),
            "rounds": ROUNDS,
            "tools": _measure(tools, files, folder),
        }
        for tool, count in _residues(tools, files, folder).items():
            figures["tools"][tool]["places_with_residue"] = count
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main() -> int:
    """Run from the command line: ``python -m tests.benchmarks.bench_deidentify [--json FILE]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    sys.stdout.write(json.dumps(run(parser.parse_args().json), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
