from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.errors import StrategyError, UpdateError
from trainer.strategies import STRATEGIES, Contribution, check_update, clip_update, get, update_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]

NAMES = ("fedavg", "fedprox")


def model() -> Arrays:
    return {
        "weight": np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
        "half": np.array([0.5], dtype=np.float16),
        "counter": np.array(10, dtype=np.int64),
        "scale": np.array(2.0, dtype=np.float64),
    }


def step(value: float) -> Arrays:
    return {name: np.full(array.shape, value, dtype=array.dtype) for name, array in model().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_weighted_by_samples(name: str) -> None:
    new, _ = get(name).aggregate(
        model(), [Contribution("a", step(1), 1), Contribution("b", step(4), 2)], {}, {}
    )
    assert np.allclose(new["weight"], model()["weight"] + 3)
    assert new["counter"] == 13
    assert new["scale"] == 5.0


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_shapes_stay_and_arguments_are_not_touched(name: str) -> None:
    reference, delta = model(), step(1)
    new, state = get(name).aggregate(reference, [Contribution("a", delta, 3)], {"m": np.array(1.0)}, {})
    for key, array in model().items():
        assert (new[key].dtype, new[key].shape) == (array.dtype, array.shape)
        assert isinstance(new[key], np.ndarray)
        assert np.array_equal(reference[key], array)
        assert np.array_equal(delta[key], step(1)[key])
    assert state == {"m": np.array(1.0)}


def test_integer_buffers_move_by_the_mean_rounded_to_the_nearest() -> None:
    reference = {"n": np.array(2**60 + 1, dtype=np.int64)}
    updates = [
        Contribution(site, {"n": np.array(value, dtype=np.int64)}, 1)
        for site, value in (("a", 3), ("b", 4), ("c", 4))
    ]
    new, _ = get("fedavg").aggregate(reference, updates, {}, {"server_learning_rate": 0.5})
    assert int(new["n"]) == 2**60 + 5


def test_an_integer_that_would_leave_its_range_is_refused() -> None:
    reference = {"n": np.array([2**31 - 2], dtype=np.int32)}
    with pytest.raises(UpdateError, match="range"):
        get("fedavg").aggregate(
            reference, [Contribution("a", {"n": np.array([5], dtype=np.int32)}, 1)], {}, {}
        )


def test_a_float_that_would_leave_its_range_is_refused() -> None:
    reference = {"w": np.array([60000.0], dtype=np.float16)}
    with pytest.raises(UpdateError, match="finite"):
        get("fedavg").aggregate(
            reference, [Contribution("a", {"w": np.array([60000.0], dtype=np.float16)}, 1)], {}, {}
        )


@settings(max_examples=60)
@given(
    deltas=st.lists(
        hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=5
    ),
    weights=st.lists(st.integers(1, 10_000), min_size=5, max_size=5),
    order=st.randoms(use_true_random=False),
    name=st.sampled_from(NAMES),
)
def test_aggregation_does_not_depend_on_order(
    deltas: list[NDArray[np.float32]], weights: list[int], order: Any, name: str
) -> None:
    reference = {"w": np.ones((3, 2), dtype=np.float32)}
    updates = [Contribution(f"site-{i}", {"w": d}, weights[i]) for i, d in enumerate(deltas)]
    shuffled = list(updates)
    order.shuffle(shuffled)
    first, _ = get(name).aggregate(reference, updates, {}, {})
    second, _ = get(name).aggregate(reference, shuffled, {}, {})
    assert np.array_equal(first["w"], second["w"])
    total = sum(u.samples for u in updates)
    expected = sum((u.delta["w"].astype(np.float64) * u.samples for u in updates), np.zeros((3, 2))) / total
    assert np.allclose(first["w"], 1 + expected, rtol=1e-6, atol=1e-4)


@settings(max_examples=30)
@given(hnp.arrays(np.float32, (4,), elements=st.floats(-100, 100, width=32)), st.integers(1, 6))
def test_equal_updates_give_that_update(delta: NDArray[np.float32], sites: int) -> None:
    reference = {"w": np.zeros(4, dtype=np.float32)}
    updates = [Contribution(str(i), {"w": delta}, i + 1) for i in range(sites)]
    new, _ = get("fedavg").aggregate(reference, updates, {}, {})
    assert np.allclose(new["w"], delta, rtol=1e-6, atol=1e-6)


def _drop(delta: Arrays) -> Arrays:
    return {name: array for name, array in delta.items() if name != "half"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_drop, "names"),
        (lambda d: {**d, "extra": np.zeros(1, dtype=np.float32)}, "names"),
        (lambda d: {**d, "weight": d["weight"].reshape(4)}, "shape"),
        (lambda d: {**d, "counter": d["counter"].reshape(1)}, "shape"),
        (lambda d: {**d, "counter": 1}, "shape"),
        (lambda d: {**d, "weight": d["weight"].astype(np.float64)}, "dtype"),
        (lambda d: {**d, "counter": np.array(1.0)}, "dtype"),
        (lambda d: {**d, "weight": d["weight"] * np.float32("nan")}, "not_finite"),
        (lambda d: {**d, "scale": np.array(np.inf)}, "not_finite"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(change: Callable[[Arrays], Arrays], code: str) -> None:
    with pytest.raises(UpdateError) as caught:
        check_update(model(), change(step(1)))
    assert caught.value.code == code
    with pytest.raises(UpdateError):
        get("fedavg").aggregate(model(), [Contribution("a", change(step(1)), 1)], {}, {})


def test_an_unsigned_buffer_is_refused_since_differences_would_wrap() -> None:
    reference = {"n": np.array(1, dtype=np.uint8)}
    with pytest.raises(UpdateError, match="signed"):
        check_update(reference, {"n": np.array(1, dtype=np.uint8)})


def test_a_scalar_counts_in_the_norm_as_an_array_without_dimensions_does() -> None:
    three, four = np.array(3.0), np.array([4.0])
    assert update_norm({"scale": three, "w": four}) == update_norm({"scale": three[()], "w": four}) == 5.0


def test_an_update_above_the_bound_is_refused() -> None:
    delta = {"w": np.array([3.0, 4.0], dtype=np.float32)}
    assert update_norm(delta) == pytest.approx(5.0)
    check_update(delta, delta, max_norm=5.0)
    with pytest.raises(UpdateError) as caught:
        check_update(delta, delta, max_norm=4.9)
    assert caught.value.code == "norm"


@pytest.mark.parametrize(
    "updates",
    [
        [],
        [Contribution("a", step(1), 1), Contribution("a", step(1), 1)],
        [Contribution("a", step(1), 0)],
        [Contribution("a", step(1), -5), Contribution("b", step(1), 10)],
    ],
)
def test_contributions_that_make_no_mean_are_refused(updates: list[Contribution]) -> None:
    with pytest.raises(StrategyError):
        get("fedavg").aggregate(model(), updates, {}, {})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fedavg", {"mu": 0.1}),
        ("fedavg", {"server_learning_rate": 0}),
        ("fedavg", {"server_learning_rate": "1"}),
        ("fedprox", {"mu": -1}),
        ("fedprox", {"mu": True}),
        ("fedprox", {"mu": float("nan")}),
        ("fedprox", {"nu": 1}),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(StrategyError):
        get(name).check_parameters(parameters)
    with pytest.raises(StrategyError):
        get(name).aggregate(model(), [Contribution("a", step(1), 1)], {}, parameters)


def test_only_fedprox_trains_with_a_proximal_term() -> None:
    assert get("fedavg").proximal_mu({}, 0.5) == 0.0
    assert get("fedprox").proximal_mu({}, 0.5) == 0.5
    assert get("fedprox").proximal_mu({"mu": 0.1}, 0.5) == 0.1


def test_an_unknown_strategy_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(StrategyError, match=", ".join(STRATEGIES)):
        get("sorcery")


@settings(max_examples=100)
@given(
    hnp.arrays(np.float16, 6, elements=st.floats(-1000, 1000, width=16)),
    hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.floats(0.01, 100.0),
)
def test_a_clipped_update_keeps_to_the_bound_its_dtypes_and_its_counters(
    half: NDArray[Any], single: NDArray[Any], max_norm: float
) -> None:
    delta: Arrays = {"half": np.asarray(half), "single": np.asarray(single), "steps": np.array(7)}

    clipped = clip_update(delta, max_norm)

    assert update_norm(clipped) <= max_norm
    assert all(clipped[name].dtype == delta[name].dtype for name in delta)
    assert clipped["steps"] == 7
    if update_norm(delta) <= max_norm:
        assert all(np.array_equal(clipped[name], delta[name]) for name in delta)
