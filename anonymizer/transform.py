"""Applying a profile's decisions to the elements of a data set, nested sequences included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VM

from anonymizer import dates, rules, uids
from anonymizer.elements import Element, Fragments, Item
from anonymizer.errors import StopError
from anonymizer.pixels import ALL as PIXELS
from anonymizer.pixels import OFFSETS_AND_LENGTH
from anonymizer.profiles import Decision
from anonymizer.rules import Action
from anonymizer.text import Charset, fits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anonymizer.elements import Bytes
    from anonymizer.keys import ProjectKeys

CHARSET: Final = 0x00080005
_BODY_PART: Final = 0x00180015
DUMMY_TEXT: Final = b"REMOVED"
_DUMMIES: Final[Mapping[str, bytes]] = MappingProxyType({
    **{vr: value.encode("ascii") for vr, value in dates.DUMMIES.items()},
    "AS": b"000Y", "DS": b"0", "IS": b"0", "UR": b"urn:removed",
    "AT": bytes(4), "FD": bytes(8), "FL": bytes(4), "OB": bytes(2), "OD": bytes(8), "OF": bytes(4), "OL":
    bytes(4), "OV": bytes(8), "OW": bytes(2), "SL": bytes(4), "SS": bytes(2), "SV": bytes(8), "UL": bytes(4),
    "UN": bytes(2), "US": bytes(2), "UV": bytes(8),
})  # fmt: skip
_BINARY: Final = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_REQUIRED: Final = frozenset({"1", "1C"})
_PIXELS_AND_OFFSETS: Final = PIXELS | OFFSETS_AND_LENGTH


@dataclass(frozen=True)
class Patient:
    """What is particular to the patient: the keys of the project and the days that dates move back."""

    keys: ProjectKeys
    shift_days: int


def transform(item: Item, decisions: Mapping[int, Decision], patient: Patient, charset: Charset) -> Item:
    """Return the elements of a data set or item that may leave.

    Pixel data and the tables of where its frames lie are judged and made elsewhere, and left out.

    Raises
    ------
    StopError
        If a required attribute that is to be kept does not look like its VR, or text cannot be decoded.
    """
    out: Item = {}
    for tag, element in item.items():
        decision = decisions.get(tag) or _outside(tag)
        if decision is None or tag in _PIXELS_AND_OFFSETS:
            continue
        changed = _apply(element, decision, patient, charset)
        if changed is not None:
            out[tag] = changed
    return out


@lru_cache(maxsize=4096)
def _outside(tag: int) -> Decision | None:
    """Return the decision for an attribute that is not in the SOP class: Table E.1-1's UIDs are mapped."""
    rule = rules.rule_for(tag)
    if rule is None or rule.basic != "U":
        return None
    return Decision(Action.REMAP_UID, frozenset({"UI"}), "3")


def _apply(element: Element, decision: Decision, patient: Patient, charset: Charset) -> Element | None:
    action = decision.action
    if action in {Action.REMOVE, Action.EMPTY}:
        return _empty(element, decision) if action is Action.EMPTY else None
    if action is Action.DUMMY:
        return dummy(element.tag, decision, patient)
    if element.vr not in decision.vrs or isinstance(element.value, Fragments):
        return _unfit(element, decision, patient)
    if action is Action.REMAP_UID:
        return _remapped(element, patient)
    if action is Action.SHIFT:
        return _shifted(element, decision, patient)
    return _kept(element, decision, patient, charset)


def _empty(element: Element, decision: Decision) -> Element:
    vr = _vr(decision, element.vr)
    return Element(element.tag, vr, () if vr == "SQ" else b"")


def _vr(decision: Decision, found: str = "") -> str:
    return found if found in decision.vrs else min(decision.vrs)


def dummy(tag: int, decision: Decision, patient: Patient) -> Element:
    """Return a value of the right VR that is the same for everyone; for a sequence one item of these."""
    vr = _vr(decision)
    if vr == "SQ":
        required = {child: inner for child, inner in decision.children.items() if inner.type == "1"}
        return Element(
            tag, vr, ({child: dummy(child, inner, patient) for child, inner in sorted(required.items())},)
        )
    if vr == "UI":
        return Element(tag, vr, uids.map_uid(patient.keys, "").encode("ascii"))
    return Element(tag, vr, _repeated(tag, vr, _DUMMIES.get(vr, DUMMY_TEXT)))


def _repeated(tag: int, vr: str, value: bytes) -> bytes:
    """Repeat a dummy as often as the attribute's value multiplicity demands at least (PS3.6)."""
    least = dictionary_VM(tag).partition("-")[0] if dictionary_has_tag(tag) else "1"
    count = int(least) if least.isdecimal() else 1
    return (b"" if vr in _BINARY else b"\\").join([value] * count)


def _unfit(element: Element, decision: Decision, patient: Patient) -> Element | None:
    """Drop a value that is not what its attribute holds; where one is required, a dummy or a person's eye."""
    if decision.type not in _REQUIRED:
        return None if decision.type == "3" else _empty(element, decision)
    if decision.action is Action.SHIFT:
        return dummy(element.tag, decision, patient)
    place = f"({element.tag >> 16:04X},{element.tag & 0xFFFF:04X})"
    raise StopError("unfit_value", f"{place}: a required attribute whose value does not look like its VR")


def _text(value: Bytes) -> str:
    return bytes(value).decode("ascii", "replace")


def _remapped(element: Element, patient: Patient) -> Element:
    if isinstance(element.value, (tuple, Fragments)):
        return element
    parts = _text(element.value).rstrip("\0 ").split("\\")
    mapped = "\\".join(uids.map_unless_well_known(patient.keys, part) for part in parts)
    return Element(element.tag, "UI", mapped.encode("ascii"))


def _shifted(element: Element, decision: Decision, patient: Patient) -> Element | None:
    if isinstance(element.value, (tuple, Fragments)):
        return _unfit(element, decision, patient)
    parts = [dates.shift(part, element.vr, patient.shift_days) for part in _text(element.value).split("\\")]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return _unfit(element, decision, patient)
    return Element(element.tag, element.vr, "\\".join(known).encode("ascii"))


def _kept(element: Element, decision: Decision, patient: Patient, charset: Charset) -> Element | None:
    value = element.value
    if isinstance(value, tuple):
        items = tuple(
            transform(item, decision.children, patient, _charset_of(item, charset)) for item in value
        )
        return Element(element.tag, "SQ", items)
    if (
        isinstance(value, Fragments)
        or not fits(element.vr, value, charset)
        or (element.tag == _BODY_PART and not _is_body_part(value))
    ):
        return _unfit(element, decision, patient)
    return element


def _is_body_part(value: Bytes) -> bool:
    """Tell whether a value is a defined term (PS3.16 Annex L): people write more than that into it."""
    return _text(value).strip(" \0") in _body_parts()


@lru_cache(maxsize=1)
def _body_parts() -> frozenset[str]:
    return frozenset({"", *rules.read_table("body_parts.json")["terms"]})


def _charset_of(item: Item, inherited: Charset) -> Charset:
    element = item.get(CHARSET)
    value = element.value if element is not None else None
    return Charset.of(value if isinstance(value, (bytes, memoryview)) else None, inherited)
