"""What identifies in a data set: the texts that nothing that leaves may hold.

Independent of the engine's rule tables: the attributes are listed here again.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def _tags(keywords: str) -> frozenset[int]:
    return frozenset(tag for tag in map(tag_for_keyword, keywords.split()) if tag is not None)


IDENTIFYING: Final = _tags("""
    PatientID OtherPatientIDs PatientBirthDate PatientAddress PatientTelephoneNumbers AccessionNumber
    MedicalRecordLocator InsurancePlanIdentification AdmissionID ServiceEpisodeID
    PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest
""")
NAMING: Final = _tags("""
    IssuerOfPatientID IssuerOfAdmissionID IssuerOfServiceEpisodeID StudyID RequestedProcedureID
    ScheduledProcedureStepID PerformedProcedureStepID StationName PerformedStationName ScheduledStationName
    InstitutionName InstitutionAddress InstitutionalDepartmentName DeviceSerialNumber GantryID
    DetectorID CassetteID PlateID GeneratorID PerformedLocation ScheduledProcedureStepLocation
    CurrentPatientLocation PatientInstitutionResidence ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    ClinicalTrialSiteID ClinicalTrialSiteName
""")
"""Names and numbers of things of the hospital; shorter ones than these are ordinary words."""

_BIRTH_DATE: Final = 0x00100030
TEXT_VRS: Final = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_WORD: Final = re.compile(r"[^\W_]+")
_WORD_LENGTH: Final = 3
_IDEOGRAPHIC_LENGTH: Final = 2
_SUBSTRING_LENGTH: Final = 6
_NAME_WORDS: Final = 6
_DIGRAPHS: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae"})
_REPLACED: Final = "removed"  # what the engine itself writes
_VENDORS: Final = frozenset(
    """
    agfa canon carestream esaote fuji fujifilm ge healthcare healthineers hitachi hologic imaging kodak
    medical philips shimadzu siemens systems toshiba varian
    """.split()  # noqa: SIM905 - a list of words reads better than quotes
)
"""Demonstration data names the maker as the institution."""


def fold(text: str) -> str:
    """Return text so that equal texts of different form and case are equal (Unicode NFKC, case folding)."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words_of(text: str) -> list[str]:
    """Return the folded words of a text; long numbers lose their leading zeros."""
    return [_without_zeros(word) if word[0] == "0" else word for word in _WORD.findall(fold(text))]


def _without_zeros(word: str) -> str:
    short = word.lstrip("0")
    return short if len(short) > _WORD_LENGTH else word


def is_wide(text: str) -> bool:
    """Tell whether a text is written in a script that puts no blanks between words."""
    return not text.isascii() and any(unicodedata.east_asian_width(c) in "WF" for c in text)


def names_somebody(word: str) -> bool:
    """Tell whether a text is long enough to be searched for."""
    return len(word) >= (_WORD_LENGTH if word.isascii() else _IDEOGRAPHIC_LENGTH)


def name_parts(name: str) -> set[str]:
    """Return what of a PN value identifies: longer words, pairs of short ones, and words run together.

    Components of one or two letters or one ideograph are too short alone, and together they are a name.
    """
    found: set[str] = set()
    for group in unicodedata.normalize("NFC", name).split("="):
        words = _WORD.findall(group)
        found.update(word for word in words if names_somebody(word))
        for a, b in permutations(words[:_NAME_WORDS], 2):
            if not (names_somebody(a) or names_somebody(b)) and names_somebody(a + b):
                found.update((f"{a} {b}", f"{a}^{b}"))
            alone = max(len(a), len(b)) >= _SUBSTRING_LENGTH  # the longer one is found inside other words
            if is_wide(a + b) or (not alone and names_somebody((a + b)[1:])):
                found.add(a + b)
    return found | {plain for word in found for plain in _transliterated(word)}


