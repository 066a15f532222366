"""Content items of structured reports, by concept name (PS3.15 E.3.4 and Table E.3.4-1).

An item whose concept the table removes goes with all below it, except where other items are referred to by
their position in the tree (PS3.3 C.17.3.2.5): there it stays, with a dummy for its text.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from anonymizer import keep_list, rules
from anonymizer.descriptors import cleaned_text
from anonymizer.elements import Element, Item
from anonymizer.options import COLUMNS, Option
from anonymizer.pixels import text_of
from anonymizer.rules import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anonymizer.keep_list import Decision
    from anonymizer.patient import Patient
    from anonymizer.profiles import Profile
    from anonymizer.text import Charset

    Transform = Callable[[Item, Mapping[int, Decision], Patient, Charset], Item]

CONTENT: Final = 0x0040A730
_CONTENT_ITEMS: Final = frozenset({CONTENT, 0x00400555, 0x00400612})
_VALUE_TYPE, _CONCEPT, _TEXT_VALUE = 0x0040A040, 0x0040A043, 0x0040A160
_OBSERVED: Final = 0x0040A032
_CODE_VALUES: Final = (0x00080100, 0x00080119, 0x00080120)
_SCHEME, _MEANING = 0x00080102, 0x00080104
_BY_POSITION: Final = 0x0040DB73
_REMOVED: Final = b"REMOVED"
_VALUE_TYPES: Final = frozenset({
    "TEXT", "NUM", "CODE", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME", "COMPOSITE", "IMAGE", "WAVEFORM",
    "SCOORD", "SCOORD3D", "TCOORD", "CONTAINER", "TABLE",
})  # fmt: skip
_TEMPORAL: Final = frozenset({"DATE", "TIME", "DATETIME"})
_Row = tuple[str, "Mapping[Option, str]"]


@lru_cache(maxsize=1)
def _table() -> Mapping[tuple[str, str, str], _Row]:
    content = rules.read_table("sr_codes.json")
    options = [COLUMNS[name] for name in content["columns"][4:-1]]
    return MappingProxyType(
        {
            (code, scheme, kind): (basic, {o: c for o, c in zip(options, codes, strict=True) if c})
            for code, scheme, kind, basic, *codes, _ in content["rows"]
        }
    )


def action_for(code: str, scheme: str, value_type: str, options: frozenset[Option]) -> Action:
    """Return what happens to the value of a content item.

    Without a row text is cleaned and the rest follows the attributes' own rules; REMOVE takes the item away.
    """
    row = _table().get((code, scheme, value_type))
    if row is None:
        wanted = value_type != "TEXT" or Option.CLEAN_DESCRIPTORS in options
        return (Action.CLEAN if value_type == "TEXT" else Action.KEEP) if wanted else Action.DUMMY
    basic, by_option = row
    chosen = {letter for option, letter in by_option.items() if option in options}
    if chosen:
        return Action.CLEAN if "C" in chosen and value_type not in _TEMPORAL else Action.KEEP
    return Action.REMOVE if basic == "X" else Action.DUMMY


def cleaned(
    element: Element, decision: Decision, patient: Patient, charset: Charset, transform: Transform
) -> Element:
    """Return a sequence that Table E.1-1 has cleaned: content items by concept, others by attribute."""
    items = element.value
    if not isinstance(items, tuple):
        return Element(element.tag, "SQ", ())
    by_position = _refers_by_position(items)
    out = []
    for item in items:
        inner = charset.of_item(item)
        if element.tag in _CONTENT_ITEMS:
            made = _content_item(item, decision, patient, inner, transform, by_position=by_position)
        else:
            made = transform(item, decision.children, patient, inner)
        if made is not None:
            out.append(made)
    return Element(element.tag, "SQ", tuple(out))


def _refers_by_position(items: tuple[Item, ...]) -> bool:
    return any(
        _BY_POSITION in item
        or any(isinstance(e.value, tuple) and _refers_by_position(e.value) for e in item.values())
        for item in items
    )


def _content_item(
    item: Item,
    decision: Decision,
    patient: Patient,
    charset: Charset,
    transform: Transform,
    *,
    by_position: bool,
) -> Item | None:
    value_type = text_of(item, _VALUE_TYPE)
    if value_type and value_type not in _VALUE_TYPES:
        return None
    action = action_for(*_concept(item), value_type, patient.profile.options)
    if action is Action.REMOVE and not by_position:
        return None
    out = transform(item, _item_decisions(decision, patient.profile), patient, charset)
    out.pop(_TEXT_VALUE, None)  # only an item of text may have one
    text = item.get(_TEXT_VALUE)
    if value_type == "TEXT" and text is not None and isinstance(text.value, (bytes, memoryview)):
        out[_TEXT_VALUE] = _text(text, action, patient, charset)
    return out


@lru_cache(maxsize=64)
def _observed(profile: Profile) -> Decision:
    return keep_list.decide("0040A032", "3", {}, profile)


def _item_decisions(decision: Decision, profile: Profile) -> Mapping[int, Decision]:
    """Return the decisions inside a content item: trees nest, which the keep list says once only."""
    return {_OBSERVED: _observed(profile), **decision.children, CONTENT: decision}


def _text(element: Element, action: Action, patient: Patient, charset: Charset) -> Element:
    if action is Action.KEEP:
        return replace(element, vr="UT")
    left = None
    if action is Action.CLEAN and isinstance(element.value, (bytes, memoryview)):
        left = cleaned_text(charset.decode(element.value).rstrip("\0"), "UT", patient.subject)
    return Element(element.tag, "UT", (charset.encode(left) if left else None) or _REMOVED)


def _concept(item: Item) -> tuple[str, str]:
    concept = item.get(_CONCEPT)
    if concept is None or not isinstance(concept.value, tuple) or not concept.value:
        return "", ""
    code = concept.value[0]
    value = next((text_of(code, tag) for tag in _CODE_VALUES if tag in code), "")
    return value, text_of(code, _SCHEME)
