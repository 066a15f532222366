"""Instances per second that are de-identified: Cloister beside other tools, in the same run.

CT and MR are real instances, the 15 MB DX and the 500 MB multi-frame are drawn. Each tool reads a file,
de-identifies by its defaults and writes a file, on one core; none syncs. The tools take turns on every file,
so that a busy machine is as unkind to one as to the others. What they do differs: Cloister also looks into
the pixel data, hashes the outcome and has it checked independently; dcmodify erases a list of attributes at
the top level, and its time holds the start of a program. How many of the original's identifiers the outcomes
still hold is counted too, outside of the clock.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
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
ROUNDS_OF_LARGE: Final = 1
MANY: Final = 20
CONTEXT: Final = Context(ProjectKeys.derive(b"b" * 32, "bench"), "bench")
SHARED: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
DX, XA = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.12.1"
MINIMUM_BYTES: Final = 250_000
DCMODIFY: Final = Path("/usr/bin/dcmodify")
ERASED: Final = (
    "0008,0050", "0008,0080", "0008,0081", "0008,0090", "0008,1010", "0008,1030", "0008,103e", "0008,1070",
    "0010,0030", "0010,1000", "0010,1040", "0010,2160", "0010,4000", "0018,1000", "0018,1030", "0020,4000",
)  # fmt: skip


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


def _deid() -> Tool:
    from deid.dicom import get_identifiers, replace_identifiers  # noqa: PLC0415 - an optional dependency

    def run(source: Path, target: Path) -> None:
        found = get_identifiers([str(source)])
        (cleaned,) = replace_identifiers(dicom_files=[str(source)], ids=found, save=False)
        cleaned.save_as(target)

    return run


def _dcmodify(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    erase = [word for tag in ERASED for word in ("-ea", f"({tag})")]
    identity = ["-ma", "(0010,0010)=X", "-ma", "(0010,0020)=X"]
    command = [str(DCMODIFY), "-nb", "-imt", *identity, *erase, "-gst", "-gse", "-gin", "-ep", str(target)]
    subprocess.run(command, check=True, capture_output=True)


def _tools() -> dict[str, Tool]:
    made: dict[str, Tool] = {"cloister": _cloister}
    optional = (("dicognito", _dicognito), ("dicom-anonymizer", _dicom_anonymizer), ("deid", _deid))
    for name, make in optional:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        made[name] = make()
    if DCMODIFY.is_file():
        made["dcmodify"] = _dcmodify
    return made


def _scenarios(folder: Path) -> dict[str, tuple[list[Path], str, int]]:
    """Return files, where they come from, and rounds, by kind of instance."""
    found: dict[str, tuple[list[Path], str, int]] = {}
    for name, uid in (("ct", CT), ("mr", MR)):
        files = _real(uid, folder)
        found[name] = (
            (files, "real", ROUNDS) if files else ([_drawn(folder, name, uid, 512, 1)], "drawn", ROUNDS)
        )
    found["dx of 15 MB"] = ([_drawn(folder, "dx", DX, 2740, 1)], "drawn", ROUNDS)
    found["multi-frame of 500 MB"] = ([_drawn(folder, "xa", XA, 512, 954)], "drawn", ROUNDS_OF_LARGE)
    return found


def _real(uid: str, folder: Path) -> list[Path]:
    if not SHARED.is_dir():
        return []
    found = [path for path in sorted(SHARED.rglob("*")) if _is_of(path, uid)]
    probe = folder / "probe"
    usable = [path for path in found if isinstance(deidentify_file(path, probe, CONTEXT), Released)]
    return usable[:: max(len(usable) // MANY, 1)][:MANY]


def _is_of(path: Path, uid: str) -> bool:
    if not path.is_file() or path.stat().st_size < MINIMUM_BYTES:
        return False
    header = dcmread(path, force=True, specific_tags=["SOPClassUID"], stop_before_pixels=True)
    return str(header.get("SOPClassUID", "")) == uid


def _drawn(folder: Path, name: str, uid: str, size: int, frames: int) -> Path:
    ds = ct(rows=size, columns=size)
    ds.SOPClassUID = uid
    if frames > 1:
        ds.NumberOfFrames = str(frames)
        ds.PixelData = ds.PixelData * frames
    path = folder / f"{name}-in.dcm"
    path.write_bytes(encode(ds))
    return path


def _measure(tools: Mapping[str, Tool], files: list[Path], rounds: int, folder: Path) -> dict[str, Any]:
    took: dict[str, list[float]] = {name: [] for name in tools}
    failed: dict[str, int] = dict.fromkeys(tools, 0)
    for number in range(rounds + 1):
        for path in files:
            for name, tool in tools.items():
                seconds = _clock(partial(tool, path, folder / f"{name}.dcm"))
                if seconds is None:
                    failed[name] += 1
                elif number:  # the first round warms up
                    took[name].append(seconds * 1000)
    medians = {name: statistics.median(values) for name, values in took.items() if values}
    return {
        name: {
            "median_ms": round(median, 2),
            "instances_per_s": round(1000 / median, 1),
            "cloister_is_faster_by": round(median / medians["cloister"], 2),
            "failed": failed[name],
        }
        for name, median in medians.items()
    }


def _clock(work: Callable[[], object]) -> float | None:
    """Return the seconds that some work took, or None when it failed."""
    started = time.perf_counter()
    try:
        work()
    except (
        AttributeError, KeyError, NotImplementedError, OSError, TypeError, ValueError,
        subprocess.SubprocessError,
    ):  # fmt: skip
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        run = subprocess.run([str(DCMODIFY), "--version"], capture_output=True, text=True, check=True)
        return run.stdout.split()[2]


def run(json_path: Path | None = None) -> dict[str, Any]:
    """Measure, write the figures to ``json_path`` if given, and return them."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, tools = Path(name), _tools()
        figures: dict[str, Any] = {"versions": {tool: _version(tool) for tool in tools}}
        for kind, (files, origin, rounds) in _scenarios(folder).items():
            figures[kind] = {
                "instances": len(files),
                "instances_are": origin,
                "mean_bytes": round(statistics.fmean(path.stat().st_size for path in files)),
                "rounds": rounds,
                "tools": _measure(tools, files, rounds, folder),
            }
            if origin == "real":
                figures[kind]["places_with_residue"] = _residues(tools, files, folder)
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
