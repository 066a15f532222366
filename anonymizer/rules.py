"""PS3.15 Table E.1-1, the Basic Application Confidentiality Profile and its options, as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from anonymizer.errors import TableError
from anonymizer.options import COLUMNS, Option

if TYPE_CHECKING:
    from collections.abc import Mapping

ROWS: Final = 656
TEMPORAL_VRS: Final = frozenset({"DA", "DT", "TM"})
TEMPORAL: Final = frozenset({Option.FULL_DATES, Option.MODIFIED_DATES})


class Action(StrEnum):
    """What happens to an attribute. No row in any table: REMOVE."""

    KEEP = "K"
    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    REMAP_UID = "U"
    SHIFT = "S"  # dates and times that stay, moved by the patient's days (none under full dates)
    CLEAN = "C"  # text and graphics that stay as far as they are known to identify nobody
    CONTAINED = "U*"  # a sequence that stays for its IOD's sake: its items follow their own rules


@dataclass(frozen=True)
class Rule:
    """One row of Table E.1-1; the action codes as printed there, K or C under an option."""

    tag: str
    keyword: str
    name: str
    vr: str
    basic: str
    options: Mapping[Option, str]


BY_TYPE: Final[Mapping[str, tuple[Action, Action, Action]]] = MappingProxyType(
    {
        # code: (type 1 or 1C, type 2 or 2C, type 3), PS3.15 Table E.1-1a
        "X": (Action.REMOVE, Action.REMOVE, Action.REMOVE),
        "Z": (Action.EMPTY, Action.EMPTY, Action.EMPTY),
        "D": (Action.DUMMY, Action.DUMMY, Action.DUMMY),
        "U": (Action.REMAP_UID, Action.REMAP_UID, Action.REMAP_UID),
        "Z/D": (Action.DUMMY, Action.EMPTY, Action.EMPTY),
        "X/Z": (Action.DUMMY, Action.EMPTY, Action.REMOVE),
        "X/D": (Action.DUMMY, Action.EMPTY, Action.REMOVE),
        "X/Z/D": (Action.DUMMY, Action.EMPTY, Action.REMOVE),
        "X/Z/U*": (Action.CONTAINED, Action.EMPTY, Action.REMOVE),
    }
)
_TYPES: Final = MappingProxyType({"1": 0, "1C": 0, "2": 1, "2C": 1, "3": 2})


def read_table(name: str) -> dict[str, Any]:
    """Read one of the package's data files."""
    content: dict[str, Any] = json.loads((files("anonymizer.tables") / name).read_text(encoding="utf-8"))
    return content


@lru_cache(maxsize=1)
def table() -> Mapping[str, Rule]:
    """Return the rows of Table E.1-1 by tag (eight hexadecimal digits, ``X`` for any digit).

    Raises
    ------
    TableError
        If the data file does not hold all rows.
    """
    content = read_table("annex_e.json")
    columns = [COLUMNS[name] for name in content["columns"][5:]]
    rows = [
        Rule(tag, keyword, name, vr, basic, _options(columns, codes))
        for tag, keyword, name, vr, basic, *codes in content["rows"]
    ]
    rules = {rule.tag: rule for rule in rows}
    if len(rules) != ROWS or any(rule.basic not in BY_TYPE for rule in rows):
        raise TableError(f"annex_e.json: expected {ROWS} different tags with action codes of Table E.1-1")
    return MappingProxyType(rules)


def _options(columns: list[Option], codes: list[str]) -> Mapping[Option, str]:
    return MappingProxyType({option: code for option, code in zip(columns, codes, strict=True) if code})


def rule_for(tag: int) -> Rule | None:
    """Return the row that covers a tag, repeating groups 50xx and 60xx included, or None."""
    text = f"{tag:08X}"
    rules = table()
    return (
        rules.get(text) or rules.get(f"{text[:2]}XX{text[4:]}") or rules.get(f"{text[:2]}XXXXXX")
    )  # patterns exist for repeating groups alone


def resolve(rule: Rule, attribute_type: str, options: frozenset[Option]) -> Action:
    """Turn the row's codes into one action, given the options and the attribute's type in the SOP class.

    An option that cleans goes before one that keeps, so that of two reasons to let text stay the stricter
    counts. Dates and times that stay are shifted, unless full dates or no dates at all are retained.
    """
    codes = {code for option, code in rule.options.items() if option in options}
    if codes and rule.vr in TEMPORAL_VRS:
        return Action.SHIFT if options & TEMPORAL else Action.KEEP
    if "C" in codes:
        return Action.CLEAN
    return Action.KEEP if "K" in codes else by_type(rule.basic, attribute_type)


def by_type(code: str, attribute_type: str) -> Action:
    """Resolve a code of Table E.1-1 by the attribute's type (PS3.15 Table E.1-1a)."""
    return BY_TYPE[code][_TYPES[attribute_type]]
