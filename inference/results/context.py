"""What every result needs: the pictures it was made from, the model's answers, who and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from inference.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pydicom import Dataset

    from inference.card import Finding, ModelCard

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


@dataclass(frozen=True)
class ResultContext:
    """One model's answers for one study revision.

    Parameters
    ----------
    answers : sequence of Answer
        At least one; all of one study and one patient.
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
        How many further pictures of the study the model should have seen but could not.
    predecessors : sequence of Predecessor
        Reports that this one replaces.
    """

    answers: tuple[Answer, ...]
    card: ModelCard
    package_sha256: str
    revision_id: str
    made_at: datetime
    software_version: str
    unreadable: int = 0
    predecessors: Sequence[Predecessor] = ()

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
