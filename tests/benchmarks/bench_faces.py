"""How much of the face and of the brain is removed from heads of known anatomy, and how long it takes.

Heads are drawn at random (``tests/anonymizer/heads.py``) and scanned as CT and MR in random pose, orientation
and spacing (``tests/anonymizer/scans.py``). Wanted: no pixel of any brain, 99 % of the skin between the brows
and the chin over all heads, and every landmark (eyes, nose, lips, chin). Heads that are refused are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Final

from anonymizer.errors import StopError
from tests.anonymizer import heads, scans
from tests.anonymizer.faces import Removal, removal

HEADS: Final = 8
CONTRASTS: Final = ("CT", "T1", "T2", "FLAIR", "FATSAT")
ORIENTATIONS: Final = ("axial", "sagittal", "coronal")
TURN_DEG: Final = 20.0
WANTED_FACE: Final = 0.99


def scan_of(number: int) -> tuple[heads.Head, scans.Scan]:
    """Return the head of a number and how it is scanned."""
    random = Random(number)  # noqa: S311 - the same heads each time
    head = heads.drawn(random)
    scan = scans.Scan(
        contrast=CONTRASTS[number % len(CONTRASTS)],
        orientation=ORIENTATIONS[number // len(CONTRASTS) % len(ORIENTATIONS)],
        turn_deg=(
            random.uniform(-TURN_DEG, TURN_DEG),
            random.uniform(-15, 15),
            random.uniform(-TURN_DEG, TURN_DEG),
        ),
        gap_mm=random.choice([2.5, 4.0, 5.0]),
        noise=random.uniform(0.01, 0.06),
        bias=random.uniform(0.0, 0.4),
        seed=number,
    )
    return head, scan


def run(json_path: Path | None = None, count: int = HEADS) -> dict[str, Any]:
    """Measure, write the figures to ``json_path`` if given, and return them."""
    rows: list[dict[str, Any]] = []
    found: list[Removal] = []
    seconds: list[float] = []
    refused = 0
    for number in range(count):
        head, scan = scan_of(number)
        shown = list(scans.slices(head, scan))
        started = time.perf_counter()
        row: dict[str, Any] = {"contrast": scan.contrast, "orientation": scan.orientation}
        try:
            one = removal(head, scan, shown)
        except StopError as error:
            refused += 1
            rows.append({**row, "refused": str(error)})
            continue
        seconds.append(time.perf_counter() - started)
        found.append(one)
        rows.append(
            {**row, "brain_pixels": one.brain, "face": round(one.face, 4), "left": sorted(one.landmarks_left)}
        )
    figures: dict[str, Any] = {
        "heads": count,
        "refused": refused,
        "brain_pixels_removed": sum(one.brain for one in found),
        "brain_pixels": sum(one.brain_of for one in found),
        "face_mean": round(statistics.fmean(one.face for one in found), 4),
        "face_least": round(min(one.face for one in found), 4),
        "landmarks_left": sum(len(one.landmarks_left) for one in found),
        "head_removed_mean": round(statistics.fmean(one.of_head for one in found), 4),
        "seconds_per_series": round(statistics.median(seconds), 2),
        "each": rows,
    }
    figures["ok"] = (
        figures["brain_pixels_removed"] == 0
        and figures["face_mean"] >= WANTED_FACE
        and figures["landmarks_left"] == 0
        and refused <= count // 8
    )
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main() -> int:
    """Run from the command line: ``python -m tests.benchmarks.bench_faces [--json FILE] [--heads N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--heads", type=int, default=HEADS)
    given = parser.parse_args()
    figures = run(given.json, given.heads)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
