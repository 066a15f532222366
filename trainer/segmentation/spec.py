"""What a segmentation task finds, and on which grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer.errors import TaskError

MAX_SEGMENTS: Final = 16
MAX_SLICES: Final = 512
MAX_SPACING_MM: Final = 50.0


@dataclass(frozen=True)
class Category:
    """What kind of thing a segment is: Segmented Property Category Code Sequence (0062,0003), CID 7150."""

    code: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Segment:
    """A structure by its code: what Segmented Property Type Code Sequence (0062,000F) says of a segment.

    Masks are found by the type alone; ``category`` is written into what the model marks, an anatomical
    structure without one.
    """

    code: str
    scheme: str
    meaning: str
    category: Category | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back."""
        content = asdict(self)
        if self.category is None:  # left out, so that earlier tasks keep their hashes
            del content["category"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Segment:
        """Read plain JSON values; raises TypeError for an unknown field."""
        values = dict(content)
        if values.get("category") is not None:
            values["category"] = Category(**values["category"])
        return cls(**values)


@dataclass(frozen=True)
class SegmentationSpec:
    """Which structures, in pictures or in volumes.

    Parameters
    ----------
    spatial_dimensions : int
        2: each instance is a case. 3: each series is.
    segments : tuple of Segment
        Class 1 onwards; class 0 is everything else.
    slices : int
        Of the model's input, 8 or more; 0 for pictures. Rows and columns stand in the preprocessing.
    spacing_mm : tuple of float
        Between voxels of the input along (slices, rows, columns), which are head, back and left of the
        patient; empty for pictures, which are fitted into rows and columns.
    """

    spatial_dimensions: int
    segments: tuple[Segment, ...]
    slices: int = 0
    spacing_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check all; raises TaskError."""
        problems = [message for good, message in _checks(self) if not good]
        if problems:
            raise TaskError("task: segmentation: " + "; ".join(problems))
        object.__setattr__(self, "spacing_mm", tuple(float(value) for value in self.spacing_mm))

    @property
    def classes(self) -> int:
        """Background and segments."""
        return 1 + len(self.segments)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back."""
        content: dict[str, Any] = {
            "spatial_dimensions": self.spatial_dimensions,
            "segments": [segment.to_json() for segment in self.segments],
        }
        if self.spatial_dimensions == 3:
            content |= {"slices": self.slices, "spacing_mm": list(self.spacing_mm)}
        return content

    @classmethod
    def from_json(cls, content: object) -> SegmentationSpec:
        """Read plain JSON values; raises TaskError, and TypeError for an unknown field."""
        if not isinstance(content, Mapping) or not isinstance(content.get("segments"), list):
            raise TaskError("task: segmentation: expected an object with a list of segments")
        values = dict(content)
        values["segments"] = tuple(map(Segment.from_json, values["segments"]))
        spacing = values.get("spacing_mm", [])
        if not isinstance(spacing, list):
            raise TaskError("task: segmentation: spacing_mm: expected a list")
        return cls(**{**values, "spacing_mm": tuple(spacing)})


def _checks(spec: SegmentationSpec) -> tuple[tuple[bool, str], ...]:
    solid = spec.spatial_dimensions == 3
    names = [segment.code for segment in spec.segments]
    return (
        (_is_whole(spec.spatial_dimensions, 2, 3), "spatial_dimensions: expected 2 or 3"),
        (1 <= len(names) <= MAX_SEGMENTS, f"segments: expected 1 to {MAX_SEGMENTS}"),
        (len(set(names)) == len(names), "segments: expected each code once"),
        (
            all(map(is_segment, spec.segments)),
            "segments: expected code and scheme (16 characters), meaning (64), of a category, too",
        ),
        (
            _is_whole(spec.slices, 8, MAX_SLICES) if solid else spec.slices == 0,
            f"slices: expected 8 to {MAX_SLICES} in three dimensions, none in two",
        ),
        (
            _is_spacing(spec.spacing_mm, 3 if solid else 0),
            f"spacing_mm: expected three numbers from 0.01 to {MAX_SPACING_MM:g}, none in two dimensions",
        ),
    )


def is_segment(segment: Segment) -> bool:
    """Whether code, scheme and meaning, its category's as well, are as long as their attributes allow."""
    codes = (segment,) if segment.category is None else (segment, segment.category)
    return all(
        isinstance(text, str) and len(text) <= limit and bool(text.strip()) and text.isprintable()
        for one in codes
        for text, limit in ((one.code, 16), (one.scheme, 16), (one.meaning, 64))
    )


def _is_spacing(spacing: tuple[float, ...], count: int) -> bool:
    return len(spacing) == count and all(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0.01 <= value <= MAX_SPACING_MM
        for value in spacing
    )


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
