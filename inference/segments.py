"""What a segmenting model marks, and on which grid: a part of its card.

References
----------
DICOM PS3.3 C.8.20.4 (Segment Description): category and type of a segmented property.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from inference.errors import PackageError
from inference.fields import check_code, check_text, is_number, is_whole, read_list, read_object

MAX_SEGMENTS: Final = 16
MAX_VOXELS: Final = 2**24  # of one input; the answer holds as many for each class
MIN_SLICES: Final = 8
MAX_SLICES: Final = 512
MIN_SPACING_MM: Final = 0.01
MAX_SPACING_MM: Final = 50.0
AXES: Final = ("head", "back", "left")
"""Where slices, rows and columns of a volume grow to, in the patient."""
_CODE_FIELDS: Final = frozenset({"code", "scheme", "meaning"})
_SEGMENT_FIELDS: Final = _CODE_FIELDS | {"number", "label", "category"}
_VOLUME_FIELDS: Final = frozenset({"slices", "spacing_mm", "axes"})


@dataclass(frozen=True)
class Category:
    """What kind of thing a segment is (CID 7150)."""

    code: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        check_code(self.code, self.scheme, self.meaning, "segment.category")


ANATOMICAL_STRUCTURE: Final = Category("123037004", "SCT", "Anatomical Structure")


@dataclass(frozen=True)
class Segment:
    """A structure that the model marks: ``number`` is its class, the code says what it is."""

    number: int
    code: str
    scheme: str
    meaning: str
    label: str
    category: Category = ANATOMICAL_STRUCTURE

    def __post_init__(self) -> None:
        if not is_whole(self.number, 1, MAX_SEGMENTS):
            raise PackageError("card", f"segment.number: expected 1 to {MAX_SEGMENTS}")
        check_code(self.code, self.scheme, self.meaning, "segment")
        check_text(self.label, "segment.label", 64)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :func:`read_segments` reads back."""
        return {**vars(self), "category": dict(vars(self.category))}


@dataclass(frozen=True)
class VolumeSpec:
    """The grid of a volume, with rows and columns of the preprocessing; see :data:`AXES`.

    Parameters
    ----------
    slices : int
        8 to 512.
    spacing_mm : tuple of float
        Between slices, rows and columns.
    """

    slices: int
    spacing_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not is_whole(self.slices, MIN_SLICES, MAX_SLICES):
            raise PackageError("card", f"input.volume.slices: expected {MIN_SLICES} to {MAX_SLICES}")
        spacing = self.spacing_mm
        if len(spacing) != 3 or not all(
            is_number(value) and MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in spacing
        ):
            raise PackageError(
                "card",
                f"input.volume.spacing_mm: expected three of {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}",
            )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :func:`read_volume_spec` reads back."""
        return {"slices": self.slices, "spacing_mm": list(self.spacing_mm), "axes": list(AXES)}


def check_segments(segments: tuple[Segment, ...]) -> None:
    """Refuse segments that are not numbered from 1 in order, or of which two have one code.

    Raises
    ------
    PackageError
        ``card``.
    """
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        raise PackageError("card", f"output.segments: expected 1 to {MAX_SEGMENTS}")
    if [one.number for one in segments] != list(range(1, 1 + len(segments))):
        raise PackageError("card", "output.segments: expected the numbers 1, 2, 3 ... in order")
    if len({(one.scheme, one.code) for one in segments}) != len(segments):
        raise PackageError("card", "output.segments: expected each code once")


def read_segments(value: object) -> tuple[Segment, ...]:
    """Read a JSON list; raises PackageError, ``card``."""
    found = []
    for item in read_list(value, "output.segments"):
        fields = read_object(item, "segment", _SEGMENT_FIELDS)
        category = read_object(fields["category"], "segment.category", _CODE_FIELDS)
        found.append(Segment(**{**fields, "category": Category(**category)}))
    check_segments(tuple(found))
    return tuple(found)


def read_volume_spec(value: object) -> VolumeSpec | None:
    """Read a JSON object, or None of a model of single pictures; raises PackageError, ``card``."""
    if value is None:
        return None
    fields = read_object(value, "input.volume", _VOLUME_FIELDS)
    if fields["axes"] != list(AXES):
        raise PackageError("card", f"input.volume.axes: expected {', '.join(AXES)}")
    spacing = tuple(read_list(fields["spacing_mm"], "input.volume.spacing_mm"))
    return VolumeSpec(fields["slices"], spacing)
