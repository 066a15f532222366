from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.compression.test_codecs import ALL, model
from tests.trainer.samples import drawn_dataset, small_task
from trainer.compression import Compression, CompressionError, steps
from trainer.errors import UpdateError
from trainer.simulation import bytes_by_site, simulate
from trainer.strategies.base import apply_step, update_norm
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


@pytest.mark.parametrize("text", ALL)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(["even", "one", "half", "normal", "none"]))
@settings(max_examples=15, deadline=None)
def test_no_packed_steps_move_a_model_farther_than_their_bound(text: str, seed: int, shape: str) -> None:
    """Seen from each round's model, for steps that lose much: as large everywhere, or half a step of one."""
    packing, draw = Compression.parse(text), np.random.default_rng(seed)
    models, norms, state = [model(seed)], list[float](), dict[str, Any]()
    for number in range(1, 8):
        before = models[-1]
        moved = {name: np.asarray(step_of(shape, array, draw)) for name, array in before.items()}
        after = apply_step(before, moved)
        norms.append(update_norm(difference(after, before)))
        step = steps.take(packing, steps.drawn(3, number), before, after, state)
        models.append(step.weights)
        state = step.left
        left = packing._codec.left(norms, steps.sizes_of(before))[-1]
        assert update_norm(step.left) <= left * 1.0001 + 1e-6
    for since, known in enumerate(models[:-1]):
        most = packing.most_moved(steps.sizes_of(known), norms, since)
        assert update_norm(difference(models[-1], known)) <= most * 1.0001 + 1e-5


def step_of(shape: str, array: Any, draw: np.random.Generator) -> Any:
    """Draw a step of one array; a variance is moved upwards."""
    scale = 10.0 ** draw.uniform(-6, 2)
    made = {
        "even": np.full(array.shape, scale),
        "one": np.where(draw.random(array.shape) < 0.05, scale, 0.0),
        "half": np.where(draw.random(array.shape) < 0.01, scale, 0.51 * scale / 127),
        "normal": draw.normal(0, scale, array.shape),
        "none": np.zeros(array.shape),
    }[shape]
    return np.rint(made) if array.dtype.kind == "i" else made


@pytest.mark.parametrize(
    ("text", "once", "often"),
    [
        ("float16", 1.01, 10.01),
        ("int8", 1.5, 11.0),
        ("turns:count=4", 1.0, 13.0),
        ("top-k", 1.01, 20.0),
        ("sketch:share=1,bits=8", 2.0, 17.0),
    ],
)
def test_a_model_of_ten_thousand_numbers_is_held_near(text: str, once: float, often: float) -> None:
    """In units of what a round moves it by, from the first model on."""
    packing, sizes = Compression.parse(text), [100] * 100

    assert packing.most_moved(sizes, [1.0], 0) <= once
    assert packing.most_moved(sizes, [1.0] * 10, 0) <= often


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
