"""What a data set says of persons: the words and numbers that no kept text may hold."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anonymizer.elements import Item
    from anonymizer.text import Charset

_NUMBERS: Final = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "PatientID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "PatientBirthDate",
        "AccessionNumber", "MedicalRecordLocator", "InsurancePlanIdentification", "AdmissionID",
        "ServiceEpisodeID", "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest", "MilitaryRank", "RegionOfResidence",
    )
)  # fmt: skip
_SHORTEST: Final = 2
_SHORTEST_ALONE: Final = 3


@dataclass(frozen=True)
class Subject:
    """Folded words, and runs of letters and digits of numbers."""

    words: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str], numbers: Iterable[str]) -> Subject:
        """Collect the words of person names and the parts of identifiers (each as it is and run together)."""
        found = {word for name in names for word in words_of(name) if len(word) >= _SHORTEST}
        for number in numbers:
            parts = words_of(number)
            found |= {*parts, "".join(parts), "".join(parts).lstrip("0")}
        return cls(frozenset(found - {""}))

    @classmethod
    def of_item(cls, item: Item, charset: Charset) -> Subject:
        """Collect what a data set says, nested items included.

        Raises
        ------
        StopError
            If a name or number does not fit the declared character set.
        """
        return cls.of_values(_texts(item, charset))

    @classmethod
    def of_values(cls, values: Iterable[tuple[int, str, str]]) -> Subject:
        """Collect what values (tag, VR, text) say, those of them that name somebody or number something."""
        said = [value for value in values if value[0] in _NUMBERS or _is_name(*value[:2])]
        return cls.of(
            [text for tag, vr, text in said if _is_name(tag, vr)],
            [text for tag, vr, text in said if not _is_name(tag, vr)],
        )

    def __or__(self, other: Subject) -> Subject:
        """Join what two say."""
        return Subject(self.words | other.words) if other.words else self

    def is_in(self, text: str) -> bool:
        """Tell whether one of the words stands in a text; shorter ones than three letters are too common."""
        return any(
            word in self.words and len(word) >= (_SHORTEST_ALONE if word.isascii() else _SHORTEST)
            for word in words_of(text)
        )


def _texts(item: Item, charset: Charset) -> Iterator[tuple[int, str, str]]:
    for tag, element in item.items():
        if isinstance(element.value, tuple):
            for nested in element.value:
                yield from _texts(nested, charset.of_item(nested))
        elif (tag in _NUMBERS or _is_name(tag, element.vr)) and isinstance(
            element.value, (bytes, memoryview)
        ):
            yield tag, element.vr, charset.decode(element.value)


def fold(text: str) -> str:
    """Return text so that equal words of different form and case are equal."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """Return the folded runs of letters and digits."""
    return re.findall(r"[^\W_]+", fold(text))


def _is_name(tag: int, vr: str) -> bool:
    return vr == "PN" or _is_name_by_tag(tag)


@lru_cache(maxsize=4096)
def _is_name_by_tag(tag: int) -> bool:
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "PN"
