from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from safetensors import numpy as safetensors_numpy

from trainer.errors import WeightsError
from trainer.weights_io import Stored, difference, from_bytes, load, save, sha256, to_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def weights() -> dict[str, NDArray[Any]]:
    return {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "a.counter": np.array(7, dtype=np.int64),
        "half": np.array([1.5, -2.0], dtype=np.float16),
        "empty": np.zeros((0, 3), dtype=np.float32),
    }


def test_what_was_saved_is_loaded_with_shape_and_dtype(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    digest = save(path, weights())
    loaded = load(path)
    assert loaded.keys() == weights().keys()
    for name, array in weights().items():
        assert (loaded[name].shape, loaded[name].dtype) == (array.shape, array.dtype)
        assert np.array_equal(loaded[name], array)
    assert digest == sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_equal_weights_give_equal_bytes_in_any_order() -> None:
    backwards = dict(reversed(list(weights().items())))
    assert to_bytes(weights()) == to_bytes(backwards)


DTYPES = ["<u8", "<i8", "<f8", "<c8", "<f4", "<u4", "<i4", "<f2", "<u2", "<i2", "i1", "u1", "?"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: numpy_strategies.arrays(
        dtype, numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=3)
    )
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), ARRAYS, max_size=6))
def test_what_is_written_is_what_the_library_writes(arrays: dict[str, NDArray[Any]]) -> None:
    plain = {name: np.array(array, order="C") for name, array in arrays.items()}
    content = safetensors_numpy.save(plain)
    assert to_bytes(arrays) == content
    assert {name: array.tobytes() for name, array in from_bytes(content).items()} == {
        name: array.tobytes() for name, array in plain.items()
    }


@given(st.binary(max_size=200))
def test_bytes_that_are_no_weights_are_refused(content: bytes) -> None:
    with pytest.raises(WeightsError):
        from_bytes(content)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_arrays(position: int, value: int) -> None:
    content = bytearray(to_bytes(weights()))
    content[position % len(content)] = value
    try:
        found = from_bytes(bytes(content))
    except WeightsError:
        return
    library = safetensors_numpy.load(bytes(content))  # what it refuses, we must not read
    assert found.keys() == library.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (library[name].dtype, library[name].shape)
        assert array.tobytes() == library[name].tobytes()


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, weights())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        load(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, weights())
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="no weights file can hold this"):
        save(path, {"x": np.array([object()])})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_difference_keeps_dtypes_and_0_d_shapes() -> None:
    after = {name: array + array.dtype.type(1) for name, array in weights().items()}
    delta = difference(after, weights())
    for name, array in weights().items():
        assert (delta[name].dtype, delta[name].shape) == (array.dtype, array.shape)
        assert np.all(delta[name] == 1)


def test_stored_weights_are_those_that_were_written(tmp_path: Path) -> None:
    stored = Stored.write(tmp_path / "update.safetensors", weights())
    assert set(stored) == set(weights())
    assert len(stored) == len(weights())
    for name, array in weights().items():
        assert (stored[name].shape, stored[name].dtype) == (array.shape, array.dtype)
        assert np.array_equal(stored[name], array)
    assert to_bytes(stored) == to_bytes(weights())
    with pytest.raises(KeyError):
        stored["unknown"]


def test_stored_weights_that_are_gone_or_broken_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"
    stored = Stored.write(path, weights())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match="half cannot be read"):
        stored["half"]
    with pytest.raises(WeightsError, match="expected safetensors"):
        Stored(path)
    path.unlink()
    with pytest.raises(WeightsError, match="expected safetensors"):
        Stored(path)
