"""What may stay in an instance of one SOP class: PS3.3's modules joined with Table E.1-1 and a profile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_VR

from anonymizer import rules
from anonymizer.options import Option
from anonymizer.rules import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anonymizer.profiles import AttributeRule, Profile

ULTRASOUND: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("3.1", "6.1", "6.2"))
_STRICTNESS: Final = ("1", "1C", "2", "2C", "3")
_NO_ROW: Final = "X/Z/D"  # how a stricter attribute resolves by type

Node = dict[str, list[Any]]


@dataclass(frozen=True)
class Decision:
    """What to do with one attribute at one place.

    ``vrs`` are the value representations that the standard allows for it; ``children`` are the decisions
    inside its items when it is a sequence that stays; ``otherwise`` is what happens where nothing is left of
    a text that is cleaned; ``value`` is what a profile's rule writes.
    """

    action: Action
    vrs: frozenset[str]
    type: str
    children: Mapping[int, Decision] = field(default_factory=lambda: MappingProxyType({}))
    otherwise: Action = Action.REMOVE
    value: str = ""


@lru_cache(maxsize=1)
def _keep_list() -> dict[str, Any]:
    return rules.read_table("modules.json")


@lru_cache(maxsize=1)
def sop_classes() -> frozenset[str]:
    """Return the UIDs of the SOP classes that the keep list knows."""
    return frozenset(_keep_list()["sop_classes"])


@lru_cache(maxsize=1)
def _released() -> tuple[frozenset[str], Sequence[Sequence[str]]]:
    content = rules.read_table("sop_classes.json")
    return frozenset(uid for uid, _ in content["released"]), content["waiting"]


def waits(sop_class_uid: str, profile: Profile) -> tuple[str, str] | None:
    """Return code and reason when instances of a SOP class wait for a person, None when they are released."""
    released, waiting = _released()
    if sop_class_uid not in sop_classes():
        return "unknown_sop_class", "SOPClassUID (0008,0016): a class without an entry in the keep list"
    if sop_class_uid in released:
        return None
    if sop_class_uid in ULTRASOUND and Option.CLEAN_PIXELS in profile.options:
        return None
    for uid, code, reason in waiting:
        if sop_class_uid == uid or (uid.endswith(".") and sop_class_uid.startswith(uid)):
            return None if code in profile.release else (code, reason)
    return "sop_class_not_judged", "nobody has judged yet whether this SOP class can be released"


@lru_cache(maxsize=512)
def decisions(sop_class_uid: str, profile: Profile) -> Mapping[int, Decision] | None:
    """Return the decisions for the top level of a SOP class, or None for a class that the keep list lacks."""
    keep = _keep_list()
    modules = keep["sop_classes"].get(sop_class_uid)
    if modules is None:
        return None
    nodes: Sequence[Node] = keep["nodes"]
    numbers = tuple(sorted({keep["modules"][name] for name, _ in modules}))
    found = _Join(nodes, profile).of(numbers)
    mandatory = {
        int(tag, 16) for name, usage in modules if usage == "M" for tag in nodes[keep["modules"][name]]
    }
    joined = {
        tag: _without_dummy_sequence(decision) if tag not in mandatory else decision
        for tag, decision in found.items()
    }
    for tag, rule in profile.by_tag.items():
        if tag not in joined and rule.action in {"keep", "clean", "replace"}:  # an extension of the class
            joined[tag] = by_rule(rule, _value_representations(tag, None), "3", {})
    return MappingProxyType(joined)


def _without_dummy_sequence(decision: Decision) -> Decision:
    """Remove, rather than fill with a dummy item, a sequence whose module may be absent."""
    if decision.action is Action.DUMMY and "SQ" in decision.vrs:
        return replace(decision, action=Action.REMOVE)
    return decision


@lru_cache(maxsize=256)
def requires_pixel_data(sop_class_uid: str) -> bool:
    """Tell whether PS3.3 makes pixel data of some kind mandatory in a SOP class."""
    modules = dict(_keep_list()["sop_classes"].get(sop_class_uid, ()))
    return modules.get("image-pixel") == "M" or "floating-point-image-pixel" in modules


class _Join:
    """Merges the nodes that describe the same place; the strictest type counts."""

    def __init__(self, nodes: Sequence[Node], profile: Profile) -> None:
        self.nodes, self.profile = nodes, profile
        self.known: dict[tuple[int, ...], Mapping[int, Decision]] = {}

    def of(self, numbers: tuple[int, ...]) -> Mapping[int, Decision]:
        """Return the decisions of the merged nodes."""
        if numbers in self.known:
            return self.known[numbers]
        merged: dict[str, tuple[str, set[int]]] = {}
        for number in numbers:
            for tag, (kind, *child) in self.nodes[number].items():
                old_kind, children = merged.setdefault(tag, (kind, set()))
                merged[tag] = (min(kind, old_kind, key=_STRICTNESS.index), children)
                children.update(child)
        found = {
            int(tag, 16): decide(tag, kind, self.of(tuple(sorted(children))), self.profile)
            for tag, (kind, children) in merged.items()
        }
        self.known[numbers] = MappingProxyType(found)
        return self.known[numbers]


@lru_cache(maxsize=1)
def _stricter() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    content = rules.read_table("stricter.json")
    refused, typed = (frozenset(tag for tag, *_ in content[name]) for name in ("rows", "typed"))
    return refused, frozenset(content["vrs"]), typed


def decide(tag: str, kind: str, children: Mapping[int, Decision], profile: Profile) -> Decision:
    """Return the decision for an attribute (eight hexadecimal digits) of a type at one place."""
    number = int(tag, 16)
    row = rules.rule_for(number)
    vrs = _value_representations(number, row)
    own = profile.by_tag.get(number)
    if own is not None:
        return by_rule(own, vrs, kind, children)
    if row is not None:
        action = rules.resolve(row, kind, profile.options)
        return Decision(action, vrs, kind, children, rules.by_type(row.basic, kind))
    return Decision(_without_row(tag, kind, vrs, profile), vrs, kind, children, rules.by_type(_NO_ROW, kind))


def _without_row(tag: str, kind: str, vrs: frozenset[str], profile: Profile) -> Action:
    refused_tags, refused_vrs, typed = _stricter()
    if not vrs:
        return Action.REMOVE
    if tag in refused_tags or vrs & refused_vrs:
        return rules.by_type(_NO_ROW, kind)
    if vrs == {"UI"}:  # well-known UIDs stay
        return Action.KEEP if Option.UIDS in profile.options else Action.REMAP_UID
    if vrs & rules.TEMPORAL_VRS:
        return Action.SHIFT if profile.options & rules.TEMPORAL else rules.by_type(_NO_ROW, kind)
    return Action.CLEAN if tag in typed else Action.KEEP


def by_rule(
    rule: AttributeRule, vrs: frozenset[str], kind: str, children: Mapping[int, Decision]
) -> Decision:
    """Return the decision of a profile's own rule; where a value is required, a dummy stands for none."""
    otherwise = rules.by_type(_NO_ROW, kind)
    if rule.action == "remove":
        return Decision(otherwise, vrs, kind, children)
    if rule.action == "empty":
        return Decision(Action.DUMMY if kind in {"1", "1C"} else Action.EMPTY, vrs, kind, children)
    if rule.action == "clean":
        return Decision(Action.CLEAN, vrs, kind, children, otherwise)
    if rule.action == "replace":
        return Decision(Action.DUMMY, vrs, kind, children, value=rule.value)
    return Decision(Action.KEEP, vrs, kind, children)


