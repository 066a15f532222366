"""The search for identifiers in values, bytes and compressed frames.

A hit stops a release; a missing hit proves nothing beyond the identifiers that were searched for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anonymizer.verify.identifiers import fold, is_wide, names_somebody, words_of
from anonymizer.verify.pixels import Grams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anonymizer.verify.reader import Bytes

NUMERIC_VRS: Final = frozenset({
    "AS", "AT", "DA", "DS", "DT", "FD", "FL", "IS", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "TM",
    "UL", "US", "UV",
})  # fmt: skip
DATE_VRS: Final = frozenset({"DA", "DT"})
_PRINTED: Final = re.compile(rb"[\x20-\x7e]{10,}")  # shorter runs are frequent in compressed data
_UID: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3,}")
_BINARY: Final = frozenset({"OB", "UN", ""})
_SUBSTRING_LENGTH: Final = 6
_DIGITS_EVERYWHERE: Final = 8
_VARIETY: Final = 4
_AROUND: Final = 160
_REMEMBERED: Final = 4096  # surroundings that were searched: patterns of pixels repeat


@dataclass(frozen=True)
class Sought:
    """A place where an identifier was found; ``identifier`` is its position in the list that was given."""

    where: str
    identifier: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One value to search; ``text`` is None where the value is not text."""

    where: str
    vr: str
    raw: bytes
    text: str | None


@dataclass(frozen=True, slots=True)
class _Needle:
    """An identifier in the shapes that are searched for; an empty shape is too short to be searched.

    ``words`` stand in text as whole words, ``folded`` anywhere in text, ``core`` in text without separators,
    ``forms`` anywhere in bytes.
    """

    number: int
    words: tuple[str, ...]
    folded: bytes
    core: str
    forms: tuple[bytes, ...]
    digits: bool
    in_numbers: bool

    def in_raw(self, lowered: bytes) -> bool:
        """Tell whether one of the encoded forms is there; digits count only as a whole number."""
        if not self.digits:
            return any(form in lowered for form in self.forms)
        return any(_whole_number(form, lowered) for form in self.forms)

    def in_text(self, folded: bytes) -> bool:
        """Tell whether it stands in folded text, in whatever surroundings."""
        if not self.folded or self.folded not in folded:
            return False
        return not self.digits or _whole_number(self.folded, folded)


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
    words = tuple(words_of(text))
    core = "".join(words)
    long_enough, digits = len(text) >= _SUBSTRING_LENGTH, text.isascii() and text.isdigit()
    return _Needle(
        number=number,
        words=words,
        folded=fold(text).encode("utf-8") if long_enough or is_wide(text) else b"",
        core=core if _is_number(core) else "",
        forms=_forms(text) if long_enough else (),
        digits=digits,
        in_numbers=long_enough and (not digits or len(text) >= _DIGITS_EVERYWHERE),
    )


