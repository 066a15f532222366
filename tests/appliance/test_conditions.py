from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import conditions, grammar
from appliance.conditions import Facts, RuleError

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "Miller^Anna"


def facts(**more: Any) -> Facts:
    values = {
        "Modality": frozenset({"CT", "SR"}),
        "BodyPartExamined": frozenset({"CHEST"}),
        "StudyDescription": frozenset({f"Thorax {NAME}"}),
        "SeriesDescription": frozenset({"lung 1.0", f"bone {NAME}"}),
        "StationName": frozenset({"CT_ROOM3"}),
        "SOPClassUID": frozenset({"1.2.840.10008.5.1.4.1.1.2"}),
    }
    return Facts(
        **{
            "attributes": values,
            "instances": 120,
            "calling_ae_title": "PACS",
            "sources": frozenset({"PACS", "radiology"}),
            "at": datetime(2026, 11, 25, 20, 0).astimezone(),  # a Wednesday
            **more,
        }
    )


CT = {"attribute": "Modality", "in": ["CT"]}
MR = {"attribute": "Modality", "in": ["MR"]}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({}, True),
        (CT, True),
        (MR, False),
        ({"attribute": "Modality", "in": ["mr", "ct"]}, True),
        ({"attribute": "SeriesDescription", "matches": "^lung"}, True),
        ({"attribute": "SeriesDescription", "matches": "^1.0"}, False),
        ({"attribute": "SOPClassUID", "in": ["1.2.840.10008.5.1.4.1.1.2"]}, True),
        ({"attribute": "ProtocolName", "matches": "."}, False),
        ({"attribute": grammar.COUNT, "between": [100, 200]}, True),
        ({"attribute": grammar.COUNT, "between": [None, 100]}, False),
        ({"attribute": grammar.COUNT, "between": [121, None]}, False),
        ({"source": ["radiology"]}, True),
        ({"source": ["PACS"]}, True),
        ({"source": ["OTHER"]}, False),
        ({"time": {"days": ["wed"], "from": "18:00", "to": "07:00"}}, True),
        ({"time": {"from": "07:00", "to": "18:00"}}, False),
        ({"time": {"days": ["sat", "sun"]}}, False),
        ({"fetched": False}, True),
        ({"fetched": True}, False),
        ({"all": [CT, {"source": ["PACS"]}]}, True),
        ({"all": [CT, MR]}, False),
        ({"any": [CT, MR]}, True),
        ({"any": [MR]}, False),
        ({"not": MR}, True),
        ({"not": {"all": [CT, {"not": MR}]}}, False),
        ({"all": [CT], "any": [MR, {"fetched": False}], "not": {"source": ["OTHER"]}}, True),
        ({"all": [CT], "not": {"source": ["PACS"]}}, False),
        ({"any": [{"modality": ["CT"], "description": "thorax"}, MR]}, True),
    ],
)
def test_a_condition_holds_as_it_says(condition: dict[str, Any], holds: bool) -> None:
    assert conditions.evaluate(condition, facts()).holds is holds


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        (CT, "Modality is one of CT (CT, SR)"),
        (MR, "Modality is none of MR (CT, SR)"),
        ({"all": [CT, MR, {"source": ["X"]}]}, "Modality is none of MR (CT, SR) and it did not come from X"),
        ({"any": [MR, {"source": ["PACS"]}]}, "it came from PACS"),
        ({"not": MR}, "Modality is none of MR (CT, SR)"),
        ({"attribute": grammar.COUNT, "between": [1, 50]}, f"{grammar.COUNT} is not between 1 and 50 (120)"),
        ({"time": {"days": ["sat"]}}, "it was not assembled within sat"),
        ({"attribute": "SeriesDescription", "matches": "bone"}, "SeriesDescription matches 'bone'"),
        ({}, "it applies to every study"),
    ],
)
def test_an_explanation_names_what_decided(condition: dict[str, Any], why: str) -> None:
    assert " and ".join(conditions.evaluate(condition, facts()).reasons) == why


@pytest.mark.parametrize("keyword", grammar.TEXTS)
def test_an_explanation_repeats_no_text_of_the_study(keyword: str) -> None:
    found = facts(attributes={keyword: frozenset({NAME})})
    for test in ({"in": ["A"]}, {"in": ["miller^anna"]}, {"matches": "^miller"}, {"matches": "x"}):
        reasons = " ".join(conditions.evaluate({"attribute": keyword, **test}, found).reasons)
        assert NAME not in reasons


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ([], "condition"),
        (None, "condition"),
        ({"colour": ["red"]}, r"condition\.colour"),
        ({"all": []}, r"condition\.all"),
        ({"all": CT}, r"condition\.all"),
        ({"all": [CT, {"any": [{"not": 7}]}]}, r"condition\.all\[1\]\.any\[0\]\.not"),
        ({"all": [CT], "modality": ["CT"]}, "condition: expected nothing beside"),
        ({"attribute": "PatientName", "in": ["x"]}, r"condition\.attribute"),
        ({"attribute": ["Modality"], "in": ["x"]}, r"condition\.attribute"),
        ({"attribute": "Modality"}, "condition: expected in or matches"),
        ({"attribute": "Modality", "in": ["x"], "matches": "y"}, "condition: expected in or matches"),
        ({"attribute": "Modality", "between": [1, 2]}, "condition: expected in or matches"),
        ({"attribute": "Modality", "in": ["x"], "source": ["y"]}, "condition: expected attribute alone"),
        ({"attribute": "Modality", "in": []}, r"condition\.in"),
        ({"attribute": "Modality", "in": "CT"}, r"condition\.in"),
        ({"attribute": "Modality", "matches": "(a+)+"}, r"condition\.matches"),
        ({"attribute": grammar.COUNT, "between": [2, 1]}, r"condition\.between"),
        ({"attribute": grammar.COUNT, "between": [None, None]}, r"condition\.between"),
        ({"attribute": grammar.COUNT, "between": [True, 2]}, r"condition\.between"),
        ({"attribute": grammar.COUNT, "between": 5}, r"condition\.between"),
        ({"source": []}, r"condition\.source"),
        ({"time": {}}, r"condition\.time"),
        ({"time": {"days": "mon"}}, r"condition\.time"),
        ({"time": {"days": ["holiday"]}}, r"condition\.time"),
        ({"time": {"from": "25:00", "to": "26:00"}}, r"condition\.time"),
        ({"time": {"zone": "UTC"}}, r"condition\.time"),
        ({"fetched": "yes"}, r"condition\.fetched"),
        ({"any": [CT] * 101}, r"condition\.any"),
        ({"all": [{"any": [CT] * 60}, {"any": [CT] * 60}]}, "condition: expected at most 100 parts"),
        ({"not": {"not": {"not": {"not": {"not": {"not": {}}}}}}}, "expected at most 6 levels"),
    ],
)
def test_what_is_no_condition_is_refused_and_the_field_named(condition: object, field: str) -> None:
    with pytest.raises(RuleError, match=field):
        conditions.check(condition)


