from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.trainer.peers.groups import Arrays, model, step
from trainer.errors import StrategyError, UpdateError
from trainer.federation import swarming
from trainer.federation.errors import AggregationError
from trainer.federation.plan import Bounds, Strategy
from trainer.strategies import Contribution, get
from trainer.strategies.swarm import leader

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BOUNDS = Bounds(1e6, 100)
SWARM = Strategy("swarm", {})


def contributions(*values: float) -> list[Contribution]:
    return [Contribution(f"site-{i}", step(value), i + 1) for i, value in enumerate(values)]


def test_the_drawn_site_comes_to_what_fedavg_comes_to_bit_for_bit() -> None:
    sent = contributions(1, 2, 4)
    arrays = swarming.bundle(model(), sent)
    found = swarming.combined(arrays, SWARM, 3, BOUNDS)
    expected, _ = get("fedavg").aggregate(model(), sent, {}, {})
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    swarming.check_word(model(), found, sent, {})


def test_the_drawn_site_checks_every_update_itself() -> None:
    sent = contributions(1, 2)
    broken = [*sent, Contribution("z", {**step(1), "scale": np.array(np.nan)}, 1)]
    arrays = swarming.bundle(model(), broken)
    found = swarming.combined(arrays, SWARM, 2, BOUNDS)
    expected, _ = get("fedavg").aggregate(model(), sent, {}, {})
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    with pytest.raises(AggregationError):
        swarming.combined(arrays, SWARM, 3, BOUNDS)
    with pytest.raises(AggregationError):
        swarming.combined(arrays, SWARM, 1, Bounds(1e-6, 100))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {name: array for name, array in a.items() if name != "update:site-1:scale"},
        lambda a: {**a, "update:site-9:scale": a["update:site-1:scale"]},
        lambda a: {**a, "more": a["model:scale"]},
        lambda a: {**a, "samples:site-1": np.array([1.5])},
        lambda a: {**a, "samples:site-1": np.array([1, 2])},
    ],
    ids=["missing", "foreign", "unknown", "fraction", "two"],
)
def test_what_is_no_round_is_refused(change: Callable[[Arrays], Arrays]) -> None:
    arrays = change(swarming.bundle(model(), contributions(1, 2)))
    with pytest.raises(UpdateError):
        swarming.combined(arrays, SWARM, 1, BOUNDS)


@given(
    deltas=st.lists(
        hnp.arrays(np.float32, (4,), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=6
    ),
    start=hnp.arrays(np.float32, (4,), elements=st.floats(-100, 100, width=32)),
    rate=st.sampled_from([0.1, 1.0, 3.0]),
    counts=st.lists(st.integers(1, 1000), min_size=6, max_size=6),
)
def test_every_mean_of_the_updates_passes_the_check_of_the_coordinator(
    deltas: list[NDArray[np.float32]], start: NDArray[np.float32], rate: float, counts: list[int]
) -> None:
    sent = [Contribution(f"s{i}", {"w": delta}, counts[i]) for i, delta in enumerate(deltas)]
    parameters = {"server_learning_rate": rate}
    made, _ = get("swarm").aggregate({"w": start}, sent, {}, parameters)
    swarming.check_word({"w": start}, made, sent, parameters)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: {**m, "scale": np.array(m["scale"] + 9)}, "norm"),
        (lambda m: {**m, "scale": np.array(m["scale"] - 9)}, "norm"),
        (lambda m: {**m, "bn.num_batches_tracked": np.array(m["bn.num_batches_tracked"] + 9)}, "norm"),
        (lambda m: {**m, "conv.weight": m["conv.weight"] * np.float32("nan")}, "not_finite"),
        (lambda m: {name: array for name, array in m.items() if name != "half"}, "names"),
    ],
    ids=["above", "below", "counter", "nan", "missing"],
)
def test_a_model_that_no_mean_of_the_updates_is_gets_refused(
    change: Callable[[Arrays], Arrays], code: str
) -> None:
    sent = contributions(1, 2, 4)
    made: dict[str, Any] = get("swarm").aggregate(model(), sent, {}, {})[0]
    with pytest.raises(UpdateError) as caught:
        swarming.check_word(model(), change(made), sent, {})
    assert caught.value.code == code


def test_where_nobody_is_there_nobody_is_drawn() -> None:
    with pytest.raises(StrategyError, match="nobody is there"):
        leader(1, set(), 0)