def _transliterated(word: str) -> Iterator[str]:
    """Yield how a word is written where its letters are missing."""
    if not word.isascii() and not is_wide(word):
        yield word.lower().translate(_DIGRAPHS)
        yield "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def number_forms(number: str) -> set[str]:
    """Return how an identifier may be written: as it is, without separators, without leading zeros."""
    core = "".join(c for c in number if c.isalnum())
    short = core.lstrip("0")
    return {number} | {form for form in (core, short) if len(form) > _WORD_LENGTH}


def date_forms(value: str) -> set[str]:
    """Return how people write a date of eight digits: year, day or month first."""
    digits = "".join(c for c in value if c.isascii() and c.isdigit())
    if len(digits) != len("YYYYMMDD"):
        return {value}
    year, month, day = digits[:4], digits[4:6], digits[6:]
    orders = {(year, month, day), (day, month, year), (month, day, year)}
    orders |= {tuple(part.lstrip("0") for part in order) for order in orders}  # type: ignore[misc]
    found = {glue.join(order) for order in orders for glue in "-./ "}
    return found | {"".join(order) for order in orders if len("".join(order)) == len(digits)}


def is_name(tag: int, vr: str) -> bool:
    """Tell whether an attribute is a person's name, by its VR here or in PS3.6."""
    return vr == "PN" or _is_name_by_tag(tag)


@lru_cache(maxsize=4096)
def _is_name_by_tag(tag: int) -> bool:
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "PN"


def _is_distinctive(text: str, *, naming: bool) -> bool:
    """Tell a name or number of the hospital from the ordinary words that descriptions are made of."""
    words = words_of(text)
    core = "".join(words)
    if core == _REPLACED or _VENDORS.issuperset(words):
        return False
    if any(c.isdigit() for c in core):
        return len(core) >= (5 if core.isdigit() else 4) + (0 if naming else 3)
    if is_wide(core):
        return len(core) >= (3 if naming else 6)
    if naming:
        return len(core) >= _SUBSTRING_LENGTH
    return len(words) > 1 and len(core) >= 2 * _SUBSTRING_LENGTH


def identifiers(values: Iterable[tuple[int, str, str]], is_removed: Callable[[int], bool]) -> dict[str, str]:
    """Return the identifiers in the values of a data set, each with its kind.

    Parameters
    ----------
    values : iterable of (tag, vr, text)
        Every text value, nested ones included, as read.
    is_removed : callable
        Tells whether a tag's text must not leave; such a text is an identifier when it is no ordinary word.
    """
    found: dict[str, str] = {}
    for tag, vr, text in values:
        parts = [part for part in (value.strip(" \0") for value in text.split("\\")) if part]
        kind, forms = _forms(tag, vr, parts, removed=vr in TEXT_VRS and is_removed(tag))
        for form in forms:
            if names_somebody(form):
                found.setdefault(form, kind)
    return dict(sorted(found.items()))


def _forms(tag: int, vr: str, parts: list[str], *, removed: bool) -> tuple[str, set[str]]:
    """Return what kind of identifier an attribute gives, and how it may be written."""
    if is_name(tag, vr):
        return "a name", set().union(*map(name_parts, parts))
    if tag == _BIRTH_DATE:
        return "a date", set().union(*map(date_forms, parts))
    if tag in IDENTIFYING:
        return "a number", set().union(*map(number_forms, parts))
    if vr == "UI":
        return "a UID", set(parts)
    if tag in NAMING or removed:
        telling = [part for part in parts if _is_distinctive(part, naming=tag in NAMING)]
        return "a text", set().union(*map(number_forms, telling))
    return "", set()


def may_identify(tag: int, vr: str) -> bool:
    """Tell whether :func:`identifiers` looks at an attribute, whatever the rules say of it."""
    return tag in NAMING or identifies_alone(tag, vr)


def identifies_alone(tag: int, vr: str) -> bool:
    """Tell whether an attribute's value identifies, however short and ordinary."""
    return vr == "UI" or tag in IDENTIFYING or is_name(tag, vr)
