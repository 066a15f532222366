"""What may stay in an instance of one SOP class: the keep list of PS3.3 joined with Table E.1-1."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_VR

from anonymizer import rules
from anonymizer.rules import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STRICTNESS: Final = ("1", "1C", "2", "2C", "3")
_NO_ROW: Final = "X/Z/D"  # how a stricter attribute resolves by type

Node = dict[str, list[Any]]


@dataclass(frozen=True)
class Decision:
    """What to do with one attribute at one place.

    ``vrs`` are the value representations that the standard allows for it; ``children`` are the decisions
    inside its items when it is a sequence that stays.
    """

    action: Action
    vrs: frozenset[str]
    type: str
    children: Mapping[int, Decision] = field(default_factory=lambda: MappingProxyType({}))


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


def waits(sop_class_uid: str) -> tuple[str, str] | None:
    """Return code and reason when instances of a SOP class wait for a person, None when they are released."""
    released, waiting = _released()
    if sop_class_uid not in sop_classes():
        return "unknown_sop_class", "SOPClassUID (0008,0016): a class without an entry in the keep list"
    if sop_class_uid in released:
        return None
    for uid, code, reason in waiting:
        if sop_class_uid == uid or (uid.endswith(".") and sop_class_uid.startswith(uid)):
            return code, reason
    return "sop_class_not_judged", "nobody has judged yet whether this SOP class can be released"


@lru_cache(maxsize=256)
def profile(sop_class_uid: str) -> Mapping[int, Decision] | None:
    """Return the decisions for the top level of a SOP class, or None for a class that the keep list lacks."""
    keep = _keep_list()
    modules = keep["sop_classes"].get(sop_class_uid)
    if modules is None:
        return None
    nodes: Sequence[Node] = keep["nodes"]
    decisions = _join(nodes, tuple(sorted({keep["modules"][name] for name, _ in modules})), {})
    mandatory = {
        int(tag, 16) for name, usage in modules if usage == "M" for tag in nodes[keep["modules"][name]]
    }
    return MappingProxyType(
        {
            tag: _without_dummy_sequence(decision) if tag not in mandatory else decision
            for tag, decision in decisions.items()
        }
    )


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


Known = dict[tuple[int, ...], "Mapping[int, Decision]"]


def _join(nodes: Sequence[Node], numbers: tuple[int, ...], known: Known) -> Mapping[int, Decision]:
    """Merge the nodes that describe the same place; the strictest type counts."""
    if numbers in known:
        return known[numbers]
    merged: dict[str, tuple[str, set[int]]] = {}
    for number in numbers:
        for tag, (kind, *child) in nodes[number].items():
            old_kind, children = merged.setdefault(tag, (kind, set()))
            merged[tag] = (min(kind, old_kind, key=_STRICTNESS.index), children)
            children.update(child)
    decisions = {
        int(tag, 16): _decide(tag, kind, _join(nodes, tuple(sorted(children)), known))
        for tag, (kind, children) in merged.items()
    }
    known[numbers] = MappingProxyType(decisions)
    return known[numbers]


@lru_cache(maxsize=1)
def _stricter() -> tuple[frozenset[str], frozenset[str]]:
    content = rules.read_table("stricter.json")
    return frozenset(tag for tag, *_ in content["rows"]), frozenset(content["vrs"])


def _decide(tag: str, kind: str, children: Mapping[int, Decision]) -> Decision:
    rule = rules.rule_for(int(tag, 16))
    vrs = _value_representations(int(tag, 16), rule)
    if rule is not None:
        return Decision(rules.resolve(rule, kind), vrs, kind, children)
    if not vrs:
        return Decision(Action.REMOVE, vrs, kind)
    refused_tags, refused_vrs = _stricter()
    if tag in refused_tags or vrs & refused_vrs:
        return Decision(rules.by_type(_NO_ROW, kind), vrs, kind, children)
    if vrs == {"UI"}:
        return Decision(Action.REMAP_UID, vrs, kind)  # well-known UIDs stay
    if vrs & {"DA", "DT", "TM"}:
        return Decision(Action.SHIFT, vrs, kind)
    return Decision(Action.KEEP, vrs, kind, children)


def _value_representations(tag: int, rule: rules.Rule | None) -> frozenset[str]:
    try:
        text = dictionary_VR(tag)
    except KeyError:
        text = rule.vr if rule is not None else ""
    return frozenset(text.split(" or ")) - {""}
