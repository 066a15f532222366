"""How well masks agree, with the uncertainty that a few patients leave."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.metrics import CONFIDENCE, Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.segmentation.spec import Segment


@dataclass(frozen=True)
class SegmentationMetrics:
    """Figures of one model on one set of cases; a figure that no case defines is None.

    ``dice`` is the mean over segments, ``segments`` has that of each by its code. ``empty`` counts cases in
    which nothing is marked.
    """

    samples: int
    subjects: int
    empty: int
    dice: Interval | None
    segments: Mapping[str, Interval | None]

    @property
    def auc(self) -> Interval | None:
        """None: masks have no scores to rank."""
        return None

    @property
    def headline(self) -> Interval | None:
        """The figure that stands for all: Dice."""
        return self.dice

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SegmentationMetrics:
        """Read what :meth:`to_json` wrote."""
        return cls(
            samples=int(content["samples"]),
            subjects=int(content["subjects"]),
            empty=int(content["empty"]),
            dice=_interval(content["dice"]),
            segments={name: _interval(value) for name, value in content["segments"].items()},
        )


def measure(
    truth: NDArray[Any], found: NDArray[Any], segments: Sequence[Segment], subjects: Sequence[str] = ()
) -> SegmentationMetrics:
    """Measure masks against masks.

    Parameters
    ----------
    truth, found : ndarray
        The class of every voxel, shape (n, *size).
    segments : sequence of Segment
        Class 1 onwards.
    subjects : sequence of str
        Whose each case is; without, each is another's. Cases of one patient are one observation.
    """
    if truth.shape != found.shape:
        raise ValueError("expected masks of the same shape")
    owners = tuple(subjects) if len(subjects) == len(truth) else tuple(map(str, range(len(truth))))
    table = dice(truth, found, len(segments))
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in table])
    return SegmentationMetrics(
        samples=len(truth),
        subjects=len(set(owners)),
        empty=int(sum(not mask.any() for mask in truth)),
        dice=mean_of_subjects(means, owners),
        segments={
            one.code: mean_of_subjects(table[:, position], owners) for position, one in enumerate(segments)
        },
    )


def dice(truth: NDArray[Any], found: NDArray[Any], segments: int) -> NDArray[np.float64]:
    """Return Dice of each case and segment, shape (n, segments): twice the common part over both.

    NaN where a segment is in neither mask; 0 where it is in one of them alone.
    """
    table = np.full((len(truth), segments), np.nan)
    for position in range(len(truth)):
        for number in range(1, segments + 1):
            here, there = truth[position] == number, found[position] == number
            both = int(here.sum()) + int(there.sum())
            if both:
                table[position, number - 1] = 2 * int((here & there).sum()) / both
    return table


def mean_of_subjects(
    values: NDArray[np.float64], owners: Sequence[str], confidence: float = CONFIDENCE
) -> Interval | None:
    """Return the mean over patients of their cases' mean, with Student's interval within 0 and 1.

    One patient says nothing about others: the interval is then 0 to 1.
    """
    by_owner: dict[str, list[float]] = defaultdict(list)
    for value, owner in zip(values, owners, strict=True):
        if np.isfinite(value):
            by_owner[owner].append(float(value))
    means = np.array([np.mean(by_owner[owner]) for owner in sorted(by_owner)])
    if not means.size:
        return None
    centre = float(means.mean())
    if means.size == 1:
        return Interval(centre, 0.0, 1.0)
    from scipy.special import stdtrit  # noqa: PLC0415 - every process that trains loads this module

    spread = float(means.std(ddof=1)) / means.size**0.5
    half = float(stdtrit(means.size - 1, 0.5 + confidence / 2)) * spread
    return Interval(centre, max(0.0, centre - half), min(1.0, centre + half))


def _interval(content: Mapping[str, Any] | None) -> Interval | None:
    return None if content is None else Interval(**content)
