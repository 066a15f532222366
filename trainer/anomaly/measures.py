"""How well residuals show anomalies: Dice at a threshold from healthy pictures, and precision over recall."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.metrics import Interval
from trainer.segmentation.dice import dice, mean_of_subjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class AnomalyMetrics:
    """Figures of one model on one set of cases; a figure that no case defines is None.

    ``anomalous`` counts cases in which a mask marks something. ``threshold`` and ``healthy_error``, the mean
    residual, come of the others. ``dice`` and ``average_precision`` (area under precision over recall, of the
    pixels of each anomalous case) are means over the patients who have anomalous cases.
    """

    samples: int
    subjects: int
    anomalous: int
    threshold: float | None
    healthy_error: float | None
    dice: Interval | None
    average_precision: Interval | None

    @property
    def auc(self) -> Interval | None:
        """None: the figures of pixels are others."""
        return None

    @property
    def headline(self) -> Interval | None:
        """The figure that stands for all: Dice."""
        return self.dice

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AnomalyMetrics:
        """Read what :meth:`to_json` wrote."""
        intervals = [
            None if content[name] is None else Interval(**content[name])
            for name in ("dice", "average_precision")
        ]
        return cls(
            int(content["samples"]),
            int(content["subjects"]),
            int(content["anomalous"]),
            content["threshold"],
            content["healthy_error"],
            *intervals,
        )


def measure(
    marked: NDArray[np.uint8],
    residuals: NDArray[np.float32],
    healthy_share: float,
    subjects: Sequence[str] = (),
) -> AnomalyMetrics:
    """Measure residuals against masks.

    Parameters
    ----------
    marked : ndarray
        Shape (n, rows, columns); above 0 where there is an anomaly. A case without is healthy.
    residuals : ndarray
        Of the same shape, 0 or more.
    healthy_share : float
        The threshold is where this share of the healthy cases' pixels lies at or below; what is above it is
        called an anomaly. Without a healthy case there is none, and no Dice.
    subjects : sequence of str
        Whose each case is; without, each is another's. Cases of one patient are one observation.
    """
    if marked.shape != residuals.shape:
        raise ValueError("expected residuals of the shape of the masks")
    if not np.all(np.isfinite(residuals)):
        raise ValueError("expected finite residuals")
    owners = tuple(subjects) if len(subjects) == len(marked) else tuple(map(str, range(len(marked))))
    sick = marked.any(axis=tuple(range(1, marked.ndim)))
    healthy = residuals[~sick]
    threshold = float(np.quantile(healthy, healthy_share)) if healthy.size else None
    chosen = np.flatnonzero(sick)
    theirs = tuple(owners[position] for position in chosen)
    truth = (marked[chosen] > 0).astype(np.uint8)
    precision = np.array(
        [average_precision(truth[at], residuals[case]) for at, case in enumerate(chosen)], dtype=np.float64
    )
    overlap = None
    if threshold is not None:
        found = (residuals[chosen] > threshold).astype(np.uint8)
        overlap = mean_of_subjects(dice(truth, found, 1)[:, 0], theirs)
    return AnomalyMetrics(
        samples=len(marked),
        subjects=len(set(owners)),
        anomalous=len(chosen),
        threshold=threshold,
        healthy_error=float(healthy.mean(dtype=np.float64)) if healthy.size else None,
        dice=overlap,
        average_precision=mean_of_subjects(precision, theirs),
    )


def average_precision(truth: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the area under precision over recall as a step function; equal scores are called together.

    Raises
    ------
    ValueError
        If nothing is marked.

    References
    ----------
    Davis and Goadrich, The Relationship Between Precision-Recall and ROC Curves, ICML 2006: why not by
    straight lines.
    """
    y = np.asarray(truth).reshape(-1) > 0
    order = np.argsort(-np.asarray(scores, dtype=np.float64).reshape(-1), kind="stable")
    ranked = np.asarray(scores, dtype=np.float64).reshape(-1)[order]
    if not y.any():
        raise ValueError("expected at least one marked pixel")
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    hits = np.cumsum(y[order])[last]
    recall = np.diff(np.append(0, hits)) / y.sum()
    return float(np.sum(recall * hits / (last + 1)))
