"""Applying a profile's decisions to the elements of a data set, nested sequences included."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VM

from anonymizer import dates, descriptors, icc, keep_list, private, rules, structured, uids
from anonymizer.elements import Element, Fragments, Item
from anonymizer.errors import StopError
from anonymizer.pixels import ALL as PIXELS
from anonymizer.pixels import OFFSETS_AND_LENGTH
from anonymizer.rules import Action
from anonymizer.text import CHARSET_VRS, Charset, fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anonymizer.elements import Bytes
    from anonymizer.keep_list import Decision
    from anonymizer.patient import Patient

_BODY_PART: Final = 0x00180015
_SCHEME, _MEANING = 0x00080102, 0x00080104
_LOCAL_SCHEME: Final = re.compile(rb"99|L *\Z")
_ICC_PROFILE: Final = 0x00282000
_AGE: Final = 0x00101010
_YEARS, _OLDEST = re.compile(rb"(\d{3})Y"), 89
_CLEANABLE: Final = CHARSET_VRS - {"PN"} | {"CS"}
UNFIT: Final = "unfit_value"
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
_WORDED: Final = CHARSET_VRS | {"AE", "CS", "UR"}
_PIXELS_AND_OFFSETS: Final = PIXELS | OFFSETS_AND_LENGTH


def transform(item: Item, decisions: Mapping[int, Decision], patient: Patient, charset: Charset) -> Item:
    """Return the elements of a data set or item that may leave.

    Pixel data and the tables of where its frames lie are judged and made elsewhere, and left out.

    Raises
    ------
    StopError
        If a required attribute that is to be kept does not look like its VR, or text cannot be decoded.
    """
    out: Item = {}
    private_code = _SCHEME in item and _is_private_scheme(item[_SCHEME])
    for tag, element in item.items():
        decision = decisions.get(tag) or keep_list.outside(tag, patient.profile)
        if decision is None or tag in _PIXELS_AND_OFFSETS:
            continue
        if private_code and tag == _MEANING and decision.action is Action.KEEP:
            decision = replace(decision, action=Action.CLEAN, otherwise=Action.DUMMY)
        changed = _apply(element, decision, patient, charset)
        if changed is not None:
            out[tag] = changed
    if patient.keeps_private:
        out.update(
            private.kept(item, patient.profile, charset, partial(_apply, patient=patient, charset=charset))
        )
    return out


def _is_private_scheme(element: Element) -> bool:
    """Tell whether a code's meaning is what somebody typed: schemes 99 and L are local (PS3.16 8.2)."""
    value = element.value
    return isinstance(value, (bytes, memoryview)) and _LOCAL_SCHEME.match(value) is not None


def _apply(element: Element, decision: Decision, patient: Patient, charset: Charset) -> Element | None:
    action = decision.action
    if action in {Action.REMOVE, Action.EMPTY, Action.DUMMY}:
        return _replaced(element, decision, action, patient)
    if element.vr not in decision.vrs or isinstance(element.value, Fragments):
        return _unfit(element, decision, patient)
    if action is Action.REMAP_UID:
        return _remapped(element, patient)
    if action is Action.SHIFT:
        return _shifted(element, decision, patient)
    if action is Action.CLEAN:
        return _cleaned(element, decision, patient, charset)
    return _kept(element, decision, patient, charset)


def _replaced(element: Element, decision: Decision, action: Action, patient: Patient) -> Element | None:
    if action is Action.DUMMY:
        return dummy(element.tag, decision, patient)
    return _empty(element, decision) if action is Action.EMPTY else None


def _empty(element: Element, decision: Decision) -> Element:
    vr = _vr(decision, element.vr)
    return Element(element.tag, vr, () if vr == "SQ" else b"")


def _vr(decision: Decision, found: str = "") -> str:
    return found if found in decision.vrs else min(decision.vrs)


def dummy(tag: int, decision: Decision, patient: Patient) -> Element:
    """Return a value of the right VR that is the same for everyone; for a sequence one item of these."""
    vr = _vr(decision)
    if decision.value:
        return Element(tag, vr, decision.value.encode("ascii"))
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
    if decision.action in {Action.SHIFT, Action.CLEAN}:
        return dummy(element.tag, decision, patient)
    place = f"({element.tag >> 16:04X},{element.tag & 0xFFFF:04X})"
    raise StopError(UNFIT, f"{place}: a required attribute whose value does not look like its VR")


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


