"""An independent check that no identifier of the original is in what would leave.

Independent of the rule tables: what identifies is listed here again, and every value is searched, whatever
its attribute. A hit stops a release; a missing hit proves nothing beyond the identifiers that were searched
for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Final

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from anonymizer.elements import Bytes

IDENTIFYING: Final = frozenset(
    tag
    for tag in map(
        tag_for_keyword,
        """
        PatientID OtherPatientIDs PatientBirthDate PatientAddress PatientTelephoneNumbers AccessionNumber
        MedicalRecordLocator InsurancePlanIdentification AdmissionID ServiceEpisodeID
        PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest
        """.split(),  # noqa: SIM905 - a list of words reads better than quotes
    )
    if tag is not None
)
NUMERIC_VRS: Final = frozenset({
    "AS", "AT", "DA", "DS", "DT", "FD", "FL", "IS", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "TM",
    "UL", "US", "UV",
})  # fmt: skip
PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PRINTED: Final = re.compile(rb"[\x20-\x7e]{10,}")  # shorter runs are frequent in compressed data
_UID: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3,}")
_WORD: Final = re.compile(r"[^\W_]+")
_SUBSTRING_LENGTH: Final = 6
_WORD_LENGTH: Final = 3
_IDEOGRAPHIC_LENGTH: Final = 2
_DIGITS_EVERYWHERE: Final = 8


@dataclass(frozen=True)
class Residue:
    """A place where an identifier was found; ``identifier`` is its position in the list that was given."""

    where: str
    identifier: int


@dataclass(frozen=True, slots=True)
class Value:
    """One value to search; ``text`` is None where the value is not text."""

    where: str
    vr: str
    raw: bytes
    text: str | None


@dataclass(frozen=True, slots=True)
class _Needle:
    number: int
    words: tuple[str, ...]
    forms: tuple[bytes, ...]
    digits: bool
    in_numbers: bool

    def in_raw(self, lowered: bytes) -> bool:
        """Tell whether one of the encoded forms is there; digits count only as a whole number."""
        if not self.digits:
            return any(form in lowered for form in self.forms)
        return any(_whole_number(form, lowered) for form in self.forms)


def _whole_number(form: bytes, lowered: bytes) -> bool:
    at = lowered.find(form)
    while at >= 0:
        before, after = lowered[max(at - 1, 0) : at], lowered[at + len(form) : at + len(form) + 1]
        if (before + after).strip(b"0123456789.") == before + after:
            return True
        at = lowered.find(form, at + 1)
    return False


def _forms(text: str) -> tuple[bytes, ...]:
    codecs = ["utf-8", "utf-16-le", "utf-16-be"]
    if not text.isascii():
        codecs += [
            "latin-1",
            "iso8859_2",
            "iso8859_5",
            "iso8859_7",
            "gb18030",
            "euc_kr",
            "euc_jp",
            "shift_jis",
        ]
    found: set[bytes] = set()
    for variant in {text, text.lower(), text.upper()}:
        for codec in codecs:
            try:
                found.add(variant.encode(codec).lower())
            except UnicodeEncodeError:
                continue
    return tuple(sorted(found))


def _needle(number: int, text: str) -> _Needle:
    words = tuple(word.casefold() for word in _WORD.findall(text))
    long_enough, digits = len(text) >= _SUBSTRING_LENGTH, text.isascii() and text.isdigit()
    return _Needle(
        number=number,
        words=words,
        forms=_forms(text) if long_enough else (),
        digits=digits,
        in_numbers=long_enough and (not digits or len(text) >= _DIGITS_EVERYWHERE),
    )


class Search:
    """A compiled list of identifiers."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._uids: dict[bytes, int] = {}
        self._needles: list[_Needle] = []
        for number, identifier in enumerate(wanted):
            text = identifier.strip(" \0")
            raw = text.encode("utf-8")
            if _UID.fullmatch(raw):
                self._uids[raw] = number
            elif _names_somebody(text):
                self._needles.append(_needle(number, text))

    def in_values(self, values: Sequence[Value]) -> Iterator[Residue]:
        """Search values: their bytes, and text also by whole words."""
        numbers = b"\0".join(value.raw for value in values if value.vr in NUMERIC_VRS).lower()
        others = b"\0".join(value.raw for value in values if value.vr not in NUMERIC_VRS).lower()
        words = set(_words("\0".join(value.text or "" for value in values if _has_words(value))))
        suspects = [
            needle
            for needle in self._needles
            if needle.in_raw(others)
            or (needle.in_numbers and needle.in_raw(numbers))
            or (needle.words and words.issuperset(needle.words))
        ]
        if suspects or self._uids.keys() & set(_UID.findall(others)):
            for value in values:
                yield from self._in_value(value, suspects)

    def _in_value(self, value: Value, needles: Sequence[_Needle]) -> Iterator[Residue]:
        lowered = value.raw.lower()
        for uid in set(_UID.findall(lowered)) & self._uids.keys():
            yield Residue(value.where, self._uids[uid])
        words = _words(value.text or "") if _has_words(value) else []
        numeric = value.vr in NUMERIC_VRS
        for needle in needles:
            if ((needle.in_numbers or not numeric) and needle.in_raw(lowered)) or _contains(
                words, needle.words
            ):
                yield Residue(value.where, needle.number)

    def in_bytes(self, where: str, raw: Bytes) -> Iterator[Residue]:
        """Search bytes of no known structure for identifiers that are long enough not to occur by chance."""
        lowered = bytes(raw).lower()
        for uid in set(_UID.findall(lowered)) & self._uids.keys():
            yield Residue(where, self._uids[uid])
        for needle in self._needles:
            if needle.in_numbers and needle.in_raw(lowered):
                yield Residue(where, needle.number)

    def in_frame(self, where: str, raw: Bytes) -> Iterator[Residue]:
        """Search a compressed frame: as bytes, and what is printed in it for short identifiers as words."""
        found = set(self.in_bytes(where, raw))
        for run in _PRINTED.findall(bytes(raw)):
            words = _words(run.decode("ascii"))
            found |= {
                Residue(where, needle.number) for needle in self._needles if _contains(words, needle.words)
            }
        yield from sorted(found, key=lambda residue: residue.identifier)


