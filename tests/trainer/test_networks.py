from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.samples import small_task
from trainer.errors import TaskError, WeightsError
from trainer.local_round import predict
from trainer.networks import (
    NETWORKS,
    RECONSTRUCTING,
    SEGMENTING,
    build,
    initial_weights,
    weights_of,
    with_weights,
)
from trainer.task import NetworkSpec


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - SEGMENTING - RECONSTRUCTING - {"linear"}))
@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_a_network_gives_one_logit_and_normalises_by_group(name: str, size: tuple[int, int]) -> None:
    network = build(NetworkSpec(name))
    assert network(torch.zeros(3, 1, *size)).shape == (3, 1)
    modules = list(network.modules())
    assert any(isinstance(module, torch.nn.GroupNorm) for module in modules)
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in modules)
    assert sum(parameter.numel() for parameter in network.parameters()) < 200_000


def test_the_linear_network_is_logistic_regression_on_the_pixels_and_starts_at_even_odds() -> None:
    task = small_task(network=NetworkSpec("linear"))
    weights = initial_weights(task)
    assert {name: array.shape for name, array in weights.items()} == {"fc.weight": (1, 1024), "fc.bias": (1,)}
    assert not any(array.any() for array in weights.values())
    x = np.random.default_rng(1).normal(size=(3, 1, 32, 32)).astype(np.float32)
    weights["fc.weight"][0, 33] = 2.0
    weights["fc.bias"][0] = -1.0
    expected = 1 / (1 + np.exp(1.0 - 2.0 * x[:, 0, 1, 1]))
    np.testing.assert_allclose(predict(task, weights, x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("transformer"),
        NetworkSpec("linear", {"features": 8}),
        NetworkSpec("resnet", {"depth": 3}),
        NetworkSpec("resnet", {"features": [8, 16, 32]}),
        NetworkSpec("resnet", {"features": [8, 16, 32, 10**9]}),
        NetworkSpec("resnet", {"features": [8, 16, 32, 63]}),
        NetworkSpec("resnet", {"features": "8"}),
        NetworkSpec("resnet", {"groups": 0}),
        NetworkSpec("resnet", {"max_pool": 1}),
        NetworkSpec("densenet", {"blocks": []}),
        NetworkSpec("densenet", {"growth": 3}),
    ],
)
def test_a_wrong_network_is_refused(spec: NetworkSpec) -> None:
    with pytest.raises(TaskError, match="network"):
        build(spec)


def test_the_initial_model_depends_on_the_seed_alone_and_leaves_torch_s_own_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = initial_weights(small_task(seed=4))
    assert torch.equal(torch.rand(1), expected)
    two = initial_weights(small_task(seed=4))
    three = initial_weights(small_task(seed=5))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], three[name]) for name in one)
    assert all(
        np.array_equal(one[name], array) for name, array in initial_weights(small_task(), seed=4).items()
    )


def test_weights_go_in_and_come_out_unchanged() -> None:
    weights = initial_weights(small_task())
    out = weights_of(with_weights(small_task(), weights))
    assert all(np.array_equal(weights[name], out[name]) for name in weights)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights: dict[str, Any] = initial_weights(small_task())
    first = next(iter(weights))
    for wrong in (
        {name: array for name, array in weights.items() if name != first},
        {**weights, first: weights[first][:1]},
        {**weights, "more": weights[first]},
    ):
        with pytest.raises(WeightsError):
            with_weights(small_task(), wrong)
