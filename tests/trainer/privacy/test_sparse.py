from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.trainer.federation.plans import make_plan
from tests.trainer.samples import small_task
from trainer.errors import UpdateError
from trainer.federation.errors import PlanError
from trainer.federation.plan import Plan, Strategy
from trainer.privacy.accountant import epsilon
from trainer.privacy.noise import SecureNoise, SeededNoise
from trainer.privacy.promise import PrivacyError, Promise
from trainer.privacy.sparse import sparse_update

if TYPE_CHECKING:
    from numpy.typing import NDArray


def promise(**changes: Any) -> Promise:
    values: dict[str, Any] = {
        "mechanism": "svt",
        "clip_norm": 0.01,
        "noise_multiplier": 0.05,
        "epsilon": 1e3,
        "delta": 1e-5,
        "share": 0.1,
    }
    return Promise(**{**values, **changes})


def update(size: int = 400) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "weight": generator.normal(0, 0.01, (size, 2)).astype(np.float32),
        "bias": np.zeros(3, np.float32),
        "scale": np.array(0.5, np.float32),
    }


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_no_more_numbers_leave_than_the_share_allows_and_none_is_larger_than_the_bound(share: float) -> None:
    for seed in range(20):
        released = sparse_update(update(), promise(share=share), SeededNoise(seed))

        assert {name: (a.shape, a.dtype) for name, a in released.items()} == {
            name: (a.shape, a.dtype) for name, a in update().items()
        }
        vector = np.concatenate([a.ravel() for a in released.values()])
        assert np.count_nonzero(vector) <= np.ceil(share * vector.size)
        assert np.abs(vector).max() <= np.float32(0.01)


def test_with_hardly_any_noise_it_takes_what_is_above_half_the_bound() -> None:
    """Epsilon of ten million, which no plan may have: the arithmetic beneath the noise."""
    quiet = promise(share=1.0)
    object.__setattr__(quiet, "noise_multiplier", 1e-7)
    meant = np.clip(update()["weight"], -0.01, 0.01)

    released = sparse_update(update(), quiet, SeededNoise(1))["weight"]

    clear = np.abs(np.abs(meant) - 0.005) > 0.001
    assert ((released != 0) == (np.abs(meant) >= 0.005))[clear].all()
    taken = (released != 0) & clear
    np.testing.assert_allclose(released[taken], meant[taken], atol=2e-3)


DATA = [(0.01, 0.0), (0.0, 0.01), (0.01, 0.01), (0.0, 0.0), (-0.01, -0.01)]


def outcomes(data: tuple[float, float], share: float) -> NDArray[np.int64]:
    """Count what leaves of two numbers, by which one and how large, over many draws."""
    one, noise = promise(noise_multiplier=1.0, share=share), SeededNoise(3)
    array = {"a": np.array(data, np.float32)}
    drawn = np.array([sparse_update(array, one, noise)["a"] for _ in range(8_000)])
    bins = np.digitize(drawn, [-0.0099, -1e-9, 1e-9, 0.0099])
    return np.bincount(5 * bins[:, 0] + bins[:, 1], minlength=25)


@pytest.mark.parametrize("share", [0.5, 1.0], ids=["one may leave", "both may"])
def test_whatever_the_data_an_outcome_is_as_likely_within_epsilon(share: float) -> None:
    """A black-box look at choice and values: epsilon is 1, and no outcome is more than e times likelier."""
    counts = [outcomes(data, share) for data in DATA]
    worst = 0.0
    for first in counts:
        for second in counts:
            seen = (first > 200) | (second > 200)
            worst = max(worst, float(np.log((first[seen] + 1) / (second[seen] + 1)).max()))

    assert 0.1 < worst < 1.1


def test_noise_is_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (sparse_update(update(), promise(), SecureNoise()) for _ in range(2))

    assert any((first[name] != second[name]).any() for name in first)
    again = [sparse_update(update(), promise(), SeededNoise(5)) for _ in range(2)]
    assert all((again[0][name] == again[1][name]).all() for name in again[0])


def test_counters_are_refused() -> None:
    with pytest.raises(UpdateError, match="floating-point"):
        sparse_update({"count": np.array(3, np.int64)}, promise(), SeededNoise(0))


def test_a_round_costs_no_less_than_its_pure_epsilon_says() -> None:
    """Pure epsilon 1 is epsilon 1 at any delta; read through Renyi orders it must not come out below that."""
    cost = promise(noise_multiplier=1.0).round_cost(small_task())

    assert epsilon([cost], 1e-5) > 1.0


@pytest.mark.parametrize(
    "changes",
    [{"share": 0.0}, {"share": 1.5}, {"sampling_rate": 0.5}, {"mechanism": "dp-sgd"}],
    ids=["nothing", "more than all", "sampling", "share of another"],
)
def test_a_promise_out_of_range_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        promise(**changes)


def test_json_reads_back_unchanged() -> None:
    assert Promise.from_json(promise().to_json()) == promise()
    with pytest.raises(PrivacyError, match="share"):
        Promise.from_json({name: value for name, value in promise().to_json().items() if name != "share"})


def test_the_strategy_is_nothing_without_its_mechanism() -> None:
    named = Strategy("svt", {})
    with pytest.raises(PlanError, match="mechanism svt"):
        make_plan(strategy=named)
    with pytest.raises(PlanError, match="mechanism svt"):
        make_plan(strategy=named, privacy=Promise("update-gaussian", 1.0, 5.0, 1e3, 1e-5))
    plan = make_plan(strategy=named, privacy=promise(noise_multiplier=1.0))

    assert Plan.loads(plan.dumps()) == plan