def _has_words(value: Value) -> bool:
    return value.text is not None and value.vr not in NUMERIC_VRS and value.vr != "UI"


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _contains(words: list[str], wanted: tuple[str, ...]) -> bool:
    size = len(wanted)
    if not size or wanted[0] not in words:
        return False
    return any(tuple(words[i : i + size]) == wanted for i in range(len(words) - size + 1))


def _names_somebody(word: str) -> bool:
    return len(word) >= (_WORD_LENGTH if word.isascii() else _IDEOGRAPHIC_LENGTH)


def name_parts(name: str) -> set[str]:
    """Return the parts of a PN value that identify: each word of it, and the words in any order of two."""
    words = [word for word in _WORD.findall(name) if _names_somebody(word)]
    pairs = {f"{a}{glue}{b}" for a, b in permutations(words[:4], 2) for glue in (" ", "^", "", ", ")}
    return set(words) | pairs


def identifiers(values: Iterable[tuple[int, str, str]]) -> tuple[str, ...]:
    """Return the identifiers in the values of a data set.

    Parameters
    ----------
    values : iterable of (tag, vr, text)
        Every text value, nested ones included, as read.
    """
    found: set[str] = set()
    for tag, vr, text in values:
        if vr == "PN":
            for value in text.split("\\"):
                found |= name_parts(value)
        elif vr == "UI" or tag in IDENTIFYING:
            found.update(value.strip(" \0") for value in text.split("\\"))
        if tag in IDENTIFYING and vr == "DA":
            found |= {
                f"{d[:4]}{s}{d[4:6]}{s}{d[6:8]}" for d in text.split("\\") for s in "-./" if len(d) == 8
            }
    return tuple(sorted(text for text in found if _names_somebody(text)))


def identifiers_of(ds: Dataset, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the identifiers of a data set, without UIDs that ``known`` lists (those of the standard)."""
    values = [
        (int(element.tag), element.VR, _text(element.value))
        for element in ds.iterall()
        if element.VR in {"PN", "UI"} or int(element.tag) in IDENTIFYING
    ]
    return tuple(text for text in identifiers(values) if text not in set(known))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list, tuple)):
        return "\\".join(map(str, value))
    return str(value)


def find_residue(source: Dataset | Path, wanted: Sequence[str]) -> list[Residue]:
    """Search an instance for identifiers, in every value of every VR and in the bytes outside the pixel data.

    Parameters
    ----------
    source : Dataset or Path
        What would leave. A path is searched as bytes too: preamble, file meta information and whatever
        follows.
    wanted : sequence of str
        Identifiers as text. Those of fewer than six characters are found as whole words of text values only.
    """
    search = Search(wanted)
    if isinstance(source, Dataset):
        return list(search.in_values(list(_values(source))))
    content = source.read_bytes()
    ds = dcmread(source, force=True)
    found = list(search.in_values([*_values(ds), *_values(ds.file_meta)]))
    pixels = ds.get_item(0x7FE00010)
    native = pixels is not None and not ds.file_meta.get("TransferSyntaxUID", "").is_compressed
    size = len(pixels.value or b"") if native and pixels is not None else 0
    outside = content if not size else content.replace(bytes(pixels.value), b"", 1)
    return found + list(search.in_bytes("bytes", outside))


def _values(ds: Dataset) -> Iterator[Value]:
    for element in ds.iterall():
        if element.VR == "SQ" or int(element.tag) in PIXELS:
            continue
        value = element.value
        if isinstance(value, bytes):
            yield Value(str(element.tag), element.VR, value, value.decode("latin-1"))
        else:
            text = _text(value)
            yield Value(str(element.tag), element.VR, text.encode("utf-8"), text)
