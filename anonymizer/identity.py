"""What stands in place of the identity, and the attributes that say so (PS3.15 E.1.1, PS3.16 CID 7050)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anonymizer.elements import Element, Item
from anonymizer.options import Option, codes_of

if TYPE_CHECKING:
    from anonymizer.profiles import Profile

_PATIENT_NAME, _PATIENT_ID = 0x00100010, 0x00100020
_IDENTITY_REMOVED, _METHOD, _METHOD_CODES = 0x00120062, 0x00120063, 0x00120064
_LONGITUDINAL: Final = 0x00280303
WRITTEN: Final = frozenset(
    {_PATIENT_NAME, _PATIENT_ID, _IDENTITY_REMOVED, _METHOD, _METHOD_CODES, _LONGITUDINAL}
)
METHOD: Final = "Cloister: PS3.15 2026c"


def _text(tag: int, vr: str, value: str) -> Element:
    return Element(tag, vr, value.encode("ascii"))


def _code(value: str, meaning: str) -> Item:
    return {
        0x00080100: _text(0x00080100, "SH", value),
        0x00080102: _text(0x00080102, "SH", "DCM"),
        0x00080104: _text(0x00080104, "LO", meaning),
    }


def _dates(profile: Profile) -> str:
    """Return what became of dates, in the terms of (0028,0303)."""
    if Option.FULL_DATES in profile.options:
        return "UNMODIFIED"
    return "MODIFIED" if Option.MODIFIED_DATES in profile.options else "REMOVED"


def identity_elements(pseudonym: str, profile: Profile, *, looked: bool = True) -> Item:
    """Return the elements that replace the identity, and say by which profile (name, hash, codes).

    An instance whose pixels were not searched for text does not claim the Clean Pixel Data Option; one that
    a person looked at was searched.
    """
    method = f"{METHOD}\\{profile.hash}\\profile {profile.name}"  # the padding falls on the shorter value
    options = profile.options | {Option.CLEAN_PIXELS} if looked else profile.options - {Option.CLEAN_PIXELS}
    codes = tuple(_code(*code) for code in codes_of(options))
    written = (
        _text(_PATIENT_NAME, "PN", pseudonym),
        _text(_PATIENT_ID, "LO", pseudonym),
        _text(_IDENTITY_REMOVED, "CS", "YES"),
        _text(_METHOD, "LO", method),
        Element(_METHOD_CODES, "SQ", codes),
        _text(_LONGITUDINAL, "CS", _dates(profile)),
    )
    return {element.tag: element for element in written}
