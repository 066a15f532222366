"""What every result needs: the pictures it was made from, the model's answers, who and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from inference.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.card import Finding, ModelCard
    from inference.segments import Segment

MANUFACTURER: Final = "Cloister"
DEVICE: Final = "Cloister inference"
RESEARCH_USE: Final = "RESEARCH USE ONLY"


@dataclass(frozen=True)
class Answer:
    """The model's probabilities for one picture, in the order of the card's findings."""

    source: Dataset
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predecessor:
    """An earlier result that this one replaces."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Making:
    """What every result of one model for one study revision says of where it comes from.

    Parameters
    ----------
    card : ModelCard
        The model.
    package_sha256 : str
        Of its package.
    revision_id : str
        Row id of the study revision; the result's UIDs derive from it.
    made_at : datetime
        With a time zone. The same for a retry, so that a retry makes the same instance.
    software_version : str
        Of this product.
    unreadable : int
        How many further pictures, or series, of the study the model should have seen but could not.
    predecessors : sequence of Predecessor
        Reports that this one replaces.
    """

    card: ModelCard
    package_sha256: str
    revision_id: str
    made_at: datetime
    software_version: str
    unreadable: int = 0
    predecessors: Sequence[Predecessor] = ()


@dataclass(frozen=True, kw_only=True)
class ResultContext(Making):
    """One model's answers for one study revision: at least one, all of one study and one patient."""

    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ResultError("result.empty", "expected at least one answer")
        if any(len(answer.probabilities) != len(self.findings) for answer in self.answers):
            raise ResultError("result.answer", "expected one probability for each finding of the card")
        if len({answer.source.StudyInstanceUID for answer in self.answers}) != 1:
            raise ResultError("result.study", "expected pictures of one study")

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the model looks for."""
        return self.card.output.findings

    @property
    def leading(self) -> Answer:
        """The picture with the highest probability of the first finding, the first such in the study."""
        return max(self.answers, key=lambda answer: answer.probabilities[0])


@dataclass(frozen=True)
class Score:
    """How far marked pixels are from what the model makes of them, as shares of black to white."""

    highest: float
    mean: float


@dataclass(frozen=True, eq=False)
class Marked:
    """What a model marked in a series, or in pictures of one size that lie alike.

    Parameters
    ----------
    sources : tuple of Dataset
        The instances without their pixels, in order.
    paths : tuple of Path
        Where they lie.
    labels : ndarray
        uint8, shape (sources, rows, columns): the number of the segment, 0 for none.
    voxel_mm3 : float
        Of one voxel; 0 of single pictures, whose pixels have no volume.
    cut_off : frozenset of int
        Numbers of the segments that reach the edge of what the model sees of the series: larger, maybe.
    score : Score, optional
        Of all that is marked, by a model that scores pixels.
    """

    sources: tuple[Dataset, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.uint8]
    voxel_mm3: float = 0.0
    cut_off: frozenset[int] = frozenset()
    score: Score | None = None

    @property
    def series_instance_uid(self) -> str:
        """Of the series that was marked."""
        return str(self.sources[0].SeriesInstanceUID)

    def voxels(self, segment: Segment) -> int:
        """Return how many voxels a segment has."""
        return int((self.labels == segment.number).sum())

    def volume_ml(self, segment: Segment) -> float:
        """Return the volume of a segment."""
        return self.voxels(segment) * self.voxel_mm3 / 1000


@dataclass(frozen=True, kw_only=True)
class SegmentContext(Making):
    """What one model marked in one study revision: at least one series, all of one study and patient."""

    marked: tuple[Marked, ...]

    def __post_init__(self) -> None:
        if not self.marked:
            raise ResultError("result.empty", "expected at least one series in which segments were marked")
        if len({str(source.StudyInstanceUID) for one in self.marked for source in one.sources}) != 1:
            raise ResultError("result.study", "expected series of one study")

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the model marks."""
        return self.card.output.segments

    @property
    def sources(self) -> list[Dataset]:
        """All instances that were marked."""
        return [source for one in self.marked for source in one.sources]

    @property
    def grey_threshold(self) -> float | None:
        """From which difference on pixels are marked, as a share of black to white; None without scores."""
        threshold = self.card.threshold
        if threshold is None:
            return None
        return threshold.value * self.card.input.preprocessing.standard_deviation
