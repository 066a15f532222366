from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.trainer.peers.groups import Arrays, model, step
from trainer.errors import UpdateError
from trainer.peers.quantised import CODES, SCALES, pack, unpack
from trainer.weights_io import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@example(array=np.full((3, 5), 1e-45, np.float32), bits=4)
@given(array=hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)), bits=st.integers(4, 8))
def test_a_number_is_off_by_half_a_step_at_most(array: NDArray[np.float32], bits: int) -> None:
    reference = {"w": np.zeros((3, 5), dtype=np.float32)}
    found = unpack(pack({"w": array}, bits), reference, bits)["w"]
    levels = 2 ** (bits - 1) - 1
    least = np.finfo(np.float32).tiny  # a step below it is none that such a number can hold
    assert np.all(np.abs(found - array) <= np.abs(array).max() / levels * 0.501 + least)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


def test_counters_and_running_statistics_travel_as_they_are() -> None:
    difference = {**step(0.3), "bn.running_var": np.array([1e-7, 30.0], dtype=np.float32)}
    found = unpack(pack(difference, 4), model(), 4)
    assert np.array_equal(found["bn.running_var"], difference["bn.running_var"])
    assert np.array_equal(found["bn.num_batches_tracked"], difference["bn.num_batches_tracked"])
    for name, array in model().items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert list(found) == list(model())


def test_fewer_bits_are_fewer_bytes() -> None:
    large = {"w": np.linspace(-1, 1, 100_000, dtype=np.float32)}
    whole = len(to_bytes(large))
    assert len(to_bytes(pack(large, 8))) < whole / 3.9
    assert len(to_bytes(pack(large, 4))) < whole / 7.8


def test_where_nothing_changed_nothing_changes() -> None:
    found = unpack(pack(step(0), 8), model(), 8)
    assert all(not array.any() for array in found.values())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: {**m, SCALES: np.full_like(m[SCALES], np.nan)}, "not_finite"),
        (lambda m: {**m, SCALES: m[SCALES][:-1]}, "shape"),
        (lambda m: {**m, CODES: m[CODES][:-1]}, "shape"),
        (lambda m: {**m, CODES: m[CODES].astype(np.int16)}, "shape"),
        (lambda m: {name: array for name, array in m.items() if name != CODES}, "names"),
        (lambda m: {**m, "more": np.zeros(1, dtype=np.float32)}, "names"),
    ],
    ids=["nan", "scales", "codes", "type", "missing", "unknown"],
)
def test_what_no_site_packs_is_refused(change: Callable[[Arrays], Arrays], code: str) -> None:
    with pytest.raises(UpdateError) as caught:
        unpack(change(pack(step(0.3), 8)), model(), 8)
    assert caught.value.code == code