def _is_number(core: str) -> bool:
    """Tell whether an identifier is long enough to be recognised when other separators divide it."""
    if core.isdigit():
        return len(core) >= _DIGITS_EVERYWHERE
    return len(core) >= _SUBSTRING_LENGTH and any(c.isdigit() for c in core)


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
            elif names_somebody(text):
                self._needles.append(_needle(number, text))

    def in_values(self, values: Sequence[Piece]) -> Iterator[Sought]:
        """Search values: the bytes of binary ones, the words and letters of text."""
        numbers = b"\0".join(value.raw for value in values if value.vr in NUMERIC_VRS).lower()
        binary = b"\0".join(value.raw for value in values if _is_binary(value)).lower()
        texts = fold("\0".join(value.text or "" for value in values if _is_text(value))).encode("utf-8")
        worded = [words_of(value.text or "") for value in values if _has_words(value)]
        words = {word for found in worded for word in found}
        cores = "\0".join("".join(found) for found in worded)
        suspects = [
            needle
            for needle in self._needles
            if needle.in_text(texts)
            or (needle.core and needle.core in cores)
            or (needle.words and words.issuperset(needle.words))
            or (binary and needle.in_raw(binary))
            or (needle.in_numbers and needle.in_raw(numbers))
        ]
        if suspects or self._uids.keys() & set(_UID.findall(binary + b"\0" + texts)):
            for value in values:
                yield from self._in_value(value, suspects)

    def _in_value(self, value: Piece, needles: Sequence[_Needle]) -> Iterator[Sought]:
        lowered = value.raw.lower()
        for uid in set(_UID.findall(lowered)) & self._uids.keys():
            yield Sought(value.where, self._uids[uid])
        words = words_of(value.text or "") if _has_words(value) else []
        text = fold(value.text or "").encode("utf-8") if _is_text(value) else b""
        core = "".join(words)
        for needle in needles:
            if (
                needle.in_text(text)
                or (needle.core and needle.core in core)
                or _contains(words, needle.words)
                or (_is_binary(value) and needle.in_raw(lowered))
                or (value.vr in NUMERIC_VRS and needle.in_numbers and needle.in_raw(lowered))
            ):
                yield Sought(value.where, needle.number)

    def in_bytes(self, where: str, raw: Bytes) -> Iterator[Sought]:
        """Search bytes of no known structure for identifiers that are long enough not to occur by chance."""
        lowered = bytes(raw).lower()
        for uid in set(_UID.findall(lowered)) & self._uids.keys():
            yield Sought(where, self._uids[uid])
        for needle in self._needles:
            if needle.in_numbers and needle.in_raw(lowered):
                yield Sought(where, needle.number)

    def in_pixels(self, where: str, raw: Bytes) -> Iterator[Sought]:
        """Search uncompressed pixels for printed identifiers; what smooth pixels could spell is no hit."""
        varied = [needle for needle in self._needles if _is_varied(needle)]
        view, hits = memoryview(raw), set()
        searched: set[bytes] = set()
        for place in self._grams(varied).places(view):
            lowered = bytes(view[max(place - _AROUND, 0) : place + _AROUND]).lower()
            if lowered in searched:
                continue
            if len(searched) < _REMEMBERED:
                searched.add(lowered)
            hits |= {needle.number for needle in varied if needle.in_raw(lowered)}
            hits |= {self._uids[uid] for uid in set(_UID.findall(lowered)) & self._uids.keys()}
        for number in sorted(hits):
            yield Sought(where, number)

    def _grams(self, varied: Sequence[_Needle]) -> Grams:
        forms = [form for needle in varied for form in needle.forms]
        return Grams([*(form for form in forms if b"\0" not in form), *self._uids])

    def in_frame(self, where: str, raw: Bytes) -> Iterator[Sought]:
        """Search an entropy-coded frame: its bytes, and what is printed in them for short words."""
        found = set(self.in_bytes(where, raw))
        for run in _PRINTED.findall(bytes(raw)):
            words = words_of(run.decode("ascii"))
            found |= {
                Sought(where, needle.number) for needle in self._needles if _contains(words, needle.words)
            }
        yield from sorted(found, key=lambda hit: hit.identifier)


def _is_varied(needle: _Needle) -> bool:
    return needle.in_numbers and len(set(needle.folded)) >= _VARIETY


def _is_text(value: Piece) -> bool:
    return value.text is not None and value.vr not in NUMERIC_VRS and value.vr not in _BINARY


def _is_binary(value: Piece) -> bool:
    return value.vr in _BINARY or (value.text is None and value.vr not in NUMERIC_VRS)


def _has_words(value: Piece) -> bool:
    return value.text is not None and value.vr not in NUMERIC_VRS and value.vr != "UI"


def _contains(words: list[str], wanted: tuple[str, ...]) -> bool:
    size = len(wanted)
    if not size or wanted[0] not in words:
        return False
    return any(tuple(words[i : i + size]) == wanted for i in range(len(words) - size + 1))
