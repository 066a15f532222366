"""What the page of one quarantined item shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

Box = tuple[int, int, int, int, str]  # left, top, right, bottom in pixels; source


@dataclass(frozen=True)
class Machine:
    """What made the instance; ``rows`` and ``columns`` in pixels."""

    modality: str
    manufacturer: str
    model: str
    rows: int | None
    columns: int | None
    named: bool


@dataclass(frozen=True)
class Others:
    """How many other open items there are for the same reason."""

    series: int
    machine: int


@dataclass(frozen=True)
class Picture:
    """A frame, from zero, and what is blacked out in it."""

    frame: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Line:
    """One attribute in both headers; the values are empty for those who may not see them."""

    path: str
    keyword: str
    change: str
    before: str
    after: str


@dataclass(frozen=True)
class Trial:
    """What came of trying a draft out, and where its decision stands."""

    decision_id: str
    decision_state: str
    scope: str
    proposed_by: str
    own: bool
    number: int
    state: str
    outcome: str
    reason_code: str
    reason: str
    places: tuple[str, ...]
    rows: int
    columns: int
    pictures: tuple[Picture, ...]
    changes: Mapping[str, int]
    line_count: int
    drawn: tuple[tuple[int, ...], ...]
    removed: tuple[str, ...]
    standing: tuple[str, ...]
    accepted: tuple[str, ...]


@dataclass(frozen=True)
class ReviewView:
    """One quarantined item."""

    id: str
    stage: str
    reason_code: str
    reason: str
    study_id: str | None
    calling_ae_title: str
    created_at: datetime
    resolved_at: datetime | None
    resolution: str
    machine: Machine | None
    decidable: bool
    can_review: bool
    sees: bool
    four_eyes: bool
    others: Others
    trial: Trial | None
    lines: tuple[Line, ...]

    @property
    def is_open(self) -> bool:
        """Whether nobody has decided yet."""
        return self.resolved_at is None and not self.resolution
