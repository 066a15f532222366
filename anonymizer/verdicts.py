"""What a person decided of an instance that was stopped: which reasons do not count, and what goes besides.

A verdict never makes a rule milder. It says that a person has looked where the engine could not judge; the
picture is still searched for text, and the independent check still runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from anonymizer.boxes import Box
from anonymizer.errors import VerdictError

if TYPE_CHECKING:
    from collections.abc import Mapping

PICTURE: Final = frozenset(
    {
        "burned_in_annotation",
        "burnt_in_text_likely",
        "recognizable_features",
        "secondary_capture",
        "ultrasound_without_regions",
    }
)
"""Codes of reasons that end when a person has looked at the picture."""
RESIDUE: Final = "residual_identifier"
DECIDABLE: Final = PICTURE | {RESIDUE}
"""Codes of reasons that a person may overrule."""
DRAWN: Final = "person"
MAX_BOXES: Final = 100
MAX_PLACES: Final = 100
_LARGEST: Final = 65535
_TAG: Final = r"\([0-9A-F]{4},[0-9A-F]{4}\)"
PLACE: Final = re.compile(rf"{_TAG}(?:>{_TAG})*")
_FIELDS: Final = ("accepted", "boxes", "removed", "standing")


@dataclass(frozen=True)
class Verdict:
    """A person's decision.

    Attributes
    ----------
    accepted : frozenset of str
        Codes of :data:`PICTURE` that stop the instance no more.
    boxes : tuple of Box
        What is blacked out in all frames.
    removed : frozenset of str
        Places of attributes that go, such as ``(0008,1110)>(0008,1155)``.
    standing : frozenset of str
        Places that say nothing of the patient although the check found something there.
    """

    accepted: frozenset[str] = frozenset()
    boxes: tuple[Box, ...] = ()
    removed: frozenset[str] = frozenset()
    standing: frozenset[str] = frozenset()

    def __or__(self, other: Verdict) -> Verdict:
        """Join two verdicts on one instance."""
        return Verdict(
            self.accepted | other.accepted,
            tuple(dict.fromkeys((*self.boxes, *other.boxes))),
            self.removed | other.removed,
            self.standing | other.standing,
        )

    @property
    def looked(self) -> bool:
        """Whether a person has looked at the picture."""
        return bool(self.boxes or self.accepted & PICTURE)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as :func:`parse` reads it."""
        return {
            "accepted": sorted(self.accepted),
            "boxes": [[box.left, box.top, box.right, box.bottom] for box in self.boxes],
            "removed": sorted(self.removed),
            "standing": sorted(self.standing),
        }


NONE: Final = Verdict()


def name_of(place: str) -> str:
    """Write a place in letters, digits and points alone: ``00081110.00081155``."""
    return place.replace(",", "").replace(")>(", ".").strip("()").lower()


def place_of(name: str) -> str:
    """Return the place that :func:`name_of` wrote so."""
    return ">".join(f"({tag[:4]},{tag[4:]})" for tag in name.upper().split("."))


def parse(content: Mapping[str, Any]) -> Verdict:
    """Read a verdict.

    Parameters
    ----------
    content : mapping
        ``accepted`` (codes), ``boxes`` (lists of left, top, right, bottom in pixels, right and bottom
        outside), ``removed`` and ``standing`` (places); each may be absent.

    Raises
    ------
    VerdictError
        Naming the field and what was expected.
    """
    unknown = sorted(set(content) - set(_FIELDS))
    if unknown:
        raise VerdictError(f"verdict: expected the fields {', '.join(_FIELDS)}")
    accepted = _texts(content, "accepted")
    if accepted - PICTURE:
        raise VerdictError(f"accepted: expected some of {', '.join(sorted(PICTURE))}")
    boxes = content.get("boxes", [])
    if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
        raise VerdictError(f"boxes: expected a list of at most {MAX_BOXES}")
    removed, standing = _places(content, "removed"), _places(content, "standing")
    if removed & standing:
        raise VerdictError("removed, standing: expected different places")
    return Verdict(accepted, tuple(_box(box) for box in boxes), removed, standing)


def _texts(content: Mapping[str, Any], name: str) -> frozenset[str]:
    found = content.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise VerdictError(f"{name}: expected a list of texts")
    return frozenset(found)


def _places(content: Mapping[str, Any], name: str) -> frozenset[str]:
    found = _texts(content, name)
    if len(found) > MAX_PLACES or not all(PLACE.fullmatch(place) for place in found):
        raise VerdictError(f"{name}: expected at most {MAX_PLACES} places such as (0008,1110)>(0008,1155)")
    return found


def _box(content: object) -> Box:
    if isinstance(content, list) and len(content) == 4 and all(type(number) is int for number in content):
        left, top, right, bottom = content
        if 0 <= left < right <= _LARGEST and 0 <= top < bottom <= _LARGEST:
            return Box(left, top, right, bottom, DRAWN)
    raise VerdictError("boxes: expected left, top, right, bottom in pixels, right and bottom outside")
