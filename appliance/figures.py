"""What the node's processes measure, for Prometheus: histograms and counters over all of them.

Each process counts in its memory and leaves what it counted in a file of its own, with its signs of life. Who
is asked for the figures adds the files up. What a process counted that is gone is folded into one file, so
that nothing counts down. Label values are bounded: services, status classes, models, destinations.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from appliance import node, owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from prometheus_client.core import Metric

    from appliance.settings import Settings

Series = tuple[str, tuple[str, ...]]  # name of a figure, values of its labels

PAST: Final = "past.json"
MAX_SERIES: Final = 200  # of one figure; further ones count together
OTHERS: Final = "others"

_FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SLOW: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
_SIZES: Final = tuple(float(1 << exponent) for exponent in range(14, 33, 2))  # 16 KiB to 4 GiB


@dataclass(frozen=True)
class Figure:
    """A histogram, or without bounds a counter."""

    name: str
    words: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Return how many numbers a series has: a bucket each, the rest, the sum; a counter has one."""
        return len(self.bounds) + 2 if self.bounds else 1


RECEIVE_SECONDS: Final = Figure(
    "cloister_receive_seconds", "C-STORE: from the request for an instance until it is durable", (), _FAST
)
RECEIVE_BYTES: Final = Figure("cloister_receive_bytes", "Size of the data sets received", (), _SIZES)
FILING_SECONDS: Final = Figure(
    "cloister_filing_seconds", "From the receipt of an instance until it is filed", (), _FAST
)
ASSEMBLY_SECONDS: Final = Figure(
    "cloister_assembly_seconds", "From the last instance of a study until it is assembled", (), _SLOW
)
INFERENCE_SECONDS: Final = Figure(
    "cloister_inference_seconds", "One model on one study, results included", ("model",), _LONG
)
DELIVERY_SECONDS: Final = Figure(
    "cloister_delivery_seconds",
    "From the making of a result until its destination has it",
    ("destination",),
    _SLOW,
)
DICOMWEB_SECONDS: Final = Figure(
    "cloister_dicomweb_seconds", "Requests of DICOMweb until their answer's end", ("service", "status"), _FAST
)
DIMSE_SECONDS: Final = Figure(
    "cloister_dimse_seconds", "Requests of DIMSE services until their last response", ("service",), _FAST
)
ASSOCIATIONS: Final = Figure("cloister_associations_total", "Associations asked for", ("outcome",))
REFUSED: Final = Figure("cloister_instances_refused_total", "Instances answered with a failure", ("status",))

FIGURES: Final = (
    RECEIVE_SECONDS,
    RECEIVE_BYTES,
    FILING_SECONDS,
    ASSEMBLY_SECONDS,
    INFERENCE_SECONDS,
    DELIVERY_SECONDS,
    DICOMWEB_SECONDS,
    DIMSE_SECONDS,
    ASSOCIATIONS,
    REFUSED,
)
_BY_NAME: Final = {figure.name: figure for figure in FIGURES}


@dataclass
class Book:
    """What one process counted."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    series: dict[Series, list[float]] = field(default_factory=dict)
    changed: bool = False
    name: str = ""  # of the file

    def add(self, figure: Figure, value: float, labels: tuple[str, ...]) -> None:
        """Count a value; of a counter, add it."""
        with self.lock:
            numbers = self._numbers(figure, labels)
            if figure.bounds:
                numbers[bisect_left(figure.bounds, value)] += 1
            numbers[-1] += value
            self.changed = True

    def forget(self) -> None:
        """Begin anew: in a forked child what the parent counted is the parent's, and its lock may be held."""
        self.lock, self.series, self.changed, self.name = threading.Lock(), {}, False, ""

    def _numbers(self, figure: Figure, labels: tuple[str, ...]) -> list[float]:
        found = self.series.get((figure.name, labels))
        if found is None:
            if sum(name == figure.name for name, _ in self.series) >= MAX_SERIES:
                labels = (OTHERS,) * len(labels)
            found = self.series.setdefault((figure.name, labels), [0.0] * figure.width)
        return found


_BOOK: Final = Book()


os.register_at_fork(after_in_child=_BOOK.forget)


