from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.federation.plans import EXPIRY, make_plan
from tests.trainer.samples import small_task
from trainer.federation.errors import PlanError
from trainer.federation.plan import Plan, Strategy, content_sha256
from trainer.privacy.promise import Promise
from trainer.task import NetworkSpec


def test_a_plan_survives_its_own_json() -> None:
    plan = make_plan(strategy=Strategy("fedprox", {"mu": 0.01}))

    again = Plan.loads(plan.dumps())

    assert again.to_json() == plan.to_json()
    assert again.sha256 == plan.sha256


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    content = make_plan().to_json()

    assert Plan.from_json(dict(reversed(content.items()))).sha256 == make_plan().sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"total_rounds": 4},
        {"min_sites": 1},
        {"minimum_cohort": 6},
        {"seed": 2},
        {"expires_at": EXPIRY + timedelta(seconds=1)},
        {"strategy": Strategy("fedavg", {"server_learning_rate": 0.5})},
        {"straggler_wait_s": 1.0},
        {"ethics_number": "EK 12/2026"},
        {"max_hours": 3.0},
        {"initial_sha256": "ab" * 32},
        {"max_update_norm": 1.0},
        {"max_samples_per_site": 10},
    ],
)
def test_every_changed_field_changes_the_hash(changes: dict[str, Any]) -> None:
    assert make_plan(**changes).sha256 != make_plan().sha256


def test_the_hash_is_of_the_canonical_text() -> None:
    content = make_plan().to_json()

    text = json.dumps(content, sort_keys=True, separators=(",", ":"))

    assert content_sha256(content) == content_sha256(json.loads(text))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "../escape"),
        ("run_id", ""),
        ("run_id", 7),
        ("name", "line\nbreak"),
        ("name", "x" * 65),
        ("total_rounds", 0),
        ("total_rounds", True),
        ("total_rounds", 2.5),
        ("min_sites", 0),
        ("minimum_cohort", -1),
        ("seed", 2**40),
        ("expires_at", "2030-01-01T00:00:00"),
        ("expires_at", "soon"),
        ("round_timeout_s", 0),
        ("approval_wait_s", float("inf")),
        ("round_timeout_s", float("nan")),
        ("straggler_wait_s", -1),
        ("max_update_norm", 0),
        ("max_update_norm", float("inf")),
        ("max_samples_per_site", 0),
        ("max_samples_per_site", 1.5),
        ("strategy", {"name": "fedavg"}),
        ("strategy", {"name": "fedavg", "parameters": {"mu": "x"}}),
        ("task", {"name": "blob"}),
        ("task", 3),
        ("ethics_number", "two\nlines"),
        ("ethics_number", "x" * 65),
        ("ethics_number", 7),
        ("max_hours", 0),
        ("max_hours", 1e9),
        ("max_hours", "2"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(field: str, value: object) -> None:
    content = {**make_plan().to_json(), field: value}

    with pytest.raises(PlanError, match=field):
        Plan.from_json(content)


def test_missing_and_unknown_fields_are_refused() -> None:
    content = make_plan().to_json()

    with pytest.raises(PlanError, match="seed: missing"):
        Plan.from_json({name: value for name, value in content.items() if name != "seed"})
    with pytest.raises(PlanError, match="code: unknown"):
        Plan.from_json({**content, "code": "import os"})


def test_a_plan_file_without_bounds_gets_the_usual_ones_in_its_hash() -> None:
    content = make_plan().to_json()
    old = {name: value for name, value in content.items() if not name.startswith("max_")}

    plan = Plan.from_json(old)

    assert plan.to_json() == content
    assert (plan.bounds.update_norm, plan.bounds.samples) == (100.0, 100_000)


def test_what_a_plan_does_not_set_is_not_in_its_hash() -> None:
    content = make_plan().to_json()

    assert not {"ethics_number", "max_hours"} & set(content)
    assert Plan.from_json({**content, "max_hours": 2}).sha256 == make_plan(max_hours=2.0).sha256


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(PlanError, match="expires_at"):
        make_plan(expires_at=datetime(2100, 1, 1))  # noqa: DTZ001 - the very fault


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_json_value_in_place_of_a_plan_raises_anything_else(value: Any) -> None:
    content = value if isinstance(value, dict) else {"task": value}

    with pytest.raises(PlanError):
        Plan.from_json(content)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "round_timeout_s": st.integers(1, 1000) | st.floats(1, 1000),
            "approval_wait_s": st.integers(0, 1000) | st.floats(0, 1000),
            "max_update_norm": st.integers(1, 1000) | st.floats(0.1, 1000),
            "straggler_wait_s": st.integers(0, 1000) | st.floats(0, 1000),
            "strategy": st.builds(
                lambda mu: Strategy("fedprox", {"mu": mu}), st.integers(0, 5) | st.floats(0, 5)
            ),
        },
    )
)
def test_a_plan_has_one_hash_whoever_wrote_its_numbers(changes: dict[str, Any]) -> None:
    plan = make_plan(**changes)

    assert Plan.from_json(plan.to_json()).sha256 == plan.sha256
    assert Plan.loads(plan.dumps()).sha256 == plan.sha256


@given(st.text())
def test_no_text_in_place_of_a_plan_raises_anything_else(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.loads(text)


PROMISE = Promise("dp-sgd", 1.0, 1.5, epsilon=50.0, delta=1e-5, sampling_rate=0.5)


def test_a_promise_of_privacy_is_part_of_the_plan_and_of_its_hash() -> None:
    plan = make_plan(privacy=PROMISE)

    assert Plan.loads(plan.dumps()) == plan
    assert plan.sha256 != make_plan().sha256
    assert plan.sha256 != make_plan(privacy=replace(PROMISE, noise_multiplier=1.4)).sha256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": replace(PROMISE, epsilon=0.5)}, "3 rounds cost"),
        ({"privacy": PROMISE, "strategy": Strategy("scaffold", {})}, "scaffold"),
        ({"privacy": PROMISE, "task": small_task(network=NetworkSpec("resnet", {"norm": "batch"}))}, "group"),
    ],
    ids=["costs-more", "scaffold", "batch-norm"],
)
def test_a_promise_that_no_run_can_keep_is_no_plan(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_plan(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": "laplace"},
        {"noise_multiplier": 0},
        {"noise_multiplier": "1"},
        {"clip_norm": float("nan")},
        {"delta": 0.5},
        {"delta": True},
        {"sampling_rate": 0},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_wrong_field_of_a_promise_is_named(changes: dict[str, Any]) -> None:
    content = make_plan(privacy=PROMISE).to_json()

    with pytest.raises(PlanError, match=r"privacy: .*expected"):
        Plan.from_json({**content, "privacy": {**content["privacy"], **changes}})
    with pytest.raises(PlanError, match="privacy"):
        Plan.from_json({**content, "privacy": "dp-sgd"})
