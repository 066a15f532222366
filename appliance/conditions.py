"""Conditions of rules: data over what is no identity of a study, evaluated with an explanation.

The grammar is in ``docs/rules.md``. An explanation says what a condition asked and whether it held; of free
text in a study it repeats nothing, since names stand in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from appliance import schedules
from appliance.grammar import FLAT, JOINTS, LEAVES, MAX_TEXT, RuleError, check, is_flat, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Facts", "RuleError", "Verdict", "check", "describe", "evaluate", "is_flat", "names"]

_CODE: Final = re.compile(r"[A-Z0-9]{1,16}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MENTIONED: Final = 12  # values of a list that an explanation repeats


@dataclass(frozen=True)
class Facts:
    """What rules can see of a study."""

    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)  # of TEXTS
    instances: int = 0  # without results of ours
    calling_ae_title: str = ""  # that sent first
    sources: frozenset[str] = frozenset()  # AE titles that sent, and names of their peers
    at: datetime = _EPOCH  # when it was assembled
    fetched: bool = False  # it came because we fetched it

    def of(self, keyword: str) -> frozenset[str]:
        """Return the values that the study has of an attribute."""
        return self.attributes.get(keyword, frozenset())


@dataclass(frozen=True)
class Verdict:
    """Whether a condition holds, and what decided that."""

    holds: bool
    reasons: tuple[str, ...]


def evaluate(condition: Mapping[str, Any], facts: Facts) -> Verdict:
    """Evaluate a condition, all of it; raises like :func:`check`."""
    check(condition)
    return _evaluate(condition, facts)


def describe(condition: Mapping[str, Any]) -> str:
    """Write a condition in words."""
    if not condition:
        return "any study"
    if not _is_joined(condition):
        return " and ".join(leaf.asks for leaf in _leaves(condition))
    texts = [_bracketed(part) for part in condition.get("all", ())]
    if "any" in condition:
        either = " or ".join(_bracketed(part) for part in condition["any"])
        texts.append(f"({either})" if len(condition) > 1 and len(condition["any"]) > 1 else either)
    if "not" in condition:
        texts.append(f"not {_bracketed(condition['not'])}")
    return " and ".join(texts)


def _is_joined(condition: Mapping[str, Any]) -> bool:
    return any(joint in condition for joint in JOINTS)


def _bracketed(part: Mapping[str, Any]) -> str:
    text = describe(part)
    return f"({text})" if _is_joined(part) or (len(part) > 1 and is_flat(part)) else text


@dataclass(frozen=True)
class _Leaf:
    """One question to a study: what it asks in words, what to say when it holds and when not."""

    asks: str
    denies: str
    test: Callable[[Facts], bool]
    shows: Callable[[Facts], str] = lambda _: ""

    def verdict(self, facts: Facts) -> Verdict:
        holds = self.test(facts)
        return Verdict(holds, ((self.asks if holds else self.denies) + self.shows(facts),))


def _evaluate(condition: Mapping[str, Any], facts: Facts) -> Verdict:
    if not condition:
        return Verdict(holds=True, reasons=("it applies to every study",))
    if not _is_joined(condition):
        return _joined([leaf.verdict(facts) for leaf in _leaves(condition)], decisive=False)
    verdicts = [_evaluate(part, facts) for part in condition.get("all", ())]
    if "any" in condition:
        verdicts.append(_joined([_evaluate(part, facts) for part in condition["any"]], decisive=True))
    if "not" in condition:
        inner = _evaluate(condition["not"], facts)
        verdicts.append(Verdict(not inner.holds, inner.reasons))
    return _joined(verdicts, decisive=False)


def _joined(verdicts: list[Verdict], *, decisive: bool) -> Verdict:
    """Join verdicts: one that is ``decisive`` decides, and then only such ones are given as reasons."""
    deciding = [verdict for verdict in verdicts if verdict.holds is decisive]
    reasons = tuple(reason for verdict in deciding or verdicts for reason in verdict.reasons)
    return Verdict(decisive if deciding else not decisive, reasons)


def _leaves(condition: Mapping[str, Any]) -> list[_Leaf]:
    if is_flat(condition):
        return [_FLAT_LEAVES[name](condition[name]) for name in FLAT if name in condition]
    kind = next(name for name in LEAVES if name in condition)
    return [_LEAVES[kind](condition)]


def _attribute(condition: Mapping[str, Any]) -> _Leaf:
    keyword = condition["attribute"]
    if "in" in condition:
        return _one_of(keyword, condition["in"])
    if "matches" in condition:
        return _pattern(keyword, condition["matches"])
    low, high = condition["between"]
    words = (
        f"between {low if low is not None else 'nothing'} and {high if high is not None else 'any number'}"
    )
    return _Leaf(
        f"{keyword} is {words}",
        f"{keyword} is not {words}",
        lambda facts: (low is None or low <= facts.instances) and (high is None or facts.instances <= high),
        lambda facts: f" ({facts.instances})",
    )


def _one_of(keyword: str, values: list[str]) -> _Leaf:
    wanted = frozenset(value.strip().casefold() for value in values)
    words = _words(values)
    return _Leaf(
        f"{keyword} is one of {words}",
        f"{keyword} is none of {words}",
        lambda facts: bool(wanted & {value.casefold() for value in facts.of(keyword)}),
        _codes if keyword == "Modality" else lambda _: "",
    )


def _pattern(keyword: str, pattern: str) -> _Leaf:
    return _Leaf(
        f"{keyword} matches {pattern!r}",
        f"{keyword} does not match {pattern!r}",
        lambda facts: any(_found(pattern, value) for value in facts.of(keyword)),
    )


def _codes(facts: Facts) -> str:
    """Name the modalities of a study, where they have a code's form."""
    found = sorted(value for value in facts.of("Modality") if _CODE.fullmatch(value))
    return f" ({', '.join(found)})" if found else ""


