from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from trainer.errors import StrategyError, UpdateError
from trainer.strategies import Contribution, get
from trainer.weights_io import from_bytes, to_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

START = np.array([1.0, -2.0, 0.5], dtype=np.float64)
STEPS = [np.array(step) for step in ([0.1, -0.2, 0.0], [0.3, 0.1, -0.1], [-0.2, 0.4, 0.05])]


def follow(name: str, parameters: dict[str, Any], *, restart: bool = False) -> NDArray[Any]:
    """Run three rounds of one site; with ``restart`` the state goes through a file in between."""
    weights: dict[str, Any] = {"w": START}
    state: dict[str, Any] = {}
    for step in STEPS:
        weights, state = get(name).aggregate(weights, [Contribution("a", {"w": step}, 1)], state, parameters)
        if restart:
            weights, state = from_bytes(to_bytes(weights)), from_bytes(to_bytes(state))
    return np.asarray(weights["w"])


def test_fedavgm_is_gradient_descent_with_momentum_on_the_mean_update() -> None:
    w = torch.nn.Parameter(torch.from_numpy(START.copy()))
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.9)
    for step in STEPS:
        w.grad = -torch.from_numpy(step)
        optimizer.step()
    found = follow("fedavgm", {"server_learning_rate": 0.5})
    np.testing.assert_allclose(found, w.detach().numpy(), rtol=1e-12)


def test_fedadam_follows_the_papers_algorithm() -> None:
    m, v, w = np.zeros(3), np.full(3, 1e-6), START.copy()
    for step in STEPS:
        m = 0.9 * m + 0.1 * step
        v = 0.99 * v + 0.01 * step**2
        w = w + 0.01 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(follow("fedadam", {}), w, rtol=1e-12)


def test_fedyogi_follows_the_papers_algorithm() -> None:
    m, v, w = np.zeros(3), np.full(3, 0.0625), START.copy()
    for step in STEPS:
        m = 0.5 * m + 0.5 * step
        v = v - 0.05 * step**2 * np.sign(v - step**2)
        w = w + 0.1 * m / (np.sqrt(v) + 0.25)
    parameters = {"server_learning_rate": 0.1, "beta1": 0.5, "beta2": 0.95, "tau": 0.25}
    np.testing.assert_allclose(follow("fedyogi", parameters), w, rtol=1e-12)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_restart_between_rounds_changes_nothing(name: str) -> None:
    assert np.array_equal(follow(name, {}), follow(name, {}, restart=True))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    for state in ({"first:w": np.zeros(2)}, {"first:v": np.zeros(3)}, {"first:w": np.zeros(3, np.int64)}):
        with pytest.raises(StrategyError, match="state"):
            get(name).aggregate({"w": START}, [Contribution("a", {"w": STEPS[0]}, 1)], dict(state), {})


def test_a_moment_that_no_float_holds_is_refused() -> None:
    huge = {"w": np.array([1e30], dtype=np.float32)}
    with pytest.raises(UpdateError, match="state"):
        get("fedadam").aggregate({"w": np.zeros(1, np.float32)}, [Contribution("a", huge, 1)], {}, {})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fedavgm", {"beta2": 0.9}),
        ("fedavgm", {"tau": 0.1}),
        ("fedadam", {"beta1": 1.0}),
        ("fedadam", {"tau": 0.0}),
        ("fedyogi", {"beta2": -0.1}),
        ("fedyogi", {"server_learning_rate": "1"}),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(StrategyError):
        get(name).check_parameters(parameters)
