"""Text values: character sets (PS3.3 C.12.1.1.2) and what a value of each VR may look like (PS3.5 6.2)."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Final

from pydicom.charset import decode_bytes, python_encoding

from anonymizer.errors import StopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anonymizer.elements import Bytes

CHARSET_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
MULTI_LINE: Final = frozenset({"LT", "ST", "UT"})
_DELIMITERS: Final = {ord(c) for c in "\n\r\t\f\\^="}
_LEXICAL: Final = {
    "AE": re.compile(rb"[\x20-\x7e]*"),
    "AS": re.compile(rb"(?:\d{3}[DWMY])? *"),
    "CS": re.compile(rb"[\x20-\x7e]*"),
    "DS": re.compile(rb"[0-9+\-.eE \\]*"),
    "IS": re.compile(rb"[0-9+\- \\]*"),
    "UI": re.compile(rb"[0-9.\\ ]*"),
    "UR": re.compile(rb"[\x21-\x7e]* *"),
}
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


def fits(vr: str, value: Bytes, charset: Charset) -> bool:
    """Tell whether a value that is to be kept looks like its VR; one that does not could hold anything.

    Raises
    ------
    StopError
        If text cannot be decoded.
    """
    if vr in CHARSET_VRS:
        text = charset.decode(value).rstrip("\0")
        return not (_CONTROL_MULTI_LINE if vr in MULTI_LINE else _CONTROL).search(text)
    pattern = _LEXICAL.get(vr)
    if pattern is not None:
        return pattern.fullmatch(bytes(value).rstrip(b"\0")) is not None
    size = _SIZES.get(vr)
    return size is None or len(value) % size == 0
