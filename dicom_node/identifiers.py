"""Identifiers of Query/Retrieve: what a peer asks for, and answers to it (PS3.4 C.4.1.1.3, C.4.2.1.4).

Answers are encoded by hand: their values are texts as received, which need not be valid in every detail.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.multival import MultiValue

from dicom_node.errors import DICOMNodeError
from dicom_node.query import MATCHED, RETURNED, Level, Query, uids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydicom.dataset import Dataset

MAX_ELEMENTS: Final = 200
MAX_ANSWER_VALUE: Final = 4096
_UTF_8: Final = "ISO_IR 192"
_ALWAYS: Final = ("SpecificCharacterSet", "QueryRetrieveLevel", "RetrieveAETitle")
_ANSWERED: Final = frozenset({*_ALWAYS, "InstanceAvailability"})
_WILD: Final = frozenset("*?")

# Unique keys by level (PS3.4 C.6.1.1, C.6.2.1).
UNIQUE: Final[Mapping[Level, str]] = MappingProxyType(
    {
        Level.PATIENT: "PatientID",
        Level.STUDY: "StudyInstanceUID",
        Level.SERIES: "SeriesInstanceUID",
        Level.IMAGE: "SOPInstanceUID",
    }
)
PATIENT_ROOT: Final = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)
STUDY_ROOT: Final = (Level.STUDY, Level.SERIES, Level.IMAGE)


class IdentifierError(DICOMNodeError):
    """An identifier that does not fit its SOP class."""


@dataclass(frozen=True)
class Asked:
    """What a C-FIND identifier asks for; ``complete`` is False where a key in it means nothing to us."""

    query: Query
    keywords: tuple[str, ...]
    complete: bool


def read_query(ds: Dataset, levels: tuple[Level, ...], limit: int) -> Asked:
    """Read a C-FIND identifier.

    Raises
    ------
    IdentifierError
        For a level that the model lacks, or a unique key of a level above that is no single value.
    """
    level = _level(ds, levels)
    for above in levels[: levels.index(level)]:
        _single(ds, UNIQUE[above])
    match: dict[str, str] = {}
    keywords: list[str] = []
    complete = True
    for keyword, value in _texts(ds):
        if keyword in MATCHED[level]:
            match[keyword] = value
        if keyword in RETURNED[level] or keyword in _ANSWERED:
            keywords.append(keyword)
        elif keyword not in MATCHED[level] and keyword != "TimezoneOffsetFromUTC":
            complete = False
    wanted = dict.fromkeys((*keywords, UNIQUE[level], *_ALWAYS))
    return Asked(Query(level, match, limit=limit), tuple(wanted), complete)


def read_retrieval(ds: Dataset, levels: tuple[Level, ...]) -> tuple[Level, Mapping[str, str]]:
    """Return level and unique keys of a C-MOVE or C-GET identifier.

    Raises
    ------
    IdentifierError
        When a unique key is missing, or is no single value above the level.
    """
    level = _level(ds, levels)
    position = levels.index(level)
    keys = {UNIQUE[above]: _single(ds, UNIQUE[above]) for above in levels[:position]}
    keyword = UNIQUE[level]
    value = _single(ds, keyword) if level is Level.PATIENT else dict(_texts(ds)).get(keyword, "")
    if not uids(value) or _WILD & set(value):
        raise IdentifierError(f"{keyword}: expected values, without wildcards")
    return level, MappingProxyType({**keys, keyword: value})


def encode(elements: Mapping[str, str], *, explicit: bool, encoding: str = "utf-8") -> bytes:
    """Return a little endian data set of texts and 16-bit numbers by keyword, lists joined by backslashes.

    A number that is none, or too large, is left empty, and so is a text that is too long for its VR.
    """
    parts = []
    for keyword in sorted(elements, key=_tag):
        tag, vr = _tag(keyword), _vr(keyword)
        value = _bytes(vr, elements[keyword], encoding)
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        length = struct.pack("<2sH", vr.encode(), len(value)) if explicit else struct.pack("<I", len(value))
        parts.append(head + length + value)
    return b"".join(parts)


def write_answer(asked: Asked, found: Mapping[str, str], ae_title: str, *, explicit: bool) -> bytes:
    """Return the identifier of one match."""
    own = {
        "SpecificCharacterSet": _UTF_8,
        "QueryRetrieveLevel": str(asked.query.level),
        "RetrieveAETitle": ae_title,
        "InstanceAvailability": "ONLINE",
    }
    return encode(
        {keyword: own.get(keyword, found.get(keyword, "")) for keyword in asked.keywords}, explicit=explicit
    )


def write_question(level: Level, elements: Mapping[str, str], *, explicit: bool) -> bytes:
    """Return the identifier of a request of ours.

    Old archives know Latin-1 and no UTF-8, so it comes in that where it can; letters of ASCII alone name no
    character set.
    """
    text = "".join(elements.values())
    if text.isascii():
        named: dict[str, str] = {}
        encoding = "ascii"
    elif all(ord(letter) < 0x100 for letter in text):
        named, encoding = {"SpecificCharacterSet": "ISO_IR 100"}, "latin-1"
    else:
        named, encoding = {"SpecificCharacterSet": _UTF_8}, "utf-8"
    return encode(
        {**named, "QueryRetrieveLevel": level.value, **elements}, explicit=explicit, encoding=encoding
    )


def read_found(ds: Dataset, keywords: Iterable[str]) -> dict[str, str]:
    """Return the texts of an answer that a peer gave us; what is absent or cannot be read is empty."""
    found = {}
    for keyword in keywords:
        try:
            text = _text(ds, _tag(keyword)) if _tag(keyword) in ds else ""
        except IdentifierError:
            text = ""
        found[keyword] = text if len(text) <= MAX_ANSWER_VALUE else ""
    return found


def _level(ds: Dataset, levels: tuple[Level, ...]) -> Level:
    named = dict(_texts(ds)).get("QueryRetrieveLevel", "")
    for level in levels:
        if level.value == named:
            return level
    raise IdentifierError("QueryRetrieveLevel: expected one of " + ", ".join(levels))


def _single(ds: Dataset, keyword: str) -> str:
    value = dict(_texts(ds)).get(keyword, "")
    if not value or "\\" in value or _WILD & set(value):
        raise IdentifierError(f"{keyword}: expected a single value")
    return value


def _texts(ds: Dataset) -> Iterator[tuple[str, str]]:
    """Yield keyword and value of every element; an empty keyword stands for a private or unknown one."""
    if len(ds) > MAX_ELEMENTS:
        raise IdentifierError(f"expected at most {MAX_ELEMENTS} elements")
    for tag in list(ds.keys()):
        keyword = keyword_for_tag(tag)
        if tag.element == 0:  # group lengths of old peers
            continue
        yield keyword, _text(ds, tag) if keyword else ""


def _text(ds: Dataset, tag: Any) -> str:
    try:
        value = ds[tag].value
    except Exception as error:  # bytes from the wire, decoded at this moment
        raise IdentifierError(f"{keyword_for_tag(tag)}: a value that cannot be read") from error
    if ds[tag].VR == "SQ" or value is None:
        return ""
    if isinstance(value, bytes):
        raise IdentifierError(f"{keyword_for_tag(tag)}: expected text")
    if isinstance(value, MultiValue):
        return "\\".join(str(part).strip(" \0") for part in value)
    return str(value).strip(" \0")


def _bytes(vr: str, text: str, encoding: str) -> bytes:
    if vr == "US":
        number = int(text) if text.isascii() and text.isdigit() else -1
        return struct.pack("<H", number) if 0 <= number <= 0xFFFF else b""
    raw = text.encode(encoding, "replace")
    raw += (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)
    return raw if len(raw) < 0xFFFF else b""


@cache
def _tag(keyword: str) -> int:
    return int(tag_for_keyword(keyword) or 0)


@cache
def _vr(keyword: str) -> str:
    return dictionary_VR(_tag(keyword))
