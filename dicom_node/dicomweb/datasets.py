"""Answers of the catalogue in the DICOM JSON model (PS3.18 annex F)."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}\Z")
_KEYWORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}\Z")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,12}\Z")
_NUMBERS: Final = frozenset({"IS", "SL", "SS", "UL", "US"})
_ONE_VALUE: Final = frozenset({"LT", "ST", "UR", "UT"})
_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")


def keyword_of(name: str) -> str | None:
    """Return the keyword of an attribute given by keyword or by eight hexadecimal digits.

    A tag without a keyword, and a well-formed keyword that the dictionary does not know, stay as they are;
    None for anything else. Of a path into a sequence only the sequence counts.
    """
    first, _, rest = name.partition(".")
    if rest and keyword_of(rest) is None:
        return None
    if _TAG.match(first):
        from pydicom.datadict import keyword_for_tag  # noqa: PLC0415 - heavy, for the first search

        return keyword_for_tag(int(first, 16)) or first.upper()
    return first if _KEYWORD.match(first) else None


def encode(values: Mapping[str, str], keywords: Iterable[str]) -> dict[str, Any]:
    """Return the attributes of these keywords by tag, ascending; one without a value is there, empty.

    Parameters
    ----------
    values : mapping of str to str
        By keyword; several values are joined by backslashes.
    keywords : iterable of str
        Those that ``values`` lacks are left out.
    """
    chosen = {keyword: values[keyword] for keyword in keywords if keyword in values}
    if any(not text.isascii() for text in chosen.values()):
        chosen["SpecificCharacterSet"] = "ISO_IR 192"
    found = sorted((*_tag_and_vr(keyword), text) for keyword, text in chosen.items())
    return {tag: _attribute(vr, text) for tag, vr, text in found}


@cache
def _tag_and_vr(keyword: str) -> tuple[str, str]:
    from pydicom.datadict import dictionary_VR, keyword_dict  # noqa: PLC0415 - heavy, for the first search

    tag = keyword_dict[keyword]
    return f"{tag:08X}", dictionary_VR(tag)


def _attribute(vr: str, text: str) -> dict[str, Any]:
    if not text:
        return {"vr": vr}
    parts = [text] if vr in _ONE_VALUE else text.split("\\")
    return {"vr": vr, "Value": [_value(vr, part.strip()) for part in parts]}


def _value(vr: str, text: str) -> Any:
    if not text:
        return None
    if vr == "PN":
        groups = zip(_PARTS, text.split("="), strict=False)
        return {part: group for part, group in groups if group}
    return int(text) if vr in _NUMBERS and _INTEGER.match(text) else text
