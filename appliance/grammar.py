"""The grammar of conditions (``docs/rules.md``): what is none is refused, with the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from appliance import schedules
from appliance.errors import ApplianceError

FLAT: Final = ("modality", "body_part", "description", "calling_ae_title")
COUNT: Final = "NumberOfStudyRelatedInstances"  # (0020,1208)
TEXTS: Final = (
    "Modality",
    "BodyPartExamined",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "StationName",
    "InstitutionName",
    "Manufacturer",
    "ManufacturerModelName",
    "SOPClassUID",
)
ATTRIBUTES: Final = (*TEXTS, COUNT)
JOINTS: Final = ("all", "any", "not")
LEAVES: Final = ("attribute", "source", "time", "fetched")
TESTS: Final = ("in", "matches", "between")
MAX_PATTERN: Final = 200
MAX_TEXT: Final = 64  # PS3.5 table 6.2-1, LO
MAX_REPEATS: Final = 6
MAX_DEPTH: Final = 6
MAX_PARTS: Final = 100
MAX_VALUES: Final = 500
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_REPEAT: Final = re.compile(r"[*+{]")


class RuleError(ApplianceError):
    """A rule that cannot be applied; the message names the field."""


def check(condition: object) -> None:
    """Refuse what is no condition.

    Raises
    ------
    RuleError
        Naming the field and what was expected.
    """
    _check(condition, "condition", 1)
    if _size(condition) > MAX_PARTS:
        raise RuleError(f"condition: expected at most {MAX_PARTS} parts")


def names(condition: object, kind: str) -> bool:
    """Whether a condition has a part of this kind (``fetched``, ``time``) anywhere."""
    if not isinstance(condition, Mapping):
        return False
    return kind in condition or any(names(part, kind) for part in parts_of(condition))


def parts_of(condition: Mapping[str, Any]) -> list[Any]:
    """Return the conditions that a condition joins."""
    parts = [*condition.get("all", ()), *condition.get("any", ())]
    return [*parts, condition["not"]] if "not" in condition else parts


def is_flat(condition: Mapping[str, Any]) -> bool:
    """Whether a condition has the flat form, of which all fields must hold."""
    return set(condition) <= set(FLAT)


def _size(condition: object) -> int:
    if not isinstance(condition, Mapping):
        return 1
    return 1 + sum(_size(part) for part in parts_of(condition))


def _check(condition: object, where: str, depth: int) -> None:
    if not isinstance(condition, Mapping):
        raise RuleError(f"{where}: expected fields with values")
    if depth > MAX_DEPTH:
        raise RuleError(f"{where}: expected at most {MAX_DEPTH} levels")
    kinds = [kind for kind in (*JOINTS, *LEAVES) if kind in condition]
    if not kinds:
        _check_flat(condition, where)
    elif kinds[0] in JOINTS:
        _check_joined(condition, where, depth)
    else:
        allowed = {kinds[0], *TESTS} if kinds[0] == "attribute" else {kinds[0]}
        if set(condition) - allowed:
            raise RuleError(f"{where}: expected {kinds[0]} alone; join several conditions with all or any")
        _CHECKS[kinds[0]](condition, where)


def _check_joined(condition: Mapping[str, Any], where: str, depth: int) -> None:
    if set(condition) - set(JOINTS):
        raise RuleError(f"{where}: expected nothing beside {', '.join(JOINTS)}; put it into all")
    for joint in ("all", "any"):
        parts = condition.get(joint, [{}])
        if not (isinstance(parts, list) and 0 < len(parts) <= MAX_PARTS):
            raise RuleError(f"{where}.{joint}: expected a list of 1 to {MAX_PARTS} conditions")
        for number, part in enumerate(parts):
            _check(part, f"{where}.{joint}[{number}]", depth + 1)
    if "not" in condition:
        _check(condition["not"], f"{where}.not", depth + 1)


def _check_flat(condition: Mapping[str, Any], where: str) -> None:
    for name, value in condition.items():
        if name not in FLAT:
            expected = ", ".join((*JOINTS, *LEAVES, *FLAT))
            raise RuleError(f"{where}.{name}: unknown; expected one of {expected}")
        if name == "description":
            _check_pattern(value, f"{where}.description")
        else:
            _check_texts(value, f"{where}.{name}")


def _check_attribute(condition: Mapping[str, Any], where: str) -> None:
    keyword = condition["attribute"]
    if keyword not in ATTRIBUTES:
        raise RuleError(f"{where}.attribute: expected one of {', '.join(ATTRIBUTES)}")
    tests = [test for test in TESTS if test in condition]
    fitting = ("between",) if keyword == COUNT else ("in", "matches")
    if len(tests) != 1 or tests[0] not in fitting:
        raise RuleError(f"{where}: expected {' or '.join(fitting)} beside attribute {keyword}")
    value = condition[tests[0]]
    if tests[0] == "in":
        _check_texts(value, f"{where}.in")
    elif tests[0] == "matches":
        _check_pattern(value, f"{where}.matches")
    else:
        _check_range(value, f"{where}.between")


def _check_range(value: object, where: str) -> None:
    expected = f"{where}: expected two whole numbers from 0, the smaller first; null for no end"
    if not isinstance(value, list) or len(value) != 2:
        raise RuleError(expected)
    numbers = [number for number in value if number is not None]
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers) or not numbers:
        raise RuleError(expected)
    if numbers != sorted(numbers):
        raise RuleError(expected)


def _check_source(condition: Mapping[str, Any], where: str) -> None:
    _check_texts(condition["source"], f"{where}.source")


def _check_time(condition: Mapping[str, Any], where: str) -> None:
    value = condition["time"]
    if not isinstance(value, Mapping) or not value or set(value) - {"days", "from", "to"}:
        raise RuleError(f"{where}.time: expected days, or from and to, or both")
    days, begins, ends = value.get("days", []), value.get("from", ""), value.get("to", "")
    if not (isinstance(days, list) and all(isinstance(item, str) for item in [*days, begins, ends])):
        raise RuleError(f"{where}.time: expected a list of days, and texts as from and to")
    try:
        schedules.make(days, begins, ends)
    except ValueError as error:
        raise RuleError(f"{where}.time: {error}") from error


def _check_fetched(condition: Mapping[str, Any], where: str) -> None:
    if not isinstance(condition["fetched"], bool):
        raise RuleError(f"{where}.fetched: expected true or false")


def _check_texts(value: object, where: str) -> None:
    fits = (
        isinstance(value, list)
        and 0 < len(value) <= MAX_VALUES
        and all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value)
    )
    if not fits:
        raise RuleError(f"{where}: expected a list of texts that is not empty")


def _check_pattern(value: object, where: str) -> None:
    """Refuse patterns that are no patterns, or that could run for ever on a text of 64 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
        raise RuleError(f"{where}: expected a pattern of 1 to {MAX_PATTERN} characters")
    if _REPEATED_GROUP.search(value) or len(_REPEAT.findall(value)) > MAX_REPEATS:
        raise RuleError(f"{where}: expected no repeated group and at most {MAX_REPEATS} repeats")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise RuleError(f"{where}: not a pattern ({getattr(error, 'msg', 'too deep')})") from error


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any], str], None]]] = MappingProxyType(
    {
        "attribute": _check_attribute,
        "source": _check_source,
        "time": _check_time,
        "fetched": _check_fetched,
    }
)
