"""What a local cohort looks like to a task before anybody approves it: counts, repeats, leakage, time.

Repeats are looked for in the pictures as the network sees them, after preprocessing. *Identical* are those
with equal arrays (SHA-256 of the bytes). *Similar* are those whose difference hashes (64 bits: is each of 8
by 8 blocks brighter than its left neighbour) differ in at most ``HASH_DISTANCE`` bits and whose pictures,
averaged to at most 32 by 32 blocks, correlate by ``CORRELATION`` or more. The second condition is there
because radiographs of one region resemble one another. Of volumes the middle slice is compared for
similarity, the whole for identity.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer import peers
from trainer.local_round import local_round
from trainer.networks import initial_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.datasets import Dataset, Samples
    from trainer.federation.plan import Plan
    from trainer.ports import Progress

HASH_DISTANCE: Final = 4
CORRELATION: Final = 0.99
MAX_COMPARED: Final = 20_000
MEASURED_STEPS: Final = 6
FEW_CASES: Final = 10  # of the rarer class, or healthy ones, in the training part
_EDGE: Final = 32
_CHUNK: Final = 256


@dataclass(frozen=True)
class Part:
    """Cases of one side of the split; of masks ``positive`` are those in which something is marked."""

    cases: int
    positive: int
    negative: int
    subjects: int


@dataclass(frozen=True)
class Repeats:
    """Pictures that repeat another; ``compared`` of all were looked at.

    ``identical`` and ``similar`` count pictures that have such a partner, ``of_other_subjects`` those among
    them whose partner is another subject's, ``across_split`` training pictures whose partner is held out.
    """

    compared: int
    identical: int
    similar: int
    of_other_subjects: int
    across_split: int


@dataclass(frozen=True)
class Timing:
    """Measured on this machine on a few steps, with what a round and the whole run would then take."""

    measured_steps: int
    prepare_seconds: float
    evaluate_seconds: float
    step_seconds: float
    round_seconds: float
    run_hours: float


@dataclass(frozen=True)
class Report:
    """What stands in the preflight; ``warnings`` are codes, and none of it names an instance or a person.

    ``segments``: by code, in how many training cases something is marked; None but of a segmentation.
    ``healthy`` says that training is on healthy pictures alone.
    """

    train: Part
    held_out: Part
    skipped: Mapping[str, int]
    repeats: Repeats
    subjects_on_both_sides: int
    timing: Timing | None
    warnings: tuple[str, ...]
    segments: Mapping[str, int] | None = None
    healthy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        content = {**asdict(self), "skipped": dict(self.skipped), "warnings": list(self.warnings)}
        if self.segments is None:
            del content["segments"]
        if not self.healthy:
            del content["healthy"]
        return content


def examine(plan: Plan, dataset: Dataset, prepare_seconds: float, progress: Progress) -> Report:
    """Look at a dataset as the plan's task would use it.

    Parameters
    ----------
    plan : Plan
        Task, strategy, rounds and limits.
    dataset : Dataset
        Of :func:`trainer.datasets.build` for the plan's task.
    prepare_seconds : float
        What building it took, with its pictures prepared before as they are from the second round on.
    progress : Progress
        Called with stages ``compare``, ``evaluate`` and ``train``.

    Raises
    ------
    TrainerError
        If the plan's network cannot be built or trained.
    """
    train, held_out = _part(dataset.train), _part(dataset.validation)
    both = set(dataset.train.pseudonyms) & set(dataset.validation.pseudonyms)
    found = repeats(dataset, progress)
    timing = _timing(plan, dataset, prepare_seconds, progress) if train.cases else None
    marked = _segments(plan, dataset.train)
    healthy = plan.task.anomaly is not None
    report = Report(train, held_out, dict(dataset.skipped), found, len(both), timing, (), marked, healthy)
    return replace(report, warnings=_warnings(plan, report))


def repeats(dataset: Dataset, progress: Progress) -> Repeats:
    """Count pictures that repeat another one; see the module for the method."""
    x = np.concatenate([dataset.train.x, dataset.validation.x])[:MAX_COMPARED, 0]
    owners = np.array([*dataset.train.pseudonyms, *dataset.validation.pseudonyms], dtype=object)[: len(x)]
    is_train = np.arange(len(x)) < len(dataset.train)
    same = _identical(x)
    alike = _similar(x if x.ndim == 3 else x[:, x.shape[1] // 2], progress) - same
    pairs = sorted(same | alike)
    other = {i for pair in pairs for i in pair if owners[pair[0]] != owners[pair[1]]}
    across = {min(pair) for pair in pairs if is_train[min(pair)] != is_train[max(pair)]}
    return Repeats(
        compared=len(x),
        identical=len({i for pair in same for i in pair}),
        similar=len({i for pair in alike for i in pair}),
        of_other_subjects=len(other),
        across_split=len(across),
    )


def _identical(x: NDArray[np.float32]) -> set[tuple[int, int]]:
    """Return pairs of equal arrays: each with the first of its kind, and neighbours across the split."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, array in enumerate(x):
        groups[hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()].append(position)
    return {(i, j) for group in groups.values() for i in group[:_CHUNK] for j in group if i < j}


def _similar(x: NDArray[np.float32], progress: Progress) -> set[tuple[int, int]]:
    if len(x) < 2:
        return set()
    hashes, small = difference_hashes(x), _unit(_blocks(x, _EDGE, _EDGE))
    found: set[tuple[int, int]] = set()
    for first in range(0, len(x), _CHUNK):
        chunk = hashes[first : first + _CHUNK, None] ^ hashes[None, :]
        rows, columns = np.nonzero(np.bitwise_count(chunk) <= HASH_DISTANCE)
        rows = rows + first
        later = rows < columns
        rows, columns = rows[later], columns[later]
        for start in range(0, len(rows), _CHUNK * 64):
            i, j = rows[start : start + _CHUNK * 64], columns[start : start + _CHUNK * 64]
            near = np.einsum("nk,nk->n", small[i], small[j]) >= CORRELATION
            found.update(zip(i[near].tolist(), j[near].tolist(), strict=True))
        progress("compare", min(first + _CHUNK, len(x)), len(x))
    return found


