"""What a model of anomalies answers: how far each pixel is from what it makes of it, and what is too far.

No code of a terminology says so: what is marked is no structure and no lesion, and of healthy pictures some
pixels are marked by construction. So the segment has a code of ours, in the one category of CID 7150 that
calls nothing abnormal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from inference.errors import PackageError
from inference.fields import is_number, is_whole, read_object
from inference.segments import Category, Segment

DEVIATION: Final = Segment(
    number=1,
    code="DEVIATION",
    scheme="99CLOISTER",
    meaning="Differs from what the model learnt as normal",
    label="Differs from learnt normal",
    category=Category("309825002", "SCT", "Spatial and Relational Concept"),
)
NO_FINDING: Final = "a difference from what the model learnt as normal, no finding"
SOURCE: Final = "quantile of the pixels of healthy held-out pictures of the site"
_FIELDS: Final = frozenset({"value", "healthy_share", "pictures", "people", "source"})
_MOST: Final = 1 << 40


@dataclass(frozen=True)
class Threshold:
    """From where on a residual is marked: found at the site, of pictures that taught the model nothing.

    Parameters
    ----------
    value : float
        What is larger is marked; in units of the model's input, above 0.
    healthy_share : float
        The share of the pixels of the site's healthy held-out pictures that lie at or below.
    pictures, people : int
        How many pictures these were, and of how many people.
    """

    value: float
    healthy_share: float
    pictures: int
    people: int

    def __post_init__(self) -> None:
        if not is_number(self.value) or self.value <= 0:
            raise PackageError("card", "output.threshold.value: expected a number above 0")
        if not is_number(self.healthy_share) or not 0 < self.healthy_share < 1:
            raise PackageError("card", "output.threshold.healthy_share: expected above 0 and below 1")
        if not is_whole(self.people, 1, _MOST) or not is_whole(self.pictures, self.people, _MOST):
            raise PackageError("card", "output.threshold: expected pictures and people, one or more of each")

    @property
    def parameters(self) -> dict[str, str]:
        """What results say of it, by name, as parameters of the algorithm."""
        return {"threshold": f"{self.value:g}", "healthy_share": f"{self.healthy_share:g}"}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :func:`read_threshold` reads back."""
        return {**vars(self), "source": SOURCE}


def read_threshold(value: object) -> Threshold:
    """Read a JSON object; raises PackageError, ``card``."""
    fields = read_object(value, "output.threshold", _FIELDS)
    if fields.pop("source") != SOURCE:
        raise PackageError("card", f"output.threshold.source: expected {SOURCE!r}")
    return Threshold(**fields)
