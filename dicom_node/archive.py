"""What an archive is asked and how it answers, whichever protocol it speaks.

An archive is a peer like any other: what it says is judged before it is believed. An answer that contradicts
a key which was asked for exactly is dropped: an archive that overlooks a patient's id would give us others'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from dicom_node.errors import DICOMNodeError
from dicom_node.identifiers import UNIQUE
from dicom_node.index import is_uid
from dicom_node.query import MATCHED, RETURNED, Level, Match, bounds

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_UNUSABLE: Final = 10_000
_WILD: Final = frozenset("*?")
_EXACT: Final = frozenset({"PatientID", "AccessionNumber", "IssuerOfPatientID"})
_LEVELS: Final = (Level.STUDY, Level.SERIES, Level.IMAGE)

# What is asked back, beside the keys: enough to choose, to count and to compare.
ASKED: Final[Mapping[Level, tuple[str, ...]]] = MappingProxyType(
    {
        Level.STUDY: (
            "PatientID",
            "IssuerOfPatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "StudyDescription",
            "ModalitiesInStudy",
            "NumberOfStudyRelatedSeries",
            "NumberOfStudyRelatedInstances",
        ),
        Level.SERIES: (
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "Modality",
            "SeriesNumber",
            "SeriesDescription",
            "BodyPartExamined",
            "NumberOfSeriesRelatedInstances",
        ),
        Level.IMAGE: (
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "SOPInstanceUID",
            "SOPClassUID",
            "InstanceNumber",
            "AvailableTransferSyntaxUID",
        ),
    }
)


class ArchiveError(DICOMNodeError):
    """An archive could not be asked, or did not answer as it should.

    Parameters
    ----------
    message : str
        For staff; never with a value of a patient.
    step : str
        ``connect``, ``query`` or ``retrieve``.
    retryable : bool
        Whether another try may go better.
    """

    def __init__(self, message: str, *, step: str, retryable: bool) -> None:
        super().__init__(f"{step}: {message}")
        self.step = step
        self.retryable = retryable


@dataclass(frozen=True)
class Answers:
    """What was found.

    Parameters
    ----------
    found : tuple
        Texts by keyword; several values are joined by backslashes.
    complete : bool
        False where there is more than was asked for.
    dropped : int
        Answers without a valid UID, or that contradict what was asked.
    """

    found: tuple[Mapping[str, str], ...]
    complete: bool
    dropped: int = 0


@dataclass(frozen=True)
class Listed:
    """An instance that an archive says it has; the SOP class is empty where it does not say."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a retrieval is, as the archive says; ``remaining`` is None where it does not say."""

    completed: int = 0
    failed: int = 0
    warnings: int = 0
    remaining: int | None = None


@dataclass(frozen=True)
class Retrieval:
    """How a retrieval ended; ``refused`` counts what came and was not stored here, by reason."""

    progress: Progress
    cancelled: bool = False
    status: int = 0  # the archive's last; 0 where it has none
    stored: int | None = None  # by ourselves; None where instances come over the SCP
    refused: Mapping[str, int] = field(default_factory=dict)


class Watch(Protocol):
    """Looks after a retrieval; its functions may wait for a database, and are called about once a second."""

    def arrived(self) -> int:
        """Return how many instances have come so far."""

    def goes_on(self, progress: Progress) -> bool:
        """Take note of progress; False takes the retrieval back."""


class Sieve:
    """Takes answers one by one and keeps those that can be meant.

    Parameters
    ----------
    level : Level
    match : mapping
        The keys that were asked for.
    limit : int
        Answers at most; more make it full.
    """

    def __init__(self, level: Level, match: Mapping[str, str], limit: int) -> None:
        self._level = level
        self._match = match
        self._limit = limit
        self._found: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._dropped = 0
        self.full = False

    def take(self, answer: Mapping[str, str]) -> None:
        """Take one answer; those that come twice count once."""
        levels = _LEVELS[: _LEVELS.index(self._level) + 1]
        above = {UNIQUE[level]: self._match.get(UNIQUE[level], "") for level in levels[:-1]}
        whole = {**answer, **{key: answer.get(key) or value for key, value in above.items()}}
        key = tuple(whole.get(UNIQUE[level], "") for level in levels)
        if not all(is_uid(uid) for uid in key) or self._contradicts(whole):
            self._dropped += 1
        elif key not in self._found:
            if len(self._found) >= self._limit:
                self.full = True
                return
            self._found[key] = MappingProxyType(whole)
        self.full = self.full or self._dropped >= MAX_UNUSABLE

    @property
    def kept(self) -> int:
        """How many answers are kept."""
        return len(self._found)

    def answers(self) -> Answers:
        """Return what was kept."""
        return Answers(tuple(self._found.values()), not self.full, self._dropped)

    def _contradicts(self, answer: Mapping[str, str]) -> bool:
        kinds = MATCHED[self._level]
        asked = ((keyword, value.strip()) for keyword, value in self._match.items())
        return any(
            value and _differs(keyword, kinds.get(keyword), value, answer.get(keyword, "").strip())
            for keyword, value in asked
        )


def _differs(keyword: str, kind: Match | None, asked: str, told: str) -> bool:
    """Whether an answer says something else than a key asks for; names are for the archive to compare."""
    wild = bool(_WILD & set(asked))
    if not told:
        # Without it nobody can say whose study this is; other keys an archive need not repeat.
        return keyword == "PatientID" and not wild
    if kind is Match.UID:
        return told not in asked.split("\\")
    if kind is Match.DATE:
        span = bounds(keyword, kind, asked)
        return span is not None and not span[0] <= told <= span[1]
    if keyword == "ModalitiesInStudy" and not wild:
        return not set(asked.split("\\")) & set(told.split("\\"))
    return keyword in _EXACT and not wild and told != asked


def number(text: str) -> int | None:
    """Return a count that an archive gives; None where it gives none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def keywords(level: Level, match: Mapping[str, str]) -> tuple[str, ...]:
    """Return what to ask back at a level: our own choice, and every key."""
    wanted = dict.fromkeys((*ASKED[level], *match))
    allowed = {*RETURNED[level], *MATCHED[level]}
    return tuple(keyword for keyword in wanted if keyword in allowed)
