"""How well residuals show anomalies: Dice at a threshold from healthy pictures, and precision over recall."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.metrics import Interval
from trainer.segmentation.dice import dice, mean_of_subjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_PARTS: Final = 5


@dataclass(frozen=True)
class AnomalyMetrics:
    """Figures of one model on one set of cases; a figure that no case defines is None.

    ``anomalous`` counts cases in which a mask marks something; ``healthy`` those of patients who have none
    such, ``healthy_subjects`` these patients. ``threshold`` and ``healthy_error``, the mean residual, come of
    healthy cases alone; ``false_share`` is the share of a healthy patient's pixels above a threshold that
    others give, the mean over these patients. ``dice`` and ``average_precision`` (area under precision over
    recall, of the pixels of each anomalous case) are means over the patients who have anomalous cases.
    """

    samples: int
    subjects: int
    anomalous: int
    threshold: float | None
    healthy_error: float | None
    dice: Interval | None
    average_precision: Interval | None
    healthy: int = 0
    healthy_subjects: int = 0
    false_share: Interval | None = None

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
        intervals = {
            name: None if content.get(name) is None else Interval(**content[name])
            for name in ("dice", "average_precision", "false_share")
        }
        return cls(
            samples=int(content["samples"]),
            subjects=int(content["subjects"]),
            anomalous=int(content["anomalous"]),
            threshold=content["threshold"],
            healthy_error=content["healthy_error"],
            healthy=int(content.get("healthy", 0)),
            healthy_subjects=int(content.get("healthy_subjects", 0)),
            **intervals,
        )


def measure(
    marked: NDArray[np.uint8],
    residuals: NDArray[np.float32],
    healthy_share: float,
    subjects: Sequence[str] = (),
    inside: NDArray[np.bool_] | None = None,
) -> AnomalyMetrics:
    """Measure residuals against masks; who has an anomalous case gives nothing to the threshold.

    Parameters
    ----------
    marked : ndarray
        Shape (n, rows, columns); above 0 where there is an anomaly.
    residuals : ndarray
        Of the same shape, 0 or more.
    healthy_share : float
        The threshold is where this share of the healthy cases' pixels lies at or below; what is above it is
        called an anomaly. Without a healthy case there is none, and no Dice.
    subjects : sequence of str
        Whose each case is; without, each is another's. Cases of one patient are one observation.
    inside : ndarray of bool, optional
        Of the same shape: what of healthy cases is picture and no padding, which would make the threshold
        lower than its share says; all of it by default.
    """
    if marked.shape != residuals.shape:
        raise ValueError("expected residuals of the shape of the masks")
    if not np.all(np.isfinite(residuals)):
        raise ValueError("expected finite residuals")
    owners = tuple(subjects) if len(subjects) == len(marked) else tuple(map(str, range(len(marked))))
    sick = np.array([case.any() for case in marked], dtype=np.bool_)
    healthy = _by_owner(residuals, ~sick, owners, inside)
    pixels = np.concatenate([np.empty(0, dtype=np.float32), *healthy.values()])
    threshold = float(np.quantile(pixels, healthy_share)) if pixels.size else None
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
        healthy_error=float(pixels.mean(dtype=np.float64)) if pixels.size else None,
        dice=overlap,
        average_precision=mean_of_subjects(precision, theirs),
        healthy=sum(owner in healthy for owner in owners),
        healthy_subjects=len(healthy),
        false_share=_false_share(healthy, healthy_share),
    )


def pictured(x: NDArray[np.float32], black: float) -> NDArray[np.bool_]:
    """Return where each input holds its picture: the smallest rectangle around all that is not black.

    Preprocessing pads with black, and what is black around a picture cannot be told from it: it is left out,
    too, so that of all of the picture no larger share lies above a threshold than of what is inside.

    Parameters
    ----------
    x : ndarray
        float32, shape (n, 1, rows, columns).
    black : float
        The value that padding has.

    Returns
    -------
    ndarray
        bool, shape (n, rows, columns).
    """
    light = x[:, 0] != np.float32(black)
    rows, columns = light.any(axis=2), light.any(axis=1)
    return np.asarray(_between(rows)[:, :, np.newaxis] & _between(columns)[:, np.newaxis, :])


def _between(some: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what lies between the first and the last of each row."""
    before = np.logical_or.accumulate(some, axis=1)
    after = np.logical_or.accumulate(some[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(before & after)


def _by_owner(
    residuals: NDArray[np.float32],
    unmarked: NDArray[np.bool_],
    owners: Sequence[str],
    inside: NDArray[np.bool_] | None,
) -> dict[str, NDArray[np.float32]]:
    """Return the pixels of each patient none of whose cases is anomalous."""
    sick = {owner for owner, clean in zip(owners, unmarked.tolist(), strict=True) if not clean}
    cases: dict[str, list[int]] = {}
    for position, owner in enumerate(owners):
        if owner not in sick:
            cases.setdefault(owner, []).append(position)
    return {
        owner: residuals[own].reshape(-1) if inside is None else residuals[own][inside[own]]
        for owner, own in sorted(cases.items())
    }


def _false_share(healthy: Mapping[str, NDArray[np.float32]], healthy_share: float) -> Interval | None:
    """Return how much of a healthy patient is called an anomaly by the threshold of others; of two or more.

    Patients are dealt into five parts at most; each part's threshold comes of the others.
    """
    owners = [owner for owner, pixels in healthy.items() if pixels.size]
    parts = [owners[first::_PARTS] for first in range(min(_PARTS, len(owners)))]
    shares = []
    for part in parts if len(parts) > 1 else ():
        others = np.concatenate([healthy[owner] for owner in owners if owner not in part])
        threshold = np.quantile(others, healthy_share)
        shares += [float((healthy[owner] > threshold).mean()) for owner in part]
    return mean_of_subjects(np.array(shares), tuple(map(str, range(len(shares)))))


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
