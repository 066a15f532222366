"""Private attributes that may stay: those of PS3.15 Table E.3.10-1 and of a profile's own rules.

They are known by group, private creator and the low byte of the element, never by block, and come out in
blocks numbered anew from 10: a creator without a safe attribute leaves no trace (PS3.5 7.8.1).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from anonymizer import rules
from anonymizer.elements import Element, Item
from anonymizer.keep_list import Decision
from anonymizer.options import Option
from anonymizer.rules import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anonymizer.profiles import Profile
    from anonymizer.text import Charset

_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF
_REFUSED: Final = frozenset({"AE", "OB", "OD", "OF", "OL", "OV", "OW", "PN", "UN", "UR"})
_TEXT: Final = frozenset({"LO", "SH", "ST", "LT", "UC", "UT"})
_LOWEST_GROUP: Final = 0x0009
_Key = tuple[int, str, int]


@lru_cache(maxsize=1)
def _table() -> Mapping[_Key, str]:
    rows = rules.read_table("safe_private.json")["rows"]
    return MappingProxyType(
        {(int(group, 16), creator, int(low, 16)): vr.split("/")[0] for group, creator, low, vr, _ in rows}
    )


def decision_for(key: tuple[int, str, int], vr: str, profile: Profile) -> Decision | None:
    """Return what happens to a private attribute, None when it is removed.

    Parameters
    ----------
    key : (int, str, int)
        Group, private creator, low byte of the element.
    vr : str
        Its VR in the data set; used where the table knows none.
    profile : Profile
        Its own rules go before the table. Values that cannot be looked into never stay.
    """
    own = profile.by_private.get(key)
    if own is not None and own.action == "remove":
        return None
    known = _table().get(key) if Option.SAFE_PRIVATE in profile.options else None
    vrs = frozenset({known or vr})
    if (own is None and known is None) or not vrs - {""} or vrs & _REFUSED:
        return None
    if vrs & {"UI"}:
        return Decision(Action.KEEP if Option.UIDS in profile.options else Action.REMAP_UID, vrs, "3")
    if vrs & rules.TEMPORAL_VRS:
        return Decision(Action.SHIFT, vrs, "3") if profile.options & rules.TEMPORAL else None
    cleaned = vrs & _TEXT and (own is None or own.action == "clean")
    return Decision(Action.CLEAN if cleaned else Action.KEEP, vrs, "3")


def kept(
    item: Item, profile: Profile, charset: Charset, apply: Callable[[Element, Decision], Element | None]
) -> Item:
    """Return the private elements of an item that may leave, with their creators, in new blocks.

    Parameters
    ----------
    item : Item
        The original's elements.
    apply : callable
        Carries out a decision on an element.
    """
    found: dict[tuple[int, str], list[Element]] = {}
    for tag, element in item.items():
        group, number = tag >> 16, tag & 0xFFFF
        if not group & 1 or number <= _LAST_BLOCK or group < _LOWEST_GROUP:
            continue
        creator = _creator(item, group, number >> 8, charset)
        if not creator:
            continue
        decision = decision_for((group, creator, number & 0xFF), element.vr, profile)
        if decision is None:
            continue
        known = element if element.vr in decision.vrs else _retyped(element, decision)
        changed = None if known is None else apply(known, decision)
        if changed is not None:
            found.setdefault((group, creator), []).append(changed)
    return _renumbered(found)


def _creator(item: Item, group: int, block: int, charset: Charset) -> str:
    element = item.get(group << 16 | block)
    if element is None or not isinstance(element.value, (bytes, memoryview)):
        return ""
    return charset.decode(element.value).strip(" \0")


def _retyped(element: Element, decision: Decision) -> Element | None:
    """Give an element whose encoding told no VR the table's; of another VR it is not the attribute."""
    if element.vr not in {"", "UN"}:
        return None
    return replace(element, vr=min(decision.vrs))


def _renumbered(found: dict[tuple[int, str], list[Element]]) -> Item:
    out: Item = {}
    next_block: dict[int, int] = {}
    for (group, creator), elements in sorted(found.items()):
        block = next_block.get(group, _FIRST_BLOCK)
        next_block[group] = block + 1
        tag = group << 16 | block
        out[tag] = Element(tag, "LO", creator.encode("ascii", "replace"))
        for element in elements:
            moved = group << 16 | block << 8 | element.tag & 0xFF
            out.setdefault(moved, replace(element, tag=moved))
    return out
