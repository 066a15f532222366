from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer import strategies
from trainer.errors import UpdateError
from trainer.federation import aggregation
from trainer.federation.aggregation import Update
from trainer.federation.errors import AggregationError
from trainer.federation.plan import Bounds, Strategy

FEDAVG = Strategy("fedavg", {})
BOUNDS = Bounds(update_norm=100.0, samples=100_000)
REFERENCE: dict[str, Any] = {"weight": np.zeros((2, 3), np.float32), "steps": np.zeros((), np.int64)}


def update(site: str, value: float, samples: int = 10) -> Update:
    delta: dict[str, Any] = {"weight": np.full((2, 3), value, np.float32), "steps": np.asarray(4, np.int64)}
    return Update(site, delta, samples)


def run(*updates: Update, min_sites: int = 1, bounds: Bounds = BOUNDS) -> aggregation.Aggregate:
    return aggregation.aggregate(REFERENCE, {}, updates, FEDAVG, min_sites, bounds)


def test_updates_are_averaged_by_samples() -> None:
    result = run(update("north", 1.0, 10), update("south", 4.0, 20))

    np.testing.assert_allclose(result.weights["weight"], 3.0)
    assert result.weights["weight"].dtype == np.float32
    assert result.weights["steps"].shape == ()


@pytest.mark.parametrize(
    "broken",
    [
        Update("bad", {"weight": np.zeros((2, 3), np.float32)}, 10),
        Update("bad", {**update("bad", 0).delta, "extra": np.zeros(1, np.float32)}, 10),
        Update("bad", {**update("bad", 0).delta, "weight": np.zeros((3, 2), np.float32)}, 10),
        Update("bad", {**update("bad", 0).delta, "weight": np.zeros((2, 3), np.float64)}, 10),
        update("bad", float("nan")),
        update("bad", float("inf")),
        update("bad", 1.0, 0),
        update("bad", 1.0, -5),
        update("bad", 1.0, 10**9),
        update("bad", 1e30),
        update("bad", 3e38),
    ],
)
def test_a_broken_update_is_recorded_and_not_counted(broken: Update) -> None:
    result = run(update("north", 1.0), broken)

    np.testing.assert_allclose(result.weights["weight"], 1.0)
    judged = {judgement.site: judgement.reason for judgement in result.judgements}
    assert judged["north"] is None
    assert judged["bad"]


def test_a_site_that_claims_many_samples_weighs_no_more_than_the_plan_allows() -> None:
    result = run(update("north", 1.0, 10), update("loud", 4.0, 10_000), bounds=Bounds(100.0, 20))

    np.testing.assert_allclose(result.weights["weight"], 3.0)
    assert [(one.samples, one.claimed) for one in result.judgements] == [(10, 10), (20, 10_000)]


def test_a_site_that_signed_a_smaller_norm_than_it_sends_is_refused() -> None:
    """The other sites bound the next model by what was signed; who states too little would stop them."""
    norm = strategies.update_norm(update("north", 1.0).delta)
    told = [replace(update("north", 1.0), norm=norm), replace(update("low", 1.0), norm=norm * 0.99)]

    result = run(*told)

    judged = {judgement.site: judgement.reason for judgement in result.judgements}
    assert judged["north"] is None
    assert "norm" in (judged["low"] or "")


def test_an_update_above_the_plans_norm_is_refused() -> None:
    norm = strategies.update_norm(update("north", 1.0).delta)

    judged = aggregation.judge(REFERENCE, update("north", 1.0), Bounds(norm, 10))
    refused = aggregation.judge(REFERENCE, update("north", 1.0), Bounds(norm * 0.999, 10))

    assert judged.reason is None
    assert "norm" in str(refused.reason)


def test_too_few_usable_updates_make_no_round() -> None:
    with pytest.raises(AggregationError, match="1 usable"):
        run(update("north", 1.0), update("bad", float("nan")), min_sites=2)


def test_the_recorded_hash_is_that_of_the_updates_file() -> None:
    one = update("north", 1.0)

    judgement = aggregation.judge(REFERENCE, one, BOUNDS)

    assert judgement.update_sha256 == aggregation.fingerprint(one.delta)
    assert len(judgement.update_sha256) == 64


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            arrays.arrays(np.float32, (2, 3), elements=st.floats(-8, 8, width=32)), st.integers(1, 1000)
        ),
        min_size=2,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_sites_does_not_matter(drawn: list[tuple[Any, int]], random: Any) -> None:
    updates = [
        Update(f"site-{i}", {"weight": delta, "steps": np.asarray(i, np.int64)}, samples)
        for i, (delta, samples) in enumerate(drawn)
    ]
    shuffled = list(updates)
    random.shuffle(shuffled)

    first, second = run(*updates), run(*shuffled)

    np.testing.assert_array_equal(first.weights["weight"], second.weights["weight"])


def test_scalars_that_transport_widened_get_their_shape_and_dtype_back() -> None:
    received: dict[str, Any] = {"weight": np.ones((2, 3), np.float32), "steps": np.float64(4.0)}

    fitted = aggregation.fitted(REFERENCE, received)

    assert fitted["steps"].shape == ()
    assert fitted["steps"].dtype == np.int64


@pytest.mark.parametrize("value", [np.float64("nan"), np.float64(1.5), np.float64(1e300)])
def test_a_scalar_that_the_dtype_cannot_hold_is_refused(value: np.float64) -> None:
    received: dict[str, Any] = {"weight": np.ones((2, 3), np.float32), "steps": value}

    result = run(update("north", 1.0), Update("bad", aggregation.fitted(REFERENCE, received), 10))

    assert result.judgements[1].reason


def test_only_arrays_of_numbers_under_printable_names_are_taken() -> None:
    taken = aggregation.plain_arrays({"weight": np.ones(2, np.float32), "steps": np.float64(3.0)})

    assert {name: array.shape for name, array in taken.items()} == {"weight": (2,), "steps": ()}
    for name, value in [("w", [1.0]), ("w", object()), (5, np.ones(1)), ("a\n", np.ones(1)), ("w", 1.0)]:
        with pytest.raises(UpdateError):
            aggregation.plain_arrays({name: value})


def test_an_update_that_leaves_a_counters_range_is_refused_alone() -> None:
    far = Update("bad", {**update("bad", 1.0).delta, "steps": np.asarray(2**63 - 1, np.int64)}, 10)
    reference = {**REFERENCE, "steps": np.asarray(5, np.int64)}

    result = aggregation.aggregate(reference, {}, [update("north", 1.0), far], FEDAVG, 1, BOUNDS)

    assert result.judgements[1].reason
    assert result.weights["steps"] == 9