def difference_hashes(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a 64-bit difference hash of each picture, shape (n,).

    Parameters
    ----------
    x : ndarray
        Shape (n, rows, columns), both edges 8 or more.
    """
    wide = np.repeat(x, 2, axis=2) if x.shape[2] < 9 else x
    blocks = _blocks(wide, 8, 9)
    bits = (blocks[:, :, 1:] > blocks[:, :, :-1]).reshape(len(x), 64)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def _blocks(x: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Average pictures over at most so many blocks of nearly equal size."""
    for axis, count in ((1, rows), (2, columns)):
        edge = x.shape[axis]
        bounds = np.linspace(0, edge, min(count, edge) + 1).astype(int)
        sums = np.add.reduceat(x, bounds[:-1], axis=axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        x = (sums / np.diff(bounds).reshape(shape)).astype(np.float32)
    return x


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pictures as rows of mean zero and length one; a constant one stays zero."""
    flat = x.reshape(len(x), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(length > 0, length, 1), dtype=np.float32)


@dataclass
class _Stopwatch:
    """Notes when each stage of a local round reports."""

    inner: Progress
    started: float = field(default_factory=time.perf_counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.times[stage].append(time.perf_counter())
        self.inner(stage, done, total)


def _timing(plan: Plan, dataset: Dataset, prepare_seconds: float, progress: Progress) -> Timing:
    """Do a short round, as long as the first steps of a real one, and scale it up."""
    task, steps = plan.task, min(MEASURED_STEPS, plan.task.local.local_steps)
    short = replace(task, local=replace(task.local, local_steps=steps))
    weights = peers.terms(plan.strategy.name).prepared(initial_weights(task, plan.seed))
    watch = _Stopwatch(progress)
    local_round(
        short,
        weights,
        dataset,
        strategy=plan.strategy.name,
        strategy_parameters=plan.strategy.parameters,
        seed=plan.seed,
        progress=watch,
    )
    evaluated = watch.times["evaluate"][-1:] or [watch.started]
    trained = watch.times["train"]
    evaluate_seconds = evaluated[0] - watch.started
    # The first step warms up; some strategies train more than one model, and so report more steps.
    step_seconds = (
        (trained[-1] - trained[0]) / (len(trained) - 1) if len(trained) > 1 else trained[0] - evaluated[0]
    )
    steps_per_round = task.local.local_steps * len(trained) / steps
    round_seconds = prepare_seconds + evaluate_seconds + steps_per_round * step_seconds
    return Timing(
        measured_steps=len(trained),
        prepare_seconds=round(prepare_seconds, 3),
        evaluate_seconds=round(evaluate_seconds, 3),
        step_seconds=round(step_seconds, 4),
        round_seconds=round(round_seconds, 2),
        run_hours=round(round_seconds * plan.total_rounds / 3600, 4),
    )


def _part(samples: Samples) -> Part:
    positive = samples.positives
    return Part(len(samples), positive, len(samples) - positive, len(set(samples.pseudonyms)))


def _segments(plan: Plan, samples: Samples) -> dict[str, int] | None:
    """Count the training cases of each segment."""
    spec = plan.task.segmentation
    if spec is None:
        return None
    return {
        segment.code: sum(bool((mask == number).any()) for mask in samples.y)
        for number, segment in enumerate(spec.segments, start=1)
    }


def _content_rules(report: Report) -> tuple[tuple[str, bool], ...]:
    """Return what may be wrong with labels, masks or the lack of them."""
    train, held_out = report.train, report.held_out
    if report.healthy:
        return (
            ("few_healthy_to_train_on", 0 < train.cases < FEW_CASES),
            ("nothing_healthy_in_held_out", held_out.negative == 0),
            ("nothing_marked_in_held_out", held_out.positive == 0),
        )
    if report.segments is None:
        return (
            ("one_class_to_train_on", train.cases > 0 and min(train.positive, train.negative) == 0),
            ("few_of_one_class", 0 < min(train.positive, train.negative) < FEW_CASES),
            ("held_out_cannot_be_measured", min(held_out.positive, held_out.negative) == 0),
        )
    fewest = min(report.segments.values())
    return (
        ("segment_missing", train.cases > 0 and fewest == 0),
        ("few_cases_of_a_segment", 0 < fewest < FEW_CASES),
        ("nothing_marked_in_held_out", held_out.positive == 0),
    )


def _warnings(plan: Plan, report: Report) -> tuple[str, ...]:
    train, held_out, timing = report.train, report.held_out, report.timing
    rules = (
        ("cohort_too_small", train.subjects + held_out.subjects < plan.minimum_cohort),
        ("nothing_to_train_on", train.cases == 0),
        *_content_rules(report),
        ("subjects_on_both_sides", report.subjects_on_both_sides > 0),
        ("pictures_on_both_sides", report.repeats.across_split > 0),
        ("pictures_of_other_subjects_repeat", report.repeats.of_other_subjects > 0),
        (
            "hours_do_not_suffice",
            timing is not None and plan.max_hours is not None and timing.run_hours > plan.max_hours,
        ),
        (
            "rounds_too_slow",
            timing is not None and timing.round_seconds > plan.round_timeout_s,
        ),
    )
    return tuple(code for code, holds in rules if holds)
