from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainer.healthy import LESION, drawn_healthy, healthy_task
from trainer.anomaly.network import SplitAutoencoder, gamma_shifted
from trainer.anomaly.spec import AnomalySpec
from trainer.networks import initial_weights, with_weights
from trainer.optimisation import residuals

TASK = healthy_task()
X = torch.from_numpy(drawn_healthy(0, 4, TASK).x)


def network(**changes: float) -> SplitAutoencoder:
    spec = AnomalySpec(LESION, **changes)
    made = with_weights(replace(TASK, anomaly=spec), initial_weights(TASK))
    assert isinstance(made, SplitAutoencoder)
    return made.eval()


def losses(x: torch.Tensor, seed: int = 0, **changes: float) -> torch.Tensor:
    with torch.inference_mode():
        return network(**changes).losses(x, np.random.default_rng(seed))


@pytest.mark.parametrize("gamma", [0.4, 1.0, 2.5])
def test_a_shift_keeps_the_ends_and_the_order_of_grey_values(gamma: float) -> None:
    shifted = gamma_shifted(X, torch.full((len(X),), gamma))
    for before, after in zip(X, shifted, strict=True):
        assert float(after.min()) == pytest.approx(float(before.min()), abs=1e-5)
        assert float(after.max()) == pytest.approx(float(before.max()), abs=1e-5)
        in_order = after.flatten()[before.flatten().argsort()]
        assert bool((in_order.diff() >= -1e-6).all())
    assert torch.allclose(shifted, X, atol=1e-5) == (gamma == 1.0)


def test_a_picture_of_one_grey_value_stays() -> None:
    flat = torch.full((1, 1, 4, 4), 3.0)
    assert torch.equal(gamma_shifted(flat, torch.tensor([2.0])), flat)


def test_without_its_other_terms_the_loss_is_the_mean_residual() -> None:
    made = network()
    expected = residuals(made, X.numpy()).reshape(len(X), -1).mean(axis=1)
    found = losses(X, shape_weight=0, orthogonality_weight=0)
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_each_term_adds_what_it_says() -> None:
    bare = losses(X, shape_weight=0, orthogonality_weight=0)
    made = network()
    with torch.inference_mode():
        shape, appearance = made.shape(X).flatten(1), made.appearance(X).flatten(1)
    cosine = (shape * appearance).sum(1) / shape.norm(dim=1) / appearance.norm(dim=1)
    assert torch.allclose(
        losses(X, shape_weight=0, orthogonality_weight=2) - bare, 2 * cosine.abs(), atol=1e-5
    )
    near, far = (
        losses(X, shape_weight=1, orthogonality_weight=0, largest_gamma=reach) - bare for reach in (1.01, 8.0)
    )
    assert bool((far > near + 1e-4).all())


def test_losses_of_cases_do_not_depend_on_their_neighbours() -> None:
    generator = np.random.default_rng(5)
    with torch.inference_mode():
        single = [network().losses(X[i : i + 1], generator) for i in range(len(X))]
    assert torch.allclose(losses(X, seed=5), torch.cat(single), atol=1e-6)
