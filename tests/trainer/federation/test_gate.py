from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.trainer.federation.plans import EXPIRY, make_plan
from trainer.federation.gate import Admit, Facts, Refusal, Refuse, Standing, Wait, decide

PLAN = make_plan()


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "now": EXPIRY - timedelta(days=1),
        "announced_sha256": PLAN.sha256,
        "approved_sha256": PLAN.sha256,
        "standing": Standing.APPROVED,
        "cohort": 5,
        "site_minimum_cohort": 1,
        "number": 1,
        "on_other_model": False,
        **changes,
    }
    return Facts(**values)


def reason_of(**changes: Any) -> Refusal:
    decision = decide(PLAN, facts(**changes))
    assert isinstance(decision, Refuse)
    return decision.reason


def test_an_approved_plan_with_a_large_enough_cohort_is_admitted() -> None:
    assert decide(PLAN, facts()) == Admit()


def test_a_plan_that_nobody_decided_on_waits() -> None:
    assert decide(PLAN, facts(standing=Standing.PENDING)) == Wait()


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing.REFUSED, Refusal.REFUSED),
        (Standing.SUSPENDED, Refusal.SUSPENDED),
        (Standing.PAUSED, Refusal.PAUSED),
        (Standing.LEFT, Refusal.LEFT),
    ],
)
def test_a_plan_that_a_person_stopped_does_not_run(standing: Standing, reason: Refusal) -> None:
    assert reason_of(standing=standing) == reason


def test_a_plan_other_than_the_approved_one_is_refused() -> None:
    assert reason_of(approved_sha256="0" * 64) == Refusal.OTHER_PLAN


def test_a_plan_other_than_the_announced_one_is_refused() -> None:
    assert reason_of(announced_sha256="0" * 64) == Refusal.OTHER_PLAN


def test_an_altered_plan_is_refused_though_its_original_was_approved() -> None:
    altered = make_plan(total_rounds=300)

    decision = decide(altered, facts())

    assert isinstance(decision, Refuse)
    assert decision.reason == Refusal.OTHER_PLAN


def test_an_expired_plan_is_refused_even_when_it_only_waits() -> None:
    assert reason_of(now=EXPIRY, standing=Standing.PENDING) == Refusal.EXPIRED


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_round_that_the_plan_does_not_have_is_refused(number: int) -> None:
    assert reason_of(number=number) == Refusal.NOT_IN_PLAN


def test_the_greater_of_both_minimum_cohorts_counts() -> None:
    assert reason_of(cohort=4) == Refusal.COHORT_TOO_SMALL
    assert reason_of(cohort=9, site_minimum_cohort=10) == Refusal.COHORT_TOO_SMALL


def test_a_round_that_ran_here_on_another_model_is_refused() -> None:
    assert reason_of(on_other_model=True) == Refusal.OTHER_MODEL


def test_a_plan_whose_hours_are_spent_is_refused_and_one_without_limit_is_not() -> None:
    limited = make_plan(max_hours=2.0)
    of_it = {"announced_sha256": limited.sha256, "approved_sha256": limited.sha256}

    assert decide(limited, facts(**of_it, hours=1.99)) == Admit()
    spent = decide(limited, facts(**of_it, hours=2.0))
    assert isinstance(spent, Refuse)
    assert spent.reason == Refusal.HOURS_SPENT
    assert decide(PLAN, facts(hours=1e6)) == Admit()
