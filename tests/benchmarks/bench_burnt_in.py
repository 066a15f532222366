"""How much of the text burnt into pictures is found, how much is masked without text, and how long it takes.

Text is drawn over real images (``tests/anonymizer/burnt_text.py``): faces, sizes, brightness, places,
outlines and scripts at random, with fixed seeds. A line counts as found when boxes cover 80 % of its letters'
rectangle. Lines of less than 30 % contrast are counted apart: a person reads them with effort.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from anonymizer import burnt_in, part10, regions
from anonymizer.boxes import Box
from anonymizer.burnt_in import PixelOptions
from tests.anonymizer import burnt_text

if TYPE_CHECKING:
    from tests.anonymizer.burnt_text import Line

SEEDS: Final = 4
LINES: Final = 6
COVERED: Final = 0.8
DETECTION: Final = PixelOptions(regions=(), ultrasound_regions=False)
READING: Final = PixelOptions(regions=(), ultrasound_regions=False, read=True)
TABLE: Final = PixelOptions(detect_text=False, ultrasound_regions=False)
WANTED_RECALL, WANTED_FALSE_AREA = 0.97, 0.02
WANTED_READ: Final = (
    0.9  # of the lines in radiographs, those of scripts that the reader does not know included
)
RADIOGRAPHS: Final = ("dx_image.dcm", "RG1_J2KI.dcm", "RG2_JLSN", "RG3_JLSL")
TEMPLATES: Final = ("US1_UNCR.dcm", "OBXXXX1A.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm")


def boxes_of(content: bytes, options: PixelOptions) -> tuple[list[Box], float]:
    """Return what is masked in a file, and the seconds that it took."""
    file = part10.read(content)
    item = {tag: element for tag, element in file.item.items() if not 0x50000000 <= tag < 0x7FE00000}
    item.pop(0x00880200, None)
    started = time.perf_counter()
    cleaned = burnt_in.clean(file.item, item, file.transfer_syntax_uid, file.syntax, options)
    return list(cleaned.boxes), time.perf_counter() - started


def _area(found: list[Box], shape: tuple[int, int]) -> float:
    return burnt_text.covered(Box(0, 0, shape[1], shape[0]), found, shape)


def _image(name: str, seed: int | None) -> tuple[bytes, list[Line], tuple[int, int]]:
    """Return a real image of one frame with lines drawn into it; without a seed as it is."""
    ds, values = burnt_text.one_frame(name)
    lines: list[Line] = []
    if seed is not None:
        largest = 2.0 ** (int(ds.BitsStored) - int(ds.PixelRepresentation)) - 1
        lines = burnt_text.draw(values, Random(f"{name}{seed}"), LINES, largest=largest)  # noqa: S311
    return burnt_text.encoded(ds, values), lines, (values.shape[0], values.shape[1])


def _detected(seeds: int) -> dict[str, Any]:
    found: defaultdict[str, list[bool]] = defaultdict(list)
    seconds: list[float] = []
    for kind, name in {**burnt_text.WITHOUT_TEXT, **burnt_text.WITH_TEXT}.items():
        for seed in range(seeds):
            content, lines, shape = _image(name, seed)
            boxes, took = boxes_of(content, DETECTION)
            seconds.append(took)
            for line in lines:
                hit = burnt_text.covered(line.box, boxes, shape) >= COVERED
                readable = line.contrast != "faint"
                for group in (line.contrast, *((kind, line.script, "lines") if readable else ())):
                    found[group].append(hit)
    return {
        "lines": len(found["lines"]),
        "recall": round(statistics.fmean(found["lines"]), 4),
        "recall_by_group": {
            group: [round(statistics.fmean(hits), 3), len(hits)] for group, hits in sorted(found.items())
        },
        "seconds_per_image": {
            "median": round(statistics.median(seconds), 2),
            "mean": round(statistics.fmean(seconds), 2),
            "largest": round(max(seconds), 2),
        },
    }


def _false_area() -> dict[str, Any]:
    by_kind: dict[str, float] = {}
    for kind, name in burnt_text.WITHOUT_TEXT.items():
        content, _, shape = _image(name, None)
        by_kind[kind] = round(_area(boxes_of(content, DETECTION)[0], shape), 4)
    return {"mean": round(statistics.fmean(by_kind.values()), 4), "by_image": by_kind}


def _radiographs(seeds: int) -> dict[str, Any]:
    """Return which lines are masked in radiographs, where only what can be read is; and what is without."""
    hits: list[bool] = []
    seconds: list[float] = []
    false_area: list[float] = []
    for name in RADIOGRAPHS:
        content, _, shape = _image(name, None)
        boxes, took = boxes_of(content, READING)
        false_area.append(round(_area(boxes, shape), 4))
        seconds.append(took)
        for seed in range(seeds):
            content, lines, shape = _image(name, seed)
            boxes, _ = boxes_of(content, READING)
            hits += [burnt_text.covered(line.box, boxes, shape) >= COVERED for line in lines]
    return {
        "lines": len(hits),
        "recall": round(statistics.fmean(hits), 4),
        "false_area": max(false_area),
        "seconds_without_text": round(statistics.median(seconds), 2),
    }


def _templated() -> dict[str, Any]:
    """Return which part of the regions of the table is masked on real images of their machines."""
    found: list[float] = []
    for name in TEMPLATES:
        boxes = boxes_of(burnt_text.path_of(name).read_bytes(), TABLE)[0]
        ds = burnt_text.header_of(name)
        machine = (str(ds.Modality), str(ds.Manufacturer), str(ds.ManufacturerModelName))
        shape = (int(ds.Rows), int(ds.Columns))
        rows = [row for row in regions.known() if row.fits(machine, *shape)]
        found += [burnt_text.covered(box, boxes, shape) for row in rows for box in row.boxes]
    return {"regions": len(found), "covered": min(found)}


def run(json_path: Path | None = None, seeds: int = SEEDS) -> dict[str, Any]:
    """Measure, write the figures to ``json_path`` if given, and return them."""
    figures: dict[str, Any] = {
        "detection": _detected(seeds),
        "radiographs": _radiographs(seeds),
        "false_mask_area": _false_area(),
        "templated_regions": _templated(),
    }
    figures["ok"] = (
        figures["detection"]["recall"] >= WANTED_RECALL
        and figures["false_mask_area"]["mean"] < WANTED_FALSE_AREA
        and figures["radiographs"]["recall"] >= WANTED_READ
        and figures["radiographs"]["false_area"] < WANTED_FALSE_AREA
        and figures["templated_regions"]["covered"] == 1
    )
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main() -> int:
    """Run from the command line: ``python -m tests.benchmarks.bench_burnt_in [--json FILE] [--seeds N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    figures = run(given.json, given.seeds)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
