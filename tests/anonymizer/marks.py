"""Marks: values that occur nowhere else, and the search for them in whatever comes out."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import TYPE_CHECKING, Final

from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

_LETTERS: Final = 5
_UID_ROOT: Final = "1.2.826.0.1.3680043.10.999."
_DAY: Final = "0731"
_FIRST_YEAR, _LAST_YEAR = 1000, 1799
_WORD_BYTES: Final = re.compile(rb"zq[a-z]{5}qz")
_WORD: Final = re.compile(r"zq\W*([a-z]\W*){5}qz")
_UID: Final = re.compile(r"1\.2\.826\.0\.1\.3680043\.10\.999\.\d+")
_UID_BYTES: Final = re.compile(_UID.pattern.encode())
_DATE: Final = re.compile(r"(?<!\d)1[0-7]\d\d0731(?!\d)")
_DATE_BYTES: Final = re.compile(_DATE.pattern.encode())
_NUMBER: Final = re.compile(r"(?<!\d)77000\d{5}(?!\d)")
_NUMBER_BYTES: Final = re.compile(_NUMBER.pattern.encode())
_PATTERNS: Final = ((_WORD, _WORD_BYTES), (_UID, _UID_BYTES), (_DATE, _DATE_BYTES), (_NUMBER, _NUMBER_BYTES))


class Marks:
    """Hands out marks, and remembers where each was planted."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self._dates = 0

    def text(self, place: str) -> str:
        """Return a word: nine letters, of mixed case, that no vocabulary has."""
        number = len(self.where)
        letters = ""
        for _ in range(_LETTERS):
            number, rest = divmod(number, 26)
            letters += chr(ord("a") + rest)
        self.where[f"zq{letters}qz"] = place
        return f"Zq{letters}Qz"

    def uid(self, place: str) -> str:
        """Return a UID."""
        return self._noted(f"{_UID_ROOT}{len(self.where)}", place)

    def date(self, place: str) -> str:
        """Return a DA value; two of them are never as far apart as dates are shifted."""
        year = _FIRST_YEAR + 2 * self._dates
        if year > _LAST_YEAR:
            raise ValueError("no more dates")
        self._dates += 1
        return self._noted(f"{year}{_DAY}", place)

    def number(self, place: str) -> str:
        """Return ten digits."""
        return self._noted(f"77000{len(self.where):05d}", place)

    def _noted(self, mark: str, place: str) -> str:
        self.where[mark] = place
        return mark

    def survivors(self, content: bytes) -> list[str]:
        """Return where the marks that are still in a Part 10 file were planted.

        Every byte is looked at, as it is and as text of two or four bytes for a letter, whether the data set
        is deflated or not; and every value, as pydicom decodes it.
        """
        found = set(_in_bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = dcmread(io.BytesIO(content), force=True)
            if ds.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
                found |= set(_in_bytes(_inflated(content)))
            for text in _texts(ds):
                found |= set(_in_text(text))
        return self._places(found)

    def survivors_in_text(self, text: str) -> list[str]:
        """Return where the marks of a text were planted."""
        return self._places(set(_in_text(text)))

    def _places(self, found: set[str]) -> list[str]:
        return sorted(self.where.get(mark, "unknown") for mark in found)


def _in_bytes(content: bytes) -> Iterator[str]:
    lowered = content.lower()
    views = [lowered, lowered[::2], lowered[1::2], *(lowered[n::4] for n in range(4))]
    for view in views:
        for _, pattern in _PATTERNS:
            yield from (match[0].decode("ascii") for match in pattern.finditer(view))


def _in_text(text: str) -> Iterator[str]:
    lowered = text.lower()
    for pattern, _ in _PATTERNS:
        for match in pattern.finditer(lowered):
            yield re.sub(r"\W", "", match[0]) if pattern is _WORD else match[0]


def _texts(ds: Dataset) -> Iterator[str]:
    for element in ds.iterall():
        if element.VR == "SQ":
            continue
        value = element.value
        if isinstance(value, str):
            yield value
        elif not isinstance(value, (bytes, int, float, type(None))):
            yield "\\".join(map(str, value)) if hasattr(value, "__iter__") else str(value)


def _inflated(content: bytes) -> bytes:
    """Inflate what follows the file meta information, whose length stands in (0002,0000)."""
    end = 144 + int.from_bytes(content[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(content[end:])
    return body + inflater.unused_data
