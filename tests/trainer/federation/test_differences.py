from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.federation.plans import EXPIRY, make_plan
from tests.trainer.samples import small_task
from trainer.federation.differences import Difference, differences
from trainer.federation.plan import Plan, Strategy
from trainer.task import LocalSpec, NetworkSpec

OLD = make_plan(max_hours=5.0, ethics_number="EK 1")


def changed(**changes: Any) -> tuple[Difference, ...]:
    return differences(OLD, make_plan(**{"max_hours": 5.0, "ethics_number": "EK 1", **changes}))


def test_the_same_plan_differs_in_nothing() -> None:
    assert changed() == ()


@pytest.mark.parametrize(
    ("changes", "field", "grade"),
    [
        ({"total_rounds": 4}, "total_rounds", "asks_more"),
        ({"total_rounds": 2}, "total_rounds", "asks_less"),
        ({"max_update_norm": 101.0}, "max_update_norm", "asks_more"),
        ({"max_update_norm": 1.0}, "max_update_norm", "asks_less"),
        ({"expires_at": EXPIRY + timedelta(days=1)}, "expires_at", "asks_more"),
        ({"expires_at": EXPIRY - timedelta(days=1)}, "expires_at", "asks_less"),
        ({"minimum_cohort": 4}, "minimum_cohort", "asks_more"),
        ({"min_sites": 1}, "min_sites", "asks_more"),
        ({"min_sites": 3}, "min_sites", "asks_less"),
        ({"max_hours": 6.0}, "max_hours", "asks_more"),
        ({"max_hours": None}, "max_hours", "asks_more"),
        ({"ethics_number": "EK 2"}, "ethics_number", "asks_more"),
        ({"ethics_number": ""}, "ethics_number", "asks_more"),
        ({"strategy": Strategy("median", {})}, "strategy.name", "asks_more"),
        ({"task": small_task(label="other")}, "task.label", "asks_more"),
        ({"task": small_task(modalities=("CR", "DX", "MR"))}, "task.modalities", "asks_more"),
        ({"task": small_task(network=NetworkSpec("resnet", {"width": 99}))}, None, "asks_more"),
        ({"task": small_task(local=LocalSpec(local_steps=9_999))}, "task.local.local_steps", "asks_more"),
        ({"seed": 2}, "seed", "other"),
        ({"name": "Another title"}, "name", "other"),
    ],
)
def test_a_change_is_named_with_what_it_means_for_the_site(
    changes: dict[str, Any], field: str | None, grade: str
) -> None:
    found = changed(**changes)

    matching = [one for one in found if field is None or one.field == field]
    assert [one.grade for one in matching][:1] == [grade]
    assert all(one.words and one.old != one.new for one in found)


def test_what_asks_more_stands_first_and_what_weighs_most_before_the_rest() -> None:
    found = changed(
        seed=9, total_rounds=9, expires_at=EXPIRY - timedelta(days=1), task=small_task(label="other")
    )

    assert [one.field for one in found] == ["task.label", "total_rounds", "seed", "expires_at"]


def test_a_limit_that_is_new_asks_less() -> None:
    [found] = differences(make_plan(), make_plan(max_hours=5.0))

    assert (found.field, found.old, found.new, found.grade) == ("max_hours", None, 5.0, "asks_less")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "total_rounds": st.integers(1, 9),
            "min_sites": st.integers(1, 9),
            "max_update_norm": st.floats(1.0, 9.0),
            "max_hours": st.none() | st.floats(1.0, 9.0),
            "seed": st.integers(0, 9),
        },
    )
)
def test_every_changed_hash_has_a_difference_and_no_other(changes: dict[str, Any]) -> None:
    new: Plan = replace(OLD, **changes)

    assert bool(differences(OLD, new)) == (new.sha256 != OLD.sha256)
    assert {one.field for one in differences(OLD, new)} <= set(changes)
