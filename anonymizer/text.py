"""Text values: character sets (PS3.3 C.12.1.1.2) and what a value of each VR may look like (PS3.5 6.2)."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Final

from pydicom.charset import decode_bytes, encode_string, python_encoding

from anonymizer.errors import StopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anonymizer.elements import Bytes, Item

CHARSET: Final = 0x00080005
CHARSET_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
MULTI_LINE: Final = frozenset({"LT", "ST", "UT"})
_DELIMITERS: Final = {ord(c) for c in "\n\r\t\f\\^="}
_LEXICAL: Final = {
    "AE": re.compile(rb"[\x20-\x7e]{0,16}"),
    "AS": re.compile(rb"(?:[0-9]{3}[DWMY])?"),
    "CS": re.compile(rb"[A-Z0-9 _]{0,16}"),
    "DA": re.compile(rb"(?:[0-9]{8})?"),
    "DT": re.compile(rb"(?:[0-9]{4,14}(?:\.[0-9]{1,6})?)?"),
    "TM": re.compile(rb"(?:[0-9]{2,6}(?:\.[0-9]{1,6})?)?"),
    # PS3.5 6.2 has 16 bytes for DS; writers of images use up to twice as many digits
    "DS": re.compile(rb"(?=.{0,32}\Z)(?:[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)?"),
    "IS": re.compile(rb"(?=.{0,12}\Z)(?:[+-]?[0-9]+)?"),
    "UI": re.compile(rb"[0-9.]{0,64}"),
    "UR": re.compile(rb"[\x21-\x7e]*"),
}
"""One value of each VR, padding stripped (PS3.5 Table 6.2-1)."""
_LONGEST: Final = {"LO": 64, "SH": 16, "ST": 1024, "LT": 10240}
"""Characters of one value."""
_SIZES: Final = {
    "AT": 4, "FD": 8, "FL": 4, "OD": 8, "OF": 4, "OL": 4, "OV": 8, "OW": 2, "SL": 4, "SS": 2, "SV": 8, "UL":
    4, "US": 2, "UV": 8,
}  # fmt: skip
_CONTROL: Final = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f]")  # escape has been used up by decoding
_CONTROL_MULTI_LINE: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


class Charset:
    """The character repertoire of a data set or item."""

    def __init__(self, terms: Sequence[str]) -> None:
        unknown = [term for term in terms if term not in python_encoding]
        if unknown:
            raise StopError(
                "unknown_charset", "SpecificCharacterSet (0008,0005): expected a term of PS3.3 C.12.1.1.2"
            )
        self._encodings = [python_encoding[term] for term in terms] or ["iso8859"]
        self._default = not any(terms)

    @classmethod
    def of(cls, value: Bytes | None, inherited: Charset | None = None) -> Charset:
        """Read (0008,0005); an item without one uses the data set's (PS3.3 C.12.1.1.2)."""
        if value is None:
            return inherited if inherited is not None else cls(())
        try:
            text = bytes(value).decode("ascii")
        except UnicodeDecodeError as error:
            raise StopError("unknown_charset", "SpecificCharacterSet (0008,0005): expected ASCII") from error
        terms = [term.strip(" \0") for term in text.split("\\")]
        return cls(terms if any(terms) else ())

    def decode(self, value: Bytes) -> str:
        """Decode strictly.

        Raises
        ------
        StopError
            Code ``undecodable_text``.
        """
        raw = bytes(value)
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        if self._default:
            raise StopError(
                "undecodable_text", "a text value holds bytes outside the default character repertoire"
            )
        try:
            if len(self._encodings) == 1 and b"\x1b" not in raw:
                return raw.decode(self._encodings[0])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return decode_bytes(raw, list(self._encodings), set(_DELIMITERS))
        except (UnicodeError, UserWarning, LookupError, ValueError):
            raise StopError(
                "undecodable_text", "a text value does not fit the declared character set"
            ) from None

    def of_item(self, item: Item) -> Charset:
        """Return the repertoire of an item of this one's data set."""
        element = item.get(CHARSET)
        value = element.value if element is not None else None
        return Charset.of(value if isinstance(value, (bytes, memoryview)) else None, self)

    def encode(self, text: str) -> bytes | None:
        """Encode what was decoded in part; None when the repertoire lacks a character."""
        if text.isascii():
            return text.encode("ascii")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return encode_string(text, list(self._encodings))
            except (UnicodeError, UserWarning, LookupError, ValueError):
                return None


def fits(vr: str, value: Bytes, charset: Charset) -> bool:
    """Tell whether a value that is to be kept looks like its VR; one that does not could hold anything.

    Raises
    ------
    StopError
        If text cannot be decoded.
    """
    if vr in CHARSET_VRS:
        text = charset.decode(value).rstrip("\0")
        if (_CONTROL_MULTI_LINE if vr in MULTI_LINE else _CONTROL).search(text):
            return False
        longest = _LONGEST.get(vr, len(text))
        parts = [text] if vr in MULTI_LINE else text.split("\\")
        return all(len(part.strip(" ")) <= longest for part in parts)
    pattern = _LEXICAL.get(vr)
    if pattern is not None:
        raw = bytes(value).rstrip(b"\0")
        values = [raw] if vr == "UR" else raw.split(b"\\")
        return all(pattern.fullmatch(one.strip(b" ")) for one in values)
    size = _SIZES.get(vr)
    return size is None or len(value) % size == 0
