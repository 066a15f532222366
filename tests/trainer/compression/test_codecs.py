from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import compression, strategies
from trainer.compression import NAMES, Compression, CompressionError, Draw
from trainer.compression.spec import RESIDUAL_NORM, taken_over, with_residual
from trainer.errors import UpdateError
from trainer.weights_io import to_bytes

ALL = [
    *NAMES,
    "top-k:share=0.2",
    "turns:count=3",
    "turns:count=64",
    "top-k:share=1",
    "sketch:share=1,bits=8",
    "sketch:share=0.1,bits=1",
    "sketch:bits=3",
]


def at(seed: int) -> Draw:
    return Draw(seed, seed)


def model(seed: int = 0, size: int = 40) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "conv.weight": generator.normal(0, 0.1, (4, 3, size)).astype(np.float32),
        "conv.bias": generator.normal(0, 1.0, 1).astype(np.float32),
        "norm.running_mean": np.zeros(7, np.float32),
        "scalar": np.array(0.25, np.float32),
        "norm.num_batches_tracked": np.array(12, np.int64),
    }


@pytest.mark.parametrize("text", ALL)
def test_what_is_unpacked_is_what_the_site_says_it_is(text: str) -> None:
    chosen, update = Compression.parse(text), model()

    packed = chosen.pack(update, {}, 100.0, at(7))
    unpacked = chosen.unpack(packed.arrays, update, at(7))

    assert set(unpacked) == set(update)
    for name, array in unpacked.items():
        assert (array.shape, array.dtype) == (update[name].shape, update[name].dtype)
        np.testing.assert_array_equal(array, packed.update[name])
    np.testing.assert_array_equal(unpacked["norm.num_batches_tracked"], 12)
    template = chosen.template(update)
    assert {name: (one.shape, one.dtype) for name, one in packed.arrays.items()} == {
        name: (one.shape, one.dtype) for name, one in template.items()
    }
    strategies.check_update(update, unpacked, max_norm=100.0)


@pytest.mark.parametrize("text", ALL)
@given(seed=st.integers(0, 2**32 - 1), bound=st.floats(1e-3, 10.0), scale=st.floats(1e-6, 1e5))
@settings(max_examples=20, deadline=None)
def test_no_packed_update_is_larger_than_allowed(text: str, seed: int, bound: float, scale: float) -> None:
    chosen = Compression.parse(text)
    update = {
        name: array * np.float32(scale) for name, array in model(seed).items() if array.dtype.kind == "f"
    }
    update = strategies.clip_update(update, bound)

    packed = chosen.pack(update, {}, bound, at(seed))

    assert strategies.update_norm(packed.update) <= bound


@pytest.mark.parametrize(("text", "worst"), [("float16", 1e-3), ("int8", 0.02)])
def test_rounding_errors_are_small(text: str, worst: float) -> None:
    update = model()

    unpacked = Compression.parse(text).pack(update, {}, math.inf, at(0)).update

    for name, array in update.items():
        error = np.abs(unpacked[name] - array).max(initial=0.0)
        assert error <= worst * np.abs(array).max(initial=0.0) + 1e-7


@pytest.mark.parametrize("text", ["int8", "top-k", "top-k:share=0.3", "turns", "turns:count=7"])
def test_what_is_left_out_comes_later(text: str) -> None:
    """Error feedback: everything that was said, and the last residual, is everything that was meant."""
    chosen = Compression.parse(text)
    said = {name: np.zeros(a.shape) for name, a in model().items()}
    meant = {name: np.zeros(a.shape) for name, a in model().items()}
    residual: dict[str, Any] = {}
    for number in range(12):
        update = {name: a for name, a in model(number).items() if a.dtype.kind == "f"}
        packed = chosen.pack(update, residual, math.inf, at(number))
        residual = packed.residual
        for name, array in update.items():
            meant[name] += array
            said[name] += packed.update[name]

    for name, array in residual.items():
        np.testing.assert_allclose(said[name] + array, meant[name], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "part"), [("int8", 0.98), ("top-k", 0.2), ("top-k:share=0.3", 0.5), ("turns", 0.45)]
)
def test_what_the_bound_cuts_off_comes_later(text: str, part: float) -> None:
    """The largest norm limits what leaves at a time, not what leaves in the end.

    A share s that leaves for 1 / s rounds has 1 / sqrt(s) times the norm of one round, so with ``part`` of
    the bound below sqrt(s) all of it fits.
    """
    chosen, bound = Compression.parse(text), 1.0
    update = {name: a for name, a in model(1).items() if a.dtype.kind == "f"}
    update = strategies.clip_update(update, part * bound)
    said = {name: np.zeros(a.shape) for name, a in update.items()}
    residual: dict[str, Any] = {}
    rounds = 80
    for number in range(rounds):
        packed = chosen.pack(update, residual, bound, at(number))
        residual = packed.residual
        assert strategies.update_norm(packed.update) <= bound
        for name, array in packed.update.items():
            said[name] += array

    meant = {name: rounds * array.astype(np.float64) for name, array in update.items()}
    arrived = sum(float(np.vdot(said[name], meant[name])) for name in meant)
    assert arrived / strategies.update_norm(meant) ** 2 > 0.85
    left = {name: meant[name] - said[name] for name in meant}
    assert strategies.update_norm(left) == pytest.approx(strategies.update_norm(residual), abs=1e-3)


