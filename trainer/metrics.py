"""How good a classifier is, with the uncertainty that a small validation set leaves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % confidence interval, each 0 to 1."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one set of cases; a figure that no case defines is None."""

    samples: int
    positives: int
    threshold: float
    auc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    log_loss: float | None

    @property
    def headline(self) -> Interval | None:
        """The figure that stands for all: the AUC."""
        return self.auc

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Metrics:
        """Read what :meth:`to_json` wrote."""
        intervals = {
            name: None if content[name] is None else Interval(**content[name])
            for name in ("auc", "sensitivity", "specificity")
        }
        return cls(
            samples=int(content["samples"]),
            positives=int(content["positives"]),
            threshold=float(content["threshold"]),
            log_loss=content["log_loss"],
            **intervals,
        )


def measure(labels: NDArray[Any], scores: NDArray[Any], threshold: float = 0.5) -> Metrics:
    """Measure scores against labels.

    Parameters
    ----------
    labels : ndarray
        Shape (n,), 0 or 1.
    scores : ndarray
        Shape (n,), probabilities 0 to 1; a case counts as called positive at ``threshold`` and above.
    threshold : float
        Decision threshold.
    """
    y = np.asarray(labels).reshape(-1).astype(bool)
    p = np.asarray(scores, dtype=np.float64).reshape(-1)
    if y.shape != p.shape:
        raise ValueError(f"expected as many scores as labels, got {p.size} and {y.size}")
    if not np.all(np.isfinite(p)):
        raise ValueError("expected finite scores")
    positives = int(y.sum())
    negatives = int(y.size) - positives
    called = p >= threshold
    return Metrics(
        samples=int(y.size),
        positives=positives,
        threshold=float(threshold),
        auc=auc(y, p) if positives and negatives else None,
        sensitivity=wilson(int((called & y).sum()), positives) if positives else None,
        specificity=wilson(int((~called & ~y).sum()), negatives) if negatives else None,
        log_loss=_log_loss(y, p) if y.size else None,
    )


def auc(labels: NDArray[Any], scores: NDArray[Any], confidence: float = CONFIDENCE) -> Interval:
    """Return the area under the ROC curve with DeLong's interval.

    With perfect separation DeLong's variance is zero, which a small sample does not support; then the
    interval is Wilson's with the size of the smaller class.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; by midranks as Sun and Xu,
    IEEE Signal Processing Letters 21 (2014) 1389-1393.
    """
    y = np.asarray(labels).reshape(-1).astype(bool)
    p = np.asarray(scores, dtype=np.float64).reshape(-1)
    positive, negative = p[y], p[~y]
    m, n = positive.size, negative.size
    if m == 0 or n == 0:
        raise ValueError("expected at least one positive and one negative case")
    ranks = _midranks(np.concatenate([positive, negative]))
    area = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    v10 = (ranks[:m] - _midranks(positive)) / n
    v01 = 1.0 - (ranks[m:] - _midranks(negative)) / m
    variance = _variance(v10) / m + _variance(v01) / n
    if variance <= 0.0:
        smaller = min(m, n)
        bounds = wilson(round(area * smaller), smaller, confidence)
        return Interval(area, min(bounds.low, area), max(bounds.high, area))
    half = _z(confidence) * math.sqrt(variance)
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a proportion with Wilson's score interval, which is sound for small numbers and at 0 and 1.

    References
    ----------
    Wilson, JASA 22 (1927) 209-212; Newcombe, Statistics in Medicine 17 (1998) 857-872, method 3.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError("expected 0 <= successes <= trials and at least one trial")
    z = _z(confidence)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(
        share,
        0.0 if successes == 0 else (centre - half) / scale,
        1.0 if successes == trials else (centre + half) / scale,
    )


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if values.size > 1 else 0.0


def _midranks(values: Floats) -> Floats:
    """Return ranks from 1; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = (last - (counts - 1) / 2.0).astype(np.float64)
    return middle[inverse]


def _log_loss(labels: NDArray[np.bool_], scores: Floats) -> float:
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(labels, np.log(clipped), np.log1p(-clipped))))