def _cleaned(element: Element, decision: Decision, patient: Patient, charset: Charset) -> Element | None:
    """Clean what Table E.1-1 or a rule wants cleaned; where nothing is left, the basic action counts."""
    value, vr = element.value, element.vr
    if isinstance(value, tuple):
        return structured.cleaned(element, decision, patient, charset, transform)
    if vr == "AE" and not isinstance(value, Fragments):
        return Element(element.tag, vr, patient.machine(_text(value).strip(" \0")).encode("ascii"))
    if isinstance(value, Fragments) or vr not in _CLEANABLE or not fits(vr, value, charset):
        return _replaced(element, decision, decision.otherwise, patient)
    text = _text(value) if vr == "CS" else charset.decode(value)
    left = descriptors.cleaned_text(text.rstrip("\0"), vr, patient.subject)
    encoded = None if left is None else charset.encode(left)
    if not encoded:
        return _replaced(element, decision, decision.otherwise, patient)
    return Element(element.tag, vr, encoded)


def _kept(element: Element, decision: Decision, patient: Patient, charset: Charset) -> Element | None:
    value = element.value
    if isinstance(value, tuple):
        return _kept_items(element, value, decision, patient, charset)
    if (
        isinstance(value, Fragments)
        or not fits(element.vr, value, charset)
        or (element.tag == _BODY_PART and not _is_body_part(value))
    ):
        return _unfit(element, decision, patient)
    if decision.type not in _REQUIRED and _names_somebody(element, patient, charset):
        return None if decision.type == "3" else _empty(element, decision)
    if element.tag == _ICC_PROFILE:
        # What is no profile says nothing of colours: it goes even where one is required.
        profile = icc.cleaned(bytes(value)) if isinstance(value, (bytes, memoryview)) else None
        return None if profile is None else Element(element.tag, "OB", profile)
    return _capped(element) if element.tag == _AGE else element


def _names_somebody(element: Element, patient: Patient, charset: Charset) -> bool:
    """Tell whether a kept text holds a word that this data set gives as a person's name or number."""
    value = element.value
    if element.vr not in _WORDED or not isinstance(value, (bytes, memoryview)):
        return False
    return patient.subject.is_in(charset.decode(value) if element.vr in CHARSET_VRS else _text(value))


def _kept_items(
    element: Element, items: tuple[Item, ...], decision: Decision, patient: Patient, charset: Charset
) -> Element | None:
    """Keep a sequence; where one of its items holds what cannot be judged, and need not be there, drop it."""
    try:
        kept = tuple(transform(item, decision.children, patient, charset.of_item(item)) for item in items)
    except StopError as stop:
        if stop.code != UNFIT or decision.type in _REQUIRED:
            raise
        return None if decision.type == "3" else Element(element.tag, "SQ", ())
    return Element(element.tag, "SQ", kept)


def _capped(element: Element) -> Element:
    """Join all who are older than 89 years: they are few, and known by their age (45 CFR 164.514(b)(2))."""
    age = _YEARS.match(element.value) if isinstance(element.value, (bytes, memoryview)) else None
    return Element(element.tag, "AS", b"090Y") if age is not None and int(age[1]) > _OLDEST else element


def _is_body_part(value: Bytes) -> bool:
    """Tell whether a value is a defined term (PS3.16 Annex L): people write more than that into it."""
    return _text(value).strip(" \0") in _body_parts()


@lru_cache(maxsize=1)
def _body_parts() -> frozenset[str]:
    return frozenset({"", *rules.read_table("body_parts.json")["terms"]})


def without(item: Item, decisions: Mapping[int, Decision], places: Iterable[str], patient: Patient) -> Item:
    """Return a data set without the attributes at some places; what must be there is emptied or a dummy.

    Parameters
    ----------
    places : iterable of str
        As a verdict names them, such as ``(0008,1110)>(0008,1155)``.
    """
    for place in sorted(places):
        tags = tuple(int(tag[1:5] + tag[6:10], 16) for tag in place.split(">"))
        item = _without(item, decisions, tags, patient)
    return item


def _without(item: Item, decisions: Mapping[int, Decision], tags: tuple[int, ...], patient: Patient) -> Item:
    tag, *inner = tags
    element, decision = item.get(tag), decisions.get(tag)
    if element is None:
        return item
    if inner:
        if not isinstance(element.value, tuple):
            return item
        children = decision.children if decision is not None else {}
        items = tuple(_without(child, children, tuple(inner), patient) for child in element.value)
        return item | {tag: Element(tag, element.vr, items)}
    if decision is None or decision.type == "3":
        return {other: kept for other, kept in item.items() if other != tag}
    if decision.type in {"1", "1C"}:
        return item | {tag: dummy(tag, decision, patient)}
    return item | {tag: Element(tag, element.vr, () if element.vr == "SQ" else b"")}
