"""Tables of the standard, retyped here from PS3.15 and PS3.3, against the ones that the package carries."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from anonymizer import keep_list, rules
from anonymizer.options import Option
from anonymizer.rules import Action
from anonymizer.tables import generate
from tests.anonymizer.material import PLAIN

# PS3.15 Table E.1-1, 2026c, Basic Profile column: how often each code occurs.
CODES = {"X": 416, "D": 93, "U": 55, "Z": 42, "X/D": 23, "X/Z": 11, "X/Z/D": 8, "Z/D": 6, "X/Z/U*": 2}

# PS3.15 Table E.1-1, retyped: tag, Basic Profile, Modified Dates Option.
RETYPED = """
00080014 U -  00080018 U -  00080020 Z C  00080021 X/D C  00080022 X/Z C  00080023 Z/D C
0008002A X/Z/D C  00080030 Z C  00080050 Z -  00080080 X/Z/D -  00080081 X -  00080090 Z -
00080092 X -  00080094 X -  00080096 X -  00080201 X C  00081010 X/Z/D -  00081030 X -
0008103E X -  00081040 X -  00081048 X -  00081050 X -  00081070 X/Z/D -  00081080 X -
00081110 X/Z -  00081111 X/Z/D -  00081140 X/Z/U* -  00081155 U -  00082111 X -  00082112 X/Z/U* -
00100010 Z -  00100020 Z/D -  00100021 X -  00100030 Z -  00100032 X -  00100040 Z -
00101000 X -  00101001 X -  00101002 X -  00101010 X -  00101020 X -  00101030 X -
00101040 X -  00102160 X -  00102180 X -  001021B0 X -  00104000 X -  00120010 D -
00120040 D -  00180010 Z/D -  00181000 X/Z/D -  00181002 U -  00181030 X/D -  00181400 X/D -
0020000D U -  0020000E U -  00200010 Z -  00200052 U -  00204000 X -  00321060 X/Z -
0040A123 D -  0040A124 U -  0040A730 D -  00420011 D -  00700084 Z/D -  00880140 U -
00880200 X -  04000561 X -  30060002 D -  30060024 U -  30060026 Z -  FFFAFFFA X -
FFFCFFFC X -
"""

# PS3.3: the attribute's type in the SOP class decides what a composite code means.
BY_SOP_CLASS = {
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00180010): Action.EMPTY,  # Contrast/Bolus: type 2
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00181000): Action.REMOVE,  # General Equipment: type 3
    ("Enhanced CT", "1.2.840.10008.5.1.4.1.1.2.1", 0x00181000): Action.DUMMY,  # Enhanced Equipment: type 1
    ("Enhanced MR", "1.2.840.10008.5.1.4.1.1.4.1", 0x00181000): Action.DUMMY,
    ("RT Plan", "1.2.840.10008.5.1.4.1.1.481.5", 0x00081070): Action.EMPTY,  # RT Series: type 2
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00081070): Action.REMOVE,  # General Series: type 3
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00081140): Action.REMOVE,  # General Reference: type 3
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00100020): Action.EMPTY,  # Patient: type 2
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00080020): Action.SHIFT,
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00100030): Action.EMPTY,  # no C for the birth date
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x0020000D): Action.REMAP_UID,
    ("CT Image", "1.2.840.10008.5.1.4.1.1.2", 0x00280010): Action.KEEP,
    ("Segmentation", "1.2.840.10008.5.1.4.1.1.66.4", 0x00700084): Action.EMPTY,  # Content Creator: type 2
}


def _retyped() -> list[tuple[str, str, bool]]:
    words = RETYPED.split()
    return [
        (tag, basic, modified == "C")
        for tag, basic, modified in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]


def test_the_table_has_every_row_of_the_standard() -> None:
    assert len(rules.table()) == 656
    assert Counter(rule.basic for rule in rules.table().values()) == CODES


@pytest.mark.parametrize(("tag", "basic", "modified"), _retyped())
def test_a_row_says_what_the_standard_prints(tag: str, basic: str, modified: bool) -> None:
    rule = rules.rule_for(int(tag, 16))
    assert rule is not None
    assert (rule.basic, rule.options.get(Option.MODIFIED_DATES) == "C") == (basic, modified)


@pytest.mark.parametrize("tag", [0x50000005, 0x50103000, 0x501E0110, 0x60003000, 0x60004000, 0x601E3000])
def test_a_repeating_group_has_its_pattern_s_row(tag: int) -> None:
    rule = rules.rule_for(tag)
    assert rule is not None
    assert rule.basic == "X"


@pytest.mark.parametrize("tag", [0x60000022, 0x00280010, 0x00080060, 0x0018FF77, 0x00090010])
def test_an_attribute_outside_the_table_has_no_row(tag: int) -> None:
    assert rules.rule_for(tag) is None


@pytest.mark.parametrize(("place", "action"), BY_SOP_CLASS.items(), ids=str)
def test_the_type_in_the_sop_class_decides_a_composite_code(
    place: tuple[str, str, int], action: Action
) -> None:
    decisions = keep_list.decisions(place[1], PLAIN)
    assert decisions is not None
    assert decisions[place[2]].action is action


@pytest.mark.parametrize(
    ("code", "one", "two", "three"),
    [
        ("Z/D", "D", "Z", "Z"),
        ("X/Z", "D", "Z", "X"),
        ("X/D", "D", "Z", "X"),
        ("X/Z/D", "D", "Z", "X"),
        ("X/Z/U*", "U*", "Z", "X"),
        ("X", "X", "X", "X"),
        ("U", "U", "U", "U"),
    ],
)
def test_a_code_resolves_by_type_as_table_e_1_1a_says(code: str, one: str, two: str, three: str) -> None:
    assert [str(rules.by_type(code, kind)) for kind in ("1", "1C", "2", "2C", "3")] == [
        one,
        one,
        two,
        two,
        three,
    ]


def test_functional_groups_are_in_the_keep_list() -> None:
    decisions = keep_list.decisions("1.2.840.10008.5.1.4.1.1.2.1", PLAIN)
    assert decisions is not None
    per_frame = decisions[0x52009230]
    assert per_frame.action is Action.KEEP
    position = per_frame.children[0x00209113].children[0x00200032]  # Plane Position > Image Position
    assert (position.action, position.type) == (Action.KEEP, "1C")
    assert (
        per_frame.children[0x00209111].children[0x00189074].action is Action.SHIFT
    )  # Frame Acquisition DateTime


def test_the_keep_list_is_what_its_program_makes_of_its_sources() -> None:
    removed = frozenset(tag for tag, rule in rules.table().items() if rule.basic == "X" and not rule.options)
    committed = rules.read_table("modules.json")
    assert json.loads(json.dumps(generate.modules(removed))) == committed


def test_an_unknown_sop_class_has_no_profile_and_waits() -> None:
    assert keep_list.decisions("1.2.3.4", PLAIN) is None
    assert keep_list.waits("1.2.3.4", PLAIN) is not None


@pytest.mark.parametrize("vr", ["PN", "LT", "ST", "UT", "UN", "UR", "AE"])
def test_names_and_free_text_without_a_row_are_never_kept(vr: str) -> None:
    def kept(decisions: object, seen: set[int]) -> bool:
        assert hasattr(decisions, "values")
        if id(decisions) in seen:
            return False
        seen.add(id(decisions))
        return any(
            (d.action is Action.KEEP and vr in d.vrs) or kept(d.children, seen) for d in decisions.values()
        )

    for uid in keep_list.sop_classes():
        decisions = keep_list.decisions(uid, PLAIN)
        assert decisions is not None
        assert not kept(decisions, set())


def test_every_released_class_is_in_the_keep_list() -> None:
    released = [uid for uid in keep_list.sop_classes() if keep_list.waits(uid, PLAIN) is None]
    assert len(released) == 58
    assert all(not uid.startswith("1.2.840.10008.5.1.4.1.1.88.") for uid in released)
