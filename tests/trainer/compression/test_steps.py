from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.trainer.compression.test_codecs import ALL, model
from tests.trainer.samples import drawn_dataset, small_task
from trainer.compression import Compression, CompressionError, steps
from trainer.errors import UpdateError
from trainer.simulation import bytes_by_site, simulate
from trainer.strategies.base import update_norm
from trainer.weights_io import difference, to_bytes

DRAW = steps.drawn(3, 2)


def taken(text: str, before: dict[str, Any], after: dict[str, Any], state: dict[str, Any]) -> steps.Step:
    return steps.take(Compression.parse(text), DRAW, before, after, state)


@pytest.mark.parametrize("text", ALL)
def test_both_ends_come_to_the_same_model_bit_for_bit(text: str) -> None:
    before, after = model(1), model(2)

    step = taken(text, before, after, {})
    followed = steps.follow(Compression.parse(text), DRAW, before, step.arrays)

    assert to_bytes(followed) == to_bytes(step.weights)
    assert set(step.arrays) == set(steps.template(Compression.parse(text), before))


@pytest.mark.parametrize("text", ALL)
def test_running_statistics_and_counters_are_exact(text: str) -> None:
    before, after = model(1), model(2)
    after["norm.running_mean"] += np.float32(0.25)
    after["norm.num_batches_tracked"] += 7

    step = taken(text, before, after, {})

    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        np.testing.assert_array_equal(step.weights[name], after[name])


@pytest.mark.parametrize("text", ["int8", "top-k:share=0.2", "turns:count=3"])
def test_what_a_step_leaves_out_comes_with_later_ones(text: str) -> None:
    """A model that stays where it is, is reached: the state carries what is missing."""
    before, after = model(1), model(2)
    standing = before
    state: dict[str, Any] = {}
    for number in range(1, 30):
        draw = steps.drawn(3, number)
        step = steps.take(Compression.parse(text), draw, standing, after if number == 1 else standing, state)
        standing, state = step.weights, step.left

    assert update_norm(difference(standing, after)) < 0.02 * update_norm(difference(before, after))
    assert steps.without({"first:conv": after["scalar"], **state}) == {"first:conv": after["scalar"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("norm.running_mean"),
        lambda arrays: arrays.pop("conv.bias"),
        lambda arrays: arrays.update(more=np.zeros(3, np.float32)),
        lambda arrays: arrays.update({"norm.running_mean": np.zeros(8, np.float32)}),
        lambda arrays: arrays.update({"norm.running_mean": np.zeros(7, np.float64)}),
        lambda arrays: arrays.update({"norm.running_mean": np.full(7, math.nan, np.float32)}),
        lambda arrays: arrays.update({"norm.num_batches_tracked": np.array(2**63 - 1)}),
        lambda arrays: arrays.update({"conv.bias;scale": np.array([math.inf], np.float32)}),
    ],
)
def test_what_is_no_step_is_refused(change: Any) -> None:
    before = model(1)
    arrays = dict(taken("int8", before, model(2), {}).arrays)
    change(arrays)

    with pytest.raises(UpdateError):
        steps.follow(Compression("int8"), DRAW, before, arrays)


def test_a_plan_says_it_in_a_field_and_a_command_in_a_word() -> None:
    both = Compression.parse("top-k:share=0.1,both_ways")

    assert both == Compression("top-k", {"share": 0.1}, both_ways=True)
    assert Compression.from_json(both.to_json()) == both
    assert "both_ways" not in Compression.parse("top-k:share=0.1").to_json()
    for value in (False, 1, "yes"):
        with pytest.raises(CompressionError, match="both_ways"):
            Compression.from_json({"name": "int8", "parameters": {}, "both_ways": value})
    with pytest.raises(CompressionError, match="can read"):
        both.check_fits(readable=False)


def test_a_simulation_counts_steps_from_the_second_round_on() -> None:
    task = small_task()
    sites = {name: drawn_dataset(seed, task) for seed, name in enumerate(("east", "west"))}

    plain, both = (
        simulate(task, sites, rounds=3, compression=Compression.parse(text))
        for text in ("int8", "int8:both_ways")
    )

    whole, step = (both.rounds[number].sites["east"].model_bytes for number in (0, 1))
    assert step < 0.7 * whole  # a small model's file is half names
    assert bytes_by_site(both.rounds)["west"]["received"] == whole + 2 * step
    assert bytes_by_site(plain.rounds)["west"]["received"] == 3 * whole
    assert bytes_by_site(plain.rounds)["west"]["sent"] == bytes_by_site(both.rounds)["west"]["sent"]