def _source(condition: Mapping[str, Any]) -> _Leaf:
    wanted, words = frozenset(condition["source"]), _words(condition["source"])
    return _Leaf(
        f"it came from {words}",
        f"it did not come from {words}",
        lambda facts: bool(wanted & facts.sources),
    )


def _time(condition: Mapping[str, Any]) -> _Leaf:
    schedule = condition["time"]
    words = schedules.text_of(schedule)
    return _Leaf(
        f"it was assembled within {words}",
        f"it was not assembled within {words}",
        lambda facts: schedules.is_open(schedule, facts.at),
    )


def _fetched(condition: Mapping[str, Any]) -> _Leaf:
    wanted = condition["fetched"]
    ours, others = "it came by a fetch of ours", "it did not come by a fetch of ours"
    return _Leaf(
        ours if wanted else others,
        others if wanted else ours,
        lambda facts: facts.fetched is wanted,
    )


def _flat_sender(values: list[str]) -> _Leaf:
    words = _words(values)
    return _Leaf(
        f"it came from {words}",
        f"it did not come from {words}",
        lambda facts: facts.calling_ae_title in values,
    )


def _flat_values(keyword: str, spelled: Callable[[str], str]) -> Callable[[list[str]], _Leaf]:
    """Make the flat form's test of a list, which compares as written."""

    def make(values: list[str]) -> _Leaf:
        words = _words(values)
        return _Leaf(
            f"{keyword} is one of {words}",
            f"{keyword} is none of {words}",
            lambda facts: bool(frozenset(values) & {spelled(value) for value in facts.of(keyword)}),
            _codes if keyword == "Modality" else lambda _: "",
        )

    return make


_LEAVES: Final[Mapping[str, Callable[[Mapping[str, Any]], _Leaf]]] = MappingProxyType(
    {"attribute": _attribute, "source": _source, "time": _time, "fetched": _fetched}
)
_FLAT_LEAVES: Final[Mapping[str, Callable[[Any], _Leaf]]] = MappingProxyType(
    {
        "modality": _flat_values("Modality", str),
        "body_part": _flat_values("BodyPartExamined", str.upper),
        "description": lambda pattern: _pattern("StudyDescription", pattern),
        "calling_ae_title": _flat_sender,
    }
)


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text[:MAX_TEXT], re.IGNORECASE) is not None


def _words(values: Iterable[str]) -> str:
    listed = list(values)
    more = f" and {len(listed) - _MENTIONED} more" if len(listed) > _MENTIONED else ""
    return ", ".join(listed[:_MENTIONED]) + more