def observe(figure: Figure, value: float, *labels: str) -> None:
    """Count one value of a histogram, or add to a counter; quick, and never waits for a disk."""
    _BOOK.add(figure, value, labels)


@contextlib.contextmanager
def timed(figure: Figure, *labels: str) -> Iterator[None]:
    """Count the seconds that the block takes, whatever its end."""
    began = time.monotonic()
    try:
        yield
    finally:
        observe(figure, time.monotonic() - began, *labels)


def folder_of(settings: Settings) -> Path:
    """Return where the files lie."""
    return node.run_dir(settings) / "metrics"


def flush(folder: Path) -> None:
    """Leave what this process counted, if anything is new; a disk that takes nothing is asked again later."""
    with _BOOK.lock:
        if not _BOOK.changed:
            return
        _BOOK.changed = False
        pid = os.getpid()
        _BOOK.name = _BOOK.name or f"{pid}-{time.time_ns():x}.json"
        content = {"pid": pid, "started": owners.started(pid), "series": _rows(_BOOK.series)}
        name = _BOOK.name
    try:
        _write(folder, name, content)
    except OSError:
        with _BOOK.lock:
            _BOOK.changed = True


def collected(folder: Path) -> dict[Series, list[float]]:
    """Return what all processes counted together, those that are gone among them."""
    contents = {path.name: _read(path) for path in _files(folder)}
    past = _read(folder / PAST)  # last: what is folded meanwhile stands there, and names itself
    folded = set(past.get("folded", ()))
    return _sum([past, *(content for name, content in contents.items() if name not in folded)])


def fold(folder: Path) -> int:
    """Fold the files of processes that are gone into one; return how many there were.

    The file of the past names what it holds: a crash before the others are removed counts nothing twice. One
    process alone does this.
    """
    past = _read(folder / PAST)
    known = {name for name in past.get("folded", ()) if (folder / name).exists()}
    gone = [path for path in _files(folder) if path.name not in known and _is_gone(_read(path))]
    if gone:
        series = _sum([past, *(_read(path) for path in gone)])
        names = sorted({*known, *(path.name for path in gone)})
        try:
            _write(folder, PAST, {"folded": names, "series": _rows(series)})
        except OSError:
            return 0
        known = set(names)
    for name in known:
        (folder / name).unlink(missing_ok=True)
    return len(gone)


def families(series: Mapping[Series, list[float]]) -> Iterable[Metric]:
    """Return the figures as Prometheus has them."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily  # noqa: PLC0415 - who is asked

    for figure in FIGURES:
        found = sorted((labels, numbers) for (name, labels), numbers in series.items() if name == figure.name)
        if not figure.bounds:
            counter = CounterMetricFamily(figure.name, figure.words, labels=figure.labels)
            for labels, numbers in found:
                counter.add_metric(labels, numbers[0])
            yield counter
            continue
        histogram = HistogramMetricFamily(figure.name, figure.words, labels=figure.labels)
        for labels, numbers in found:
            histogram.add_metric(labels, _buckets(figure, numbers), sum_value=numbers[-1])
        yield histogram


def _buckets(figure: Figure, numbers: list[float]) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts them: each with all below it."""
    found, total = [], 0.0
    for bound, number in zip((*figure.bounds, float("inf")), numbers[:-1], strict=True):
        total += number
        found.append(("+Inf" if bound == float("inf") else repr(bound), total))
    return found


def _rows(series: Mapping[Series, list[float]]) -> list[list[Any]]:
    return [[name, list(labels), list(numbers)] for (name, labels), numbers in series.items()]


def _sum(contents: Iterable[Mapping[str, Any]]) -> dict[Series, list[float]]:
    """Add up; what does not fit a figure of today, such as that of another edition, is left out."""
    total: dict[Series, list[float]] = {}
    for content in contents:
        for name, labels, numbers in content.get("series", ()):
            figure = _BY_NAME.get(name)
            if figure is None or len(labels) != len(figure.labels) or len(numbers) != figure.width:
                continue
            known = total.setdefault((name, tuple(labels)), [0.0] * figure.width)
            known[:] = [one + other for one, other in zip(known, numbers, strict=True)]
    return total


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name != PAST)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(folder / name)


def _is_gone(content: Mapping[str, Any]) -> bool:
    return "pid" in content and owners.started(int(content["pid"])) != content.get("started")