def test_a_long_list_is_not_repeated_whole() -> None:
    many = {"source": [f"S{number}" for number in range(400)]}
    (reason,) = conditions.evaluate(many, facts()).reasons
    assert reason.endswith("S11 and 388 more")


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({}, "any study"),
        ({"modality": ["CT", "MR"], "description": "head"}, "Modality is one of CT, MR and StudyDescription"),
        ({"all": [CT, {"any": [MR, {"fetched": True}]}]}, "and (Modality is one of MR or it came by a fetch"),
        ({"not": {"any": [CT, MR]}}, "not (Modality is one of CT or Modality is one of MR)"),
    ],
)
def test_a_condition_is_written_in_words(condition: dict[str, Any], words: str) -> None:
    assert words in conditions.describe(condition)


VALUES = st.text(max_size=8)
LEAVES = st.one_of(
    st.builds(
        lambda keyword, values: {"attribute": keyword, "in": values},
        st.sampled_from(grammar.TEXTS),
        st.lists(VALUES, min_size=1, max_size=3),
    ),
    st.builds(
        lambda low, high: {"attribute": grammar.COUNT, "between": sorted([low, high])},
        st.integers(0, 300),
        st.integers(0, 300),
    ),
    st.builds(lambda values: {"source": values}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda fetched: {"fetched": fetched}, st.booleans()),
    st.just({"time": {"from": "18:00", "to": "07:00"}}),
    st.builds(lambda values: {"modality": values}, st.lists(VALUES, min_size=1, max_size=3)),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*grammar.JOINTS, *grammar.LEAVES, *grammar.TESTS, *grammar.FLAT, "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
FACTS = st.builds(
    facts,
    attributes=st.dictionaries(st.sampled_from(grammar.TEXTS), st.frozensets(VALUES, max_size=3), max_size=4),
    instances=st.integers(0, 300),
    sources=st.frozensets(VALUES, max_size=2),
    fetched=st.booleans(),
)


def among(condition: dict[str, Any], found: Facts) -> bool:
    values = {value.casefold() for value in found.of(condition["attribute"])}
    return any(value.strip().casefold() in values for value in condition["in"])


PLAIN: dict[str, Callable[[dict[str, Any], Facts], bool]] = {
    "all": lambda condition, found: all(plain(part, found) for part in condition["all"]),
    "any": lambda condition, found: any(plain(part, found) for part in condition["any"]),
    "not": lambda condition, found: not plain(condition["not"], found),
    "between": lambda condition, found: condition["between"][0] <= found.instances <= condition["between"][1],
    "in": among,
    "source": lambda condition, found: any(value in found.sources for value in condition["source"]),
    "fetched": lambda condition, found: bool(found.fetched == condition["fetched"]),
    "modality": lambda condition, found: any(
        value in found.of("Modality") for value in condition["modality"]
    ),
    "time": lambda condition, found: bool(condition) and found.at.hour == 20,  # within what is asked for
}


def plain(condition: dict[str, Any], found: Facts) -> bool:
    """Say what a condition means, in other words than the code under test."""
    kind = next(kind for kind in PLAIN if kind in condition)
    return PLAIN[kind](condition, found)


def refusal(condition: object) -> str:
    """Return why a condition is refused, or nothing."""
    try:
        conditions.check(condition)
    except RuleError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(condition=CONDITIONS, found=FACTS)
def test_joined_conditions_mean_what_logic_says(condition: dict[str, Any], found: Facts) -> None:
    refused = refusal(condition)
    if refused:
        assert "levels" in refused
        return
    verdict = conditions.evaluate(condition, found)
    assert verdict.holds is plain(condition, found)
    assert verdict.reasons
    assert all(isinstance(reason, str) for reason in verdict.reasons)
    if str(condition).count("{") < grammar.MAX_DEPTH:
        assert conditions.evaluate({"not": condition}, found).holds is not verdict.holds
    assert conditions.evaluate(json.loads(json.dumps(condition)), found) == verdict


@settings(max_examples=500, deadline=None)
@given(condition=JSON, found=FACTS)
def test_whatever_is_given_is_evaluated_or_refused_with_its_field(condition: object, found: Facts) -> None:
    refused = refusal(condition)
    if refused:
        assert refused.startswith("condition")
        return
    assert isinstance(condition, dict)
    conditions.evaluate(condition, found)
    assert conditions.describe(condition)
