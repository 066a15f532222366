"""What a site takes for a global model of a plan, and what it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.trainer.federation.plans import make_plan
from trainer.compression import Compression
from trainer.errors import UnfitModelError
from trainer.federation.plan import Strategy
from trainer.first_model import check_reachable, first_model, is_bounded
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.federation.plan import Plan
    from trainer.weights_io import Weights

PLAN = make_plan(max_update_norm=2.0)


def moved(plan: Plan, distance: float) -> Weights:
    """Return the plan's first model, one array of it moved by a distance."""
    weights = dict(first_model(plan.task, plan.strategy.name, plan.seed))
    array = weights["conv1.weight"]
    weights["conv1.weight"] = array + np.float32(distance / np.sqrt(array.size))
    return weights


def check(plan: Plan, weights: Weights, rounds: int) -> None:
    check_reachable(plan, weights, rounds, first_model(plan.task, plan.strategy.name, plan.seed))


def test_models_in_files_are_checked_alike(tmp_path: Path) -> None:
    first = Stored.write(tmp_path / "first", moved(PLAN, 0.0))
    near, far = (Stored.write(tmp_path / f"{one}", moved(PLAN, one)) for one in (1.9, 2.1))

    check_reachable(PLAN, near, 1, first)
    with pytest.raises(UnfitModelError, match="seed"):
        check_reachable(PLAN, far, 1, first)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "median", "variation-aware", "cyclic"])
def test_the_first_round_is_on_the_model_that_the_seed_gives(strategy: str) -> None:
    plan = make_plan(strategy=Strategy(strategy, {}))

    check(plan, moved(plan, 0.0), 0)
    with pytest.raises(UnfitModelError, match="seed"):
        check(plan, moved(plan, 0.1), 0)


def test_another_seed_gives_another_first_model() -> None:
    with pytest.raises(UnfitModelError, match="seed"):
        check(PLAN, moved(make_plan(seed=PLAN.seed + 1), 0.0), 0)


@pytest.mark.parametrize(("rounds", "rate"), [(1, 1.0), (3, 1.0), (1, 0.5)])
def test_a_mean_of_bounded_updates_lies_within_their_bound(rounds: int, rate: float) -> None:
    plan = make_plan(max_update_norm=2.0, strategy=Strategy("fedavg", {"server_learning_rate": rate}))

    check(plan, moved(plan, 1.99 * rounds * rate), rounds)
    with pytest.raises(UnfitModelError, match="seed"):
        check(plan, moved(plan, 2.1 * rounds * rate), rounds)


def test_a_model_of_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(UnfitModelError):
        check(PLAN, moved(PLAN, float("nan")), 2)


def test_other_tensors_are_refused() -> None:
    weights = moved(PLAN, 0.0)

    with pytest.raises(UnfitModelError, match="tensors"):
        check(PLAN, {**weights, "more": weights["fc.bias"]}, 0)
    with pytest.raises(UnfitModelError, match="shapes"):
        check(PLAN, {**weights, "fc.bias": np.zeros(2, np.float32)}, 0)


def test_what_a_site_cannot_bound_is_not_bounded() -> None:
    adaptive = make_plan(strategy=Strategy("fedadam", {}))
    packed = make_plan(compression=Compression("int8", both_ways=True))
    later = make_plan(initial_sha256="ab" * 32)

    for plan, rounds in ((adaptive, 1), (packed, 1), (later, 0)):
        assert not is_bounded(plan, rounds)
        check(plan, moved(plan, 1e4), rounds)
