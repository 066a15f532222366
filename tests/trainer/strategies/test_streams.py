from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trainer import strategies
from trainer.errors import UpdateError
from trainer.federation.aggregation import Update, aggregate
from trainer.federation.plan import Bounds, Strategy
from trainer.strategies.streams import PIECE, EachArray, part, weighted_sum
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 512
MIB = 2**20


def model(seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """Draw a model of 1 MiB in one array that is cut into pieces, and a counter."""
    generator = np.random.default_rng(seed)
    return {
        "weight": generator.normal(0, scale, (SIDE, SIDE)).astype(np.float32),
        "count": np.array(seed, dtype=np.int64),
    }


def peak_mib(folder: Path, sites: int, strategy: str) -> float:
    reference = model(0)
    stored = [Stored.write(folder / f"{i}.safetensors", model(i, 0.01)) for i in range(1, sites + 1)]
    updates = [Update(f"site-{i}", one, 10) for i, one in enumerate(stored)]
    tracemalloc.start()
    aggregate(reference, {}, updates, Strategy(strategy, {}), sites, Bounds(1e6, 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / MIB


@pytest.mark.parametrize("strategy", ["fedavg", "median", "trimmed-mean", "krum", "multi-krum"])
def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path, strategy: str) -> None:
    few, many = peak_mib(tmp_path, 4, strategy), peak_mib(tmp_path, 24, strategy)
    assert many < few + 4  # 20 updates more are 20 MiB
    assert few < 8


def test_a_file_gives_parts_of_an_array_as_memory_does(tmp_path: Path) -> None:
    arrays = model(1)
    stored = Stored.write(tmp_path / "update.safetensors", arrays)
    for first, last in ((0, 5), (PIECE - 3, PIECE + 3), (SIDE**2 - 2, SIDE**2)):
        np.testing.assert_array_equal(
            part(stored, "weight", first, last), part(arrays, "weight", first, last)
        )


def test_a_sum_in_pieces_is_the_sum_bit_for_bit() -> None:
    models = [model(seed) for seed in range(3)]
    shares = [0.5, 0.3, 0.2]
    whole = np.zeros((SIDE, SIDE))
    for one, share in zip(models, shares, strict=True):
        whole = whole + one["weight"].astype(np.float64) * share
    np.testing.assert_array_equal(weighted_sum(models, shares, "weight", 0, SIDE**2), whole.reshape(-1))
    first, last = PIECE - 3, SIDE**2 - 2
    found = weighted_sum(models, shares, "weight", first, last)
    np.testing.assert_array_equal(found, whole.reshape(-1)[first:last])


def test_an_array_is_made_when_it_is_asked_for() -> None:
    made: list[str] = []

    def make(name: str) -> NDArray[Any]:
        made.append(name)
        return np.zeros(1)

    arrays = EachArray(["a", "b"], make)
    assert (list(arrays), len(arrays), made) == (["a", "b"], 2, [])
    arrays["b"]
    assert made == ["b"]
    with pytest.raises(KeyError):
        arrays["c"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_step_of_the_norm_leads_out_of_range_what_is_said_to_be_roomy(dtype: Any) -> None:
    most = float(np.finfo(dtype).max)
    model = {
        "near": np.array([1.0, most * 0.98], dtype),
        "far": np.array([1.0, most * 0.5], dtype),
        "none": np.array([np.nan, 0.0], dtype),
        "piece": np.r_[np.zeros(PIECE), most].astype(dtype),
        "empty": np.zeros(0, dtype),
        "count": np.array([3]),
    }
    norm = most * 0.4
    roomy = strategies.roomy(model, norm)
    assert roomy == {"far", "empty"}
    for sign in (1, -1):
        step = {name: np.zeros(array.shape, array.dtype) for name, array in model.items()}
        step["far"][1] = sign * norm
        strategies.check_step({"far": model["far"]}, step)
    assert strategies.roomy(model, np.inf) == {"empty"}


def test_what_is_safe_is_not_looked_at() -> None:
    reference = {"a": np.full(2, np.finfo(np.float32).max), "b": np.full(2, np.finfo(np.float32).max)}
    reference = {name: array.astype(np.float32) for name, array in reference.items()}
    strategies.check_step(reference, reference, {"a", "b"})
    with pytest.raises(UpdateError, match=r"^b: .*not finite"):
        strategies.check_step(reference, reference, {"a"})


def test_a_step_out_of_range_is_refused_in_any_piece() -> None:
    most = np.finfo(np.float32).max
    reference = {"weight": np.full(2 * PIECE, most, dtype=np.float32)}
    delta = {"weight": np.zeros(2 * PIECE, dtype=np.float32)}
    strategies.check_step(reference, delta)
    delta["weight"][-1] = most
    with pytest.raises(UpdateError, match="not finite"):
        strategies.check_step(reference, delta)