@pytest.mark.parametrize("text", ["int8", "top-k", "turns"])
@given(seed=st.integers(0, 2**32 - 1), bound=st.floats(1e-3, 10.0))
@settings(max_examples=20, deadline=None)
def test_what_waits_does_not_grow_for_ever(text: str, seed: int, bound: float) -> None:
    chosen = Compression.parse(text)
    kept = {name: 1e4 * a for name, a in model(seed).items() if a.dtype.kind == "f"}

    packed = chosen.pack(strategies.clip_update(model(seed), bound), kept, bound, at(0))

    assert strategies.update_norm(packed.residual) <= RESIDUAL_NORM * bound


def test_a_sketch_is_right_in_the_mean() -> None:
    chosen, update = Compression.parse("sketch:share=0.5,bits=2"), model()
    total = np.zeros(update["conv.weight"].shape)
    for seed in range(300):
        total += chosen.pack(update, {}, math.inf, at(seed)).update["conv.weight"]

    error = np.abs(total / 300 - update["conv.weight"])

    assert error.mean() < 0.25 * np.abs(update["conv.weight"]).mean()


@pytest.mark.parametrize(
    ("text", "times"), [("float16", 1.9), ("int8", 3.5), ("top-k", 12.0), ("sketch", 14.0), ("turns", 3.8)]
)
def test_fewer_bytes_leave(text: str, times: float) -> None:
    update = model(size=4000)

    packed = Compression.parse(text).pack(update, {}, math.inf, at(0))

    assert len(to_bytes(update)) / len(to_bytes(packed.arrays)) > times


@pytest.mark.parametrize("text", ALL)
def test_an_update_of_nothing_stays_nothing(text: str) -> None:
    nothing = {name: np.zeros_like(array) for name, array in model().items()}

    packed = Compression.parse(text).pack(nothing, {}, 1.0, at(3))

    assert strategies.update_norm(packed.update) == 0.0


@pytest.mark.parametrize("text", NAMES)
def test_the_same_seed_packs_the_same(text: str) -> None:
    chosen = Compression.parse(text)

    first, second = (to_bytes(chosen.pack(model(), {}, 10.0, at(5)).arrays) for _ in range(2))

    assert first == second


def hostile(text: str) -> dict[str, dict[str, Any]]:
    """Return packed updates that no site makes, by what is wrong."""
    arrays = Compression.parse(text).pack(model(), {}, 10.0, at(0)).arrays
    made: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        made[f"{name} missing"] = {other: one for other, one in arrays.items() if other != name}
        made[f"{name} longer"] = {**arrays, name: np.concatenate([array.ravel(), array.ravel()])}
        made[f"{name} of doubles"] = {**arrays, name: array.astype(np.complex64)}
        if array.dtype.kind == "f":
            for label, value in (("nan", np.nan), ("infinite", np.inf)):
                made[f"{name} {label}"] = {**arrays, name: np.full_like(array, value)}
        if name in {"conv.weight;scale", ";range"}:
            made[f"{name} huge"] = {**arrays, name: np.full_like(array, 3e38)}
    made["one more"] = {**arrays, "more": np.zeros(1, np.float32)}
    if ";index" in arrays:
        for label, index in (("out of range", 10**6), ("negative", -1)):
            wrong = arrays[";index"].copy()
            wrong[0 if index < 0 else -1] = index
            made[f"place {label}"] = {**arrays, ";index": wrong}
        made["places twice"] = {**arrays, ";index": np.zeros_like(arrays[";index"])}
    if ";range" in arrays:
        made["range turned"] = {**arrays, ";range": np.array([1.0, -1.0], np.float32)}
    return made


@pytest.mark.parametrize(("text", "what"), [(text, what) for text in NAMES for what in hostile(text)])
def test_what_no_site_packs_is_refused(text: str, what: str) -> None:
    with pytest.raises(UpdateError):
        Compression.parse(text).unpack(hostile(text)[what], model(), at(0))


@pytest.mark.parametrize(
    "text",
    [
        "zip",
        "",
        "int8:share=1",
        "turns:count=0",
        "turns:count=1.5",
        "top-k:share=0",
        "top-k:share=2",
        "sketch:bits=9",
        "sketch:bits=1.5",
        "top-k:share=x",
    ],
)
def test_a_compression_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CompressionError):
        Compression.parse(text)


@pytest.mark.parametrize("value", [None, [], {"name": "int8"}, {"name": 7, "parameters": {}}, "int8"])
def test_json_that_is_no_compression_is_refused(value: Any) -> None:
    with pytest.raises(CompressionError):
        Compression.from_json(value)


@pytest.mark.parametrize("text", ALL)
def test_json_reads_back_unchanged(text: str) -> None:
    chosen = Compression.parse(text)

    assert Compression.from_json(chosen.to_json()) == chosen


def test_a_model_whose_names_hold_the_mark_is_refused() -> None:
    with pytest.raises(CompressionError, match="names"):
        Compression("int8").template({"a;scale": np.zeros(1, np.float32)})


def test_an_update_that_did_not_count_takes_nothing_from_the_residual() -> None:
    before, after = {"a": np.ones(2)}, {"a": np.zeros(2)}
    own = with_residual({"mine": np.ones(1)}, after, before)

    for counted, expected in ((True, 0.0), (False, 1.0)):
        mine, residual = taken_over(own, counted=counted)
        assert set(mine) == {"mine"}
        np.testing.assert_array_equal(residual["a"], expected)


def test_names_are_the_programs() -> None:
    assert compression.NAMES == ("float16", "int8", "top-k", "sketch", "turns")
