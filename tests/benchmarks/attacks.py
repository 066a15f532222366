"""What an attacker gets out of models and updates: who was trained on, and what their picture was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from monai.metrics import SSIMMetric
from numpy.typing import NDArray
from torch.nn import functional

from trainer.networks import with_weights
from trainer.optimisation import probabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.datasets import Samples
    from trainer.task import TaskSpec

Array = NDArray[Any]
ITERATIONS: Final = 400
_TOTAL_VARIATION: Final = 1e-2
_LEAST_SPREAD: Final = 0.05


def confidence(task: TaskSpec, weights: Mapping[str, Array], samples: Samples) -> NDArray[np.float64]:
    """Return the logit of the true label's probability for each case."""
    p = probabilities(with_weights(task, weights), samples.x)
    p = np.clip(np.where(samples.y > 0, p, 1 - p), 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def likelihood_ratios(values: NDArray[np.float64], member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Score each case at each model by what the other models say, higher where it looks like a member.

    Parameters
    ----------
    values : ndarray, shape (models, cases)
        Of :func:`confidence`.
    member : ndarray of bool, shape (models, cases)
        Whether the case was trained on.

    References
    ----------
    Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022: the offline variant's
    Gaussian likelihood ratio with one spread for all cases, since there are few shadow models.
    """
    scores = np.zeros(values.shape)
    for target in range(len(values)):
        others = np.arange(len(values)) != target
        sides = [_side(values[others], chosen[others]) for chosen in (member, ~member)]
        (centre_in, spread_in, seen_in), (centre_out, spread_out, seen_out) = sides
        near_in = ((values[target] - centre_in) / spread_in) ** 2
        near_out = ((values[target] - centre_out) / spread_out) ** 2
        scores[target] = np.where(seen_in & seen_out, (near_out - near_in) / 2, 0.0)
    return scores


def _side(
    values: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float, NDArray[np.bool_]]:
    """Return each case's mean over the chosen models, one spread for all, and which cases have any."""
    count = chosen.sum(axis=0)
    centre = np.where(chosen, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    rest = np.where(chosen, (values - centre) ** 2, 0.0).sum() / max(int((count - 1).clip(0).sum()), 1)
    return centre, max(float(np.sqrt(rest)), _LEAST_SPREAD), count > 0


def area(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> float:
    """Return the chance that a member scores above a non-member: 0.5 tells nothing, 1 tells all."""
    ranks = np.empty(scores.size)
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, scores.size + 1)
    inside = int(member.sum())
    return float((ranks[member].sum() - inside * (inside + 1) / 2) / (inside * (scores.size - inside)))


def found_at(scores: NDArray[np.float64], member: NDArray[np.bool_], false_alarms: float) -> float:
    """Return the share of members found where that share of non-members is taken for members."""
    threshold = np.quantile(scores[~member], 1 - false_alarms, method="higher")
    return float((scores[member] > threshold).mean())


def inverted(
    task: TaskSpec, weights: Mapping[str, Array], update: Mapping[str, Array], labels: Array, seed: int
) -> NDArray[np.float32]:
    """Search pictures whose gradient points as the update does; the labels are given to the attacker.

    Parameters
    ----------
    update : Mapping
        Of one local step from ``weights``.
    labels : ndarray, shape (n,)
        Of the step's cases.

    Returns
    -------
    ndarray, shape (n, 1, rows, columns)

    References
    ----------
    Geiping et al., Inverting Gradients - How Easy Is It to Break Privacy in Federated Learning?, NeurIPS
    2020: cosine distance, total variation, signed Adam steps.
    """
    network = with_weights(task, weights)
    network.train()
    parameters = dict(network.named_parameters())
    wanted = {name: torch.from_numpy(-np.asarray(update[name], dtype=np.float32)) for name in parameters}
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), 1, task.preprocessing.rows, task.preprocessing.columns)
    x = torch.randn(shape, generator=generator).requires_grad_()
    y = torch.from_numpy(np.asarray(labels, dtype=np.float32)).unsqueeze(1)
    optimizer = torch.optim.Adam([x], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [ITERATIONS * 3 // 8, ITERATIONS * 5 // 8, ITERATIONS * 7 // 8], 0.1
    )
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(network(x), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        distance = _distance(dict(zip(parameters, gradients, strict=True)), wanted)
        (distance + _TOTAL_VARIATION * _variation(x)).backward()  # type: ignore[no-untyped-call]
        if x.grad is not None:
            x.grad.sign_()
        optimizer.step()
        schedule.step()
    return np.asarray(x.detach().numpy())


def likeness(guesses: Array, truths: Array) -> tuple[float, float]:
    """Return mean PSNR (dB) and SSIM of the guess that is nearest to each true picture.

    Guesses are given the truth's mean and contrast first, which an attacker cannot know.
    """
    peaks, structures = [], []
    for true in truths:
        scaled = [_scaled(one, true) for one in guesses]
        nearest = min(scaled, key=lambda one: float(np.mean((one - true) ** 2)))
        reach = float(true.max() - true.min())
        error = max(float(np.mean((nearest - true) ** 2)), 1e-12)
        peaks.append(10 * np.log10(reach**2 / error))
        metric = SSIMMetric(spatial_dims=2, data_range=reach, win_size=7)
        structures.append(float(metric(torch.from_numpy(nearest[None]), torch.from_numpy(true[None]))))
    return float(np.mean(peaks)), float(np.mean(structures))


def _scaled(guess: Array, truth: Array) -> Array:
    spread = float(guess.std()) or 1.0
    return np.asarray((guess - guess.mean()) / spread * truth.std() + truth.mean(), dtype=np.float32)


def _distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    dot = torch.stack([(found[name] * wanted[name]).sum() for name in wanted]).sum()
    mine = torch.stack([found[name].square().sum() for name in wanted]).sum().sqrt()
    theirs = torch.stack([wanted[name].square().sum() for name in wanted]).sum().sqrt()
    return 1 - dot / (mine * theirs + 1e-12)


def _variation(x: torch.Tensor) -> torch.Tensor:
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
