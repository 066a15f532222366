"""What an anomaly task minimises, and what counts as an anomaly where masks tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer.errors import TaskError
from trainer.segmentation.spec import MAX_SEGMENTS, Segment, is_segment

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "healthy_share": (0.5, 0.9999),
    "shape_weight": (0.0, 100.0),
    "orthogonality_weight": (0.0, 100.0),
    "largest_gamma": (1.01, 10.0),
}


@dataclass(frozen=True)
class AnomalySpec:
    """How healthy pictures are learnt and others measured; each instance is a case.

    Parameters
    ----------
    segments : tuple of Segment
        1 to 16 codes by which masks mark anomalies; measuring does not tell them apart.
    healthy_share : float
        The threshold of the residual: this share of a site's healthy held-out pixels lies at or below.
    shape_weight, orthogonality_weight : float
        Of the loss that ties the shape of a picture to that of its intensity-shifted version, and of the one
        that keeps shape and appearance apart; reconstruction weighs 1.
    largest_gamma : float
        Pictures are shifted by a gamma drawn between one over this and this, evenly in its logarithm.
    """

    segments: tuple[Segment, ...]
    healthy_share: float = 0.98
    shape_weight: float = 0.1
    orthogonality_weight: float = 0.1
    largest_gamma: float = 2.0

    def __post_init__(self) -> None:
        """Check all; raises TaskError."""
        problems = [
            f"{name}: expected {low:g} to {high:g}"
            for name, (low, high) in _BOUNDS.items()
            if not _within(getattr(self, name), low, high)
        ]
        codes = [one.code for one in self.segments]
        if not 1 <= len(codes) <= MAX_SEGMENTS or len(set(codes)) != len(codes):
            problems.append(f"segments: expected 1 to {MAX_SEGMENTS}, each code once")
        if not all(map(is_segment, self.segments)):
            problems.append("segments: expected code and scheme (16 characters), meaning (64)")
        if problems:
            raise TaskError("task: anomaly: " + "; ".join(problems))
        for name in _BOUNDS:
            object.__setattr__(self, name, float(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back."""
        return {**asdict(self), "segments": [segment.to_json() for segment in self.segments]}

    @classmethod
    def from_json(cls, content: object) -> AnomalySpec:
        """Read plain JSON values; raises TaskError, and TypeError for an unknown field."""
        if not isinstance(content, Mapping) or not isinstance(content.get("segments"), list):
            raise TaskError("task: anomaly: expected an object with a list of segments")
        segments = tuple(map(Segment.from_json, content["segments"]))
        return cls(**{**content, "segments": segments})


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
