"""What holds for every strategy: whoever adds one finds it here by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.errors import StrategyError, UpdateError
from trainer.strategies import STRATEGIES, Contribution, get

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]
NAMES = tuple(STRATEGIES)
# Of these a global parameter stays within what the sites' models hold of it.
CONVEX = frozenset(
    {"fedavg", "fedprox", "median", "trimmed-mean", "krum", "multi-krum", "fedbn", "scaffold", "ditto"}
    | {"feddis"}
    | {"auto-fedavg", "transfer", "domain-generalisation", "domain-adaptation", "variation-aware"}
)

AVERAGING = tuple(name for name in NAMES if not STRATEGIES[name].one_at_a_time)

every_strategy = pytest.mark.parametrize("name", NAMES)
every_averaging = pytest.mark.parametrize("name", AVERAGING)


def model() -> Arrays:
    return {
        "conv.weight": np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
        "half": np.array([0.5], dtype=np.float16),
        "scale": np.array(2.0, dtype=np.float64),
        "bn.running_var": np.array([1.0, 2.0], dtype=np.float32),
        "bn.num_batches_tracked": np.array(10, dtype=np.int64),
    }


def step(value: float) -> Arrays:
    return {name: np.full(array.shape, value, dtype=array.dtype) for name, array in model().items()}


def contributions(*values: float) -> list[Contribution]:
    return [Contribution(f"site-{i}", step(value), i + 1) for i, value in enumerate(values)]


@every_averaging
def test_dtypes_shapes_and_arguments_are_kept(name: str) -> None:
    reference, updates = model(), contributions(1, 2, 3, 2, 1)
    new, state = get(name).aggregate(reference, updates, {}, {})
    again, _ = get(name).aggregate(new, updates, state, {})
    for key, array in model().items():
        for result in (new, again):
            assert isinstance(result[key], np.ndarray)
            assert (result[key].dtype, result[key].shape) == (array.dtype, array.shape)
        assert np.array_equal(reference[key], array)
        assert np.array_equal(updates[1].delta[key], step(2)[key])
    assert all(isinstance(array, np.ndarray) for array in state.values())


@every_averaging
def test_a_counter_moves_to_a_whole_number_between_the_sites(name: str) -> None:
    new, _ = get(name).aggregate(model(), contributions(3, 4, 4, 3, 4), {}, {})
    assert int(new["bn.num_batches_tracked"]) in {13, 14}


@every_averaging
def test_a_running_variance_stays_between_the_sites(name: str) -> None:
    rule, weights = get(name), model()
    state: Arrays = {}
    for _ in range(5):
        before = weights
        weights, state = rule.aggregate(before, contributions(-0.1, -0.15, -0.2, -0.1, -0.12), state, {})
        moved = weights["bn.running_var"] - before["bn.running_var"]
        assert np.all((moved > -0.2001) & (moved < -0.0999))


@settings(max_examples=150)
@given(
    deltas=st.lists(
        hnp.arrays(np.float32, (3, 2), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=7
    ),
    weights=st.lists(st.integers(1, 10_000), min_size=7, max_size=7),
    order=st.randoms(use_true_random=False),
    name=st.sampled_from(AVERAGING),
)
def test_the_order_of_sites_does_not_matter(
    deltas: list[NDArray[np.float32]], weights: list[int], order: Any, name: str
) -> None:
    reference = {"w": np.ones((3, 2), dtype=np.float32)}
    updates = [Contribution(f"site-{i}", {"w": d}, weights[i]) for i, d in enumerate(deltas)]
    shuffled = list(updates)
    order.shuffle(shuffled)
    first, state = get(name).aggregate(reference, updates, {}, {})
    second, other = get(name).aggregate(reference, shuffled, {}, {})
    assert np.array_equal(first["w"], second["w"])
    assert state.keys() == other.keys()
    assert all(np.array_equal(state[key], other[key]) for key in state)


@settings(max_examples=100)
@given(
    deltas=st.lists(
        hnp.arrays(np.float32, (4,), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=7
    ),
    name=st.sampled_from(sorted(CONVEX)),
)
def test_the_global_model_lies_within_the_sites_models(deltas: list[NDArray[np.float32]], name: str) -> None:
    reference = {"w": np.zeros(4, dtype=np.float32)}
    updates = [Contribution(f"site-{i}", {"w": d}, i + 1) for i, d in enumerate(deltas)]
    new, _ = get(name).aggregate(reference, updates, {}, {})
    slack = 1e-4
    assert np.all(new["w"] <= np.max(deltas, axis=0) + slack)
    assert np.all(new["w"] >= np.min(deltas, axis=0) - slack)


@every_strategy
def test_one_site_moves_the_model_its_own_way(name: str) -> None:
    new, _ = get(name).aggregate(model(), contributions(0.25), {}, {})
    assert np.all(new["conv.weight"] > model()["conv.weight"])


@every_strategy
def test_without_an_update_or_with_a_site_twice_there_is_no_round(name: str) -> None:
    for updates in ([], [Contribution("a", step(1), 1), Contribution("a", step(1), 1)]):
        with pytest.raises(StrategyError):
            get(name).aggregate(model(), updates, {}, {})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: {**d, "conv.weight": d["conv.weight"] * np.float32("nan")}, "not_finite"),
        (lambda d: {**d, "scale": np.array(np.inf)}, "not_finite"),
        (lambda d: {**d, "scale": np.array(-np.inf)}, "not_finite"),
        (lambda d: {key: array for key, array in d.items() if key != "half"}, "names"),
        (lambda d: {**d, "conv.weight": d["conv.weight"].astype(np.float64)}, "dtype"),
    ],
    ids=["nan", "inf", "minus-inf", "missing", "dtype"],
)
@every_averaging
def test_a_broken_update_is_refused(name: str, change: Callable[[Arrays], Arrays], code: str) -> None:
    updates = contributions(1, 2, 3, 4)
    updates.append(Contribution("z", change(step(1)), 1))
    with pytest.raises(UpdateError) as caught:
        get(name).aggregate(model(), updates, {}, {})
    assert caught.value.code == code


@every_strategy
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(StrategyError, match="unknown parameter"):
        get(name).check_parameters({"nu": 1})