def outside(tag: int, profile: Profile) -> Decision | None:
    """Return the decision for an attribute that is not in the SOP class: Table E.1-1's UIDs stay, mapped."""
    row = rules.rule_for(tag)
    if row is None or row.basic != "U" or tag in profile.by_tag:
        return None
    action = rules.resolve(row, "3", profile.options)
    return Decision(action, frozenset({"UI"}), "3")


@lru_cache(maxsize=16)
def let_through(profile: Profile) -> frozenset[int]:
    """Return the tags whose original values a profile lets stand, in whole or in part.

    What they say is no residue wherever it is found in the output.
    """
    chosen = {
        int(tag, 16)
        for tag, row in rules.table().items()
        if len(tag) == 8
        and "X" not in tag
        and rules.resolve(row, "3", profile.options) in {Action.KEEP, Action.CLEAN, Action.CONTAINED}
        and row.vr not in {"SQ", "PN"}
    }
    own = {tag for tag, rule in profile.by_tag.items() if rule.action in {"keep", "clean"}}
    return frozenset(chosen | own | {int(tag, 16) for tag in _stricter()[2]})


def _value_representations(tag: int, rule: rules.Rule | None) -> frozenset[str]:
    try:
        text = dictionary_VR(tag)
    except KeyError:
        text = rule.vr if rule is not None else ""
    return frozenset(text.split(" or ")) - {""}
