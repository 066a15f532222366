"""The options of PS3.15 Annex E: their codes (PS3.16 CID 7050), and which exclude each other."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from anonymizer.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BASIC_PROFILE: Final = ("113100", "Basic Application Confidentiality Profile")


class Option(StrEnum):
    """An option of the Basic Profile, by the name that profile files use."""

    CLEAN_PIXELS = "clean-pixel-data"
    CLEAN_FACES = "clean-recognizable-visual-features"
    CLEAN_GRAPHICS = "clean-graphics"
    CLEAN_STRUCTURED = "clean-structured-content"
    CLEAN_DESCRIPTORS = "clean-descriptors"
    FULL_DATES = "retain-longitudinal-full-dates"
    MODIFIED_DATES = "retain-longitudinal-modified-dates"
    PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    DEVICE_IDENTITY = "retain-device-identity"
    UIDS = "retain-uids"
    SAFE_PRIVATE = "retain-safe-private"
    INSTITUTION_IDENTITY = "retain-institution-identity"


CODES: Final[Mapping[Option, tuple[str, str]]] = MappingProxyType(
    {
        Option.CLEAN_PIXELS: ("113101", "Clean Pixel Data Option"),
        Option.CLEAN_FACES: ("113102", "Clean Recognizable Visual Features Option"),
        Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
        Option.CLEAN_STRUCTURED: ("113104", "Clean Structured Content Option"),
        Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
        Option.FULL_DATES: ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
        Option.MODIFIED_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
        Option.PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
        Option.DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
        Option.UIDS: ("113110", "Retain UIDs Option"),
        Option.SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
        Option.INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
    }
)
"""Code value and meaning in scheme DCM (PS3.16 CID 7050)."""

COLUMNS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        "retain_safe_private": Option.SAFE_PRIVATE,
        "retain_uids": Option.UIDS,
        "retain_device_id": Option.DEVICE_IDENTITY,
        "retain_institution_id": Option.INSTITUTION_IDENTITY,
        "retain_patient_chars": Option.PATIENT_CHARACTERISTICS,
        "retain_long_full_dates": Option.FULL_DATES,
        "retain_long_modified_dates": Option.MODIFIED_DATES,
        "clean_descriptors": Option.CLEAN_DESCRIPTORS,
        "clean_structured_content": Option.CLEAN_STRUCTURED,
        "clean_graphics": Option.CLEAN_GRAPHICS,
    }
)
"""The columns of Table E.1-1 that name an action for an attribute; the pixel options have none."""

_EXCLUSIVE: Final = frozenset({Option.FULL_DATES, Option.MODIFIED_DATES})


def options_of(names: Iterable[str]) -> frozenset[Option]:
    """Return the options that bear these names.

    Raises
    ------
    ProfileError
        For an unknown name, or options that exclude each other.
    """
    found: set[Option] = set()
    for name in names:
        try:
            found.add(Option(name))
        except ValueError:
            known = ", ".join(Option)
            raise ProfileError(f"options: {name!r} is none; expected some of {known}") from None
    if found >= _EXCLUSIVE:
        raise ProfileError("options: full dates and modified dates exclude each other; expected one of them")
    return frozenset(found)


def codes_of(options: Iterable[Option]) -> tuple[tuple[str, str], ...]:
    """Return the codes of the Basic Profile and of the options, in the order of CID 7050."""
    chosen = frozenset(options)
    return (BASIC_PROFILE, *(code for option, code in CODES.items() if option in chosen))
