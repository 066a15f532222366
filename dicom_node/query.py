"""Queries for what is stored: levels, matching keys and answers (PS3.4 annex C, PS3.18 10.6).

The same query serves C-FIND and QIDO-RS. Matching keys and answers are texts by DICOM keyword.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicom_node.errors import DICOMNodeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_UIDS: Final = 5000
MAX_VALUE: Final = 400
MAX_WILDCARDS: Final = 10
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_DATE: Final = re.compile(r"[0-9]{8}\Z")
_TIME: Final = re.compile(r"(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:[0-5][0-9](?:\.[0-9]{1,6})?)?)?\Z")
_LAST_TIME: Final = "235959.999999"


class QueryError(DICOMNodeError):
    """A query that cannot be answered; ``code`` is for programs, the message names the keyword."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Level(StrEnum):
    """Levels of the query/retrieve information model (PS3.4 C.6)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


class Match(StrEnum):
    """How a key is matched (PS3.4 C.2.2.2)."""

    TEXT = "text"  # single value or wildcard, letters as they are
    NAME = "name"  # single value or wildcard, upper and lower case alike
    UID = "uid"  # one of a list
    DATE = "date"  # single value or range
    TIME = "time"
    NUMBER = "number"
    ANY_OF = "any_of"  # one of several values of the study, wildcards allowed


# Matching keys of each level, with the levels above added below.
_PATIENT: Final = {
    "PatientID": Match.TEXT,
    "IssuerOfPatientID": Match.TEXT,
    "PatientName": Match.NAME,
    "PatientBirthDate": Match.DATE,
    "PatientSex": Match.TEXT,
}
_STUDY: Final = {
    "StudyInstanceUID": Match.UID,
    "StudyDate": Match.DATE,
    "StudyTime": Match.TIME,
    "AccessionNumber": Match.TEXT,
    "StudyID": Match.TEXT,
    "StudyDescription": Match.NAME,
    "ReferringPhysicianName": Match.NAME,
    "ModalitiesInStudy": Match.ANY_OF,
}
_SERIES: Final = {
    "SeriesInstanceUID": Match.UID,
    "Modality": Match.TEXT,
    "SeriesNumber": Match.NUMBER,
    "SeriesDescription": Match.NAME,
    "BodyPartExamined": Match.TEXT,
    "ProtocolName": Match.NAME,
    "StationName": Match.NAME,
    "InstitutionName": Match.NAME,
    "Manufacturer": Match.NAME,
    "ManufacturerModelName": Match.NAME,
    "PerformedProcedureStepStartDate": Match.DATE,
    "PerformedProcedureStepStartTime": Match.TIME,
}
_IMAGE: Final = {
    "SOPInstanceUID": Match.UID,
    "SOPClassUID": Match.UID,
    "InstanceNumber": Match.NUMBER,
    "Rows": Match.NUMBER,
    "Columns": Match.NUMBER,
    "BitsAllocated": Match.NUMBER,
    "NumberOfFrames": Match.NUMBER,
}

MATCHED: Final[Mapping[Level, Mapping[str, Match]]] = MappingProxyType(
    {
        Level.PATIENT: MappingProxyType(_PATIENT),
        Level.STUDY: MappingProxyType({**_PATIENT, **_STUDY}),
        Level.SERIES: MappingProxyType({**_PATIENT, **_STUDY, **_SERIES}),
        Level.IMAGE: MappingProxyType({**_PATIENT, **_STUDY, **_SERIES, **_IMAGE}),
    }
)
RETURNED: Final[Mapping[Level, tuple[str, ...]]] = MappingProxyType(
    {
        Level.PATIENT: (*_PATIENT, "NumberOfPatientRelatedStudies"),
        Level.STUDY: (*_PATIENT, *_STUDY, "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
        Level.SERIES: (*_PATIENT, *_STUDY, *_SERIES, "NumberOfSeriesRelatedInstances"),
        Level.IMAGE: (*_PATIENT, *_STUDY, *_SERIES, *_IMAGE, "AvailableTransferSyntaxUID"),
    }
)


@dataclass(frozen=True)
class Query:
    """What is asked for.

    Parameters
    ----------
    level : Level
    match : mapping of str to str
        Matching text by keyword, of :data:`MATCHED`; an empty text matches everything.
    limit : int
        Answers at most; 0 for all.
    offset : int
        Answers to pass over first.
    """

    level: Level
    match: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0
    offset: int = 0


@dataclass(frozen=True)
class StoredInstance:
    """An instance that can be retrieved; ``path`` is its Part 10 file."""

    id: str
    path: Path
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    number_of_frames: int | None


def check(query: Query) -> None:
    """Refuse a query whose keys or values have no meaning here.

    Raises
    ------
    QueryError
        ``unknown_key``, ``bad_value``, ``too_long``, ``too_many_wildcards``; never with the value.
    """
    known = MATCHED[query.level]
    for keyword, value in query.match.items():
        if keyword not in known:
            raise QueryError("unknown_key", f"{keyword}: no matching key at level {query.level}")
        if _CONTROL.search(value):
            raise QueryError("bad_value", f"{keyword}: expected no control characters")
        _check_value(keyword, known[keyword], value)


def _check_value(keyword: str, kind: Match, value: str) -> None:
    if kind is Match.UID:
        if len(uids(value)) > MAX_UIDS:
            raise QueryError("too_long", f"{keyword}: expected at most {MAX_UIDS} UIDs")
        return
    if len(value) > MAX_VALUE:
        raise QueryError("too_long", f"{keyword}: expected at most {MAX_VALUE} characters")
    if value.count("*") + value.count("?") > MAX_WILDCARDS:
        raise QueryError("too_many_wildcards", f"{keyword}: expected at most {MAX_WILDCARDS} wildcards")
    if kind in {Match.DATE, Match.TIME}:
        bounds(keyword, kind, value)
    elif kind is Match.NUMBER and value and number(value) is None:
        raise QueryError("bad_value", f"{keyword}: expected a whole number")


def uids(value: str) -> tuple[str, ...]:
    """Return the UIDs of a list (PS3.4 C.2.2.2.2)."""
    return tuple(part.strip("\0 ") for part in value.split("\\") if part.strip("\0 "))


def number(value: str) -> int | None:
    """Return a whole number, or None for any other text."""
    text = value.strip()
    digits = text.removeprefix("-").removeprefix("+")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 12 else None


def bounds(keyword: str, kind: Match, value: str) -> tuple[str, str] | None:
    """Return the first and last date or time that match, as texts that compare; None matches everything.

    Raises
    ------
    QueryError
        ``bad_value`` for what is neither a value nor a range (PS3.4 C.2.2.2.5).
    """
    text = value.strip()
    if text in {"", "*"}:
        return None
    first, dash, last = text.partition("-")
    if not dash:
        last = first
    elif not (first or last):
        raise QueryError("bad_value", f"{keyword}: expected a range with at least one end")
    pattern, expected = (_DATE, "YYYYMMDD") if kind is Match.DATE else (_TIME, "HH, HHMM or HHMMSS.FFFFFF")
    if any(end and not pattern.match(end) for end in (first, last)):
        raise QueryError("bad_value", f"{keyword}: expected {expected}, or a range of it")
    if kind is Match.DATE:
        return first or "0", last or "99999999"
    return first or "0", (last + _LAST_TIME[len(last) :] if last else _LAST_TIME)
