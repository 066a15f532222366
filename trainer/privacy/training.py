"""The mechanisms at work: training whose every step is private, and noise on a whole update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer import steppers, strategies
from trainer.datasets import Samples
from trainer.errors import DatasetError, UpdateError
from trainer.networks import memory_of, with_weights
from trainer.objectives import objective_of
from trainer.optimisation import augment_both, seed_of
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.objectives import Objective
    from trainer.privacy.noise import Noise
    from trainer.privacy.promise import Promise
    from trainer.site_rules import Round
    from trainer.weights_io import Array, Weights


def private_update(this: Round, promise: Promise, noise: Noise, proximal_mu: float) -> tuple[Weights, float]:
    """Train by DP-SGD from the round's global model; return the difference and the mean loss.

    A subject is in a step by chance ``sampling_rate``, with one of its cases drawn at random, whose gradient
    is clipped: so a step depends on all of a subject by ``clip_norm`` at most, however many cases there are.
    The noisy sum is divided by the task's ``batch_size``, a number that tells nothing of this site. Classes
    are not weighted, since their counts are this site's too.

    Raises
    ------
    DatasetError
        If the samples do not say whose they are.

    References
    ----------
    Abadi et al., Deep Learning with Differential Privacy, CCS 2016, algorithm 1.
    """
    subjects = _by_subject(this.samples)
    network = with_weights(this.task, this.weights)
    network.train()
    parameters = list(network.parameters())
    start = [parameter.detach().clone() for parameter in parameters] if proximal_mu else parameters
    spec = this.task.local
    stepper = steppers.make(network, spec)
    # Not the round's seed, which the coordinator knows: who is in a step must not show in others' changes.
    secret = int(noise.uniform(1)[0] * 2**53)
    generator = np.random.default_rng(secret)
    objective = objective_of(network, this.samples, weighted=False, seed=seed_of("objective", secret))
    losses: list[float] = []
    for step in range(1, spec.local_steps + 1):
        chosen = _chosen(subjects, promise.sampling_rate, noise)
        x, y = this.samples.x[chosen], this.samples.y[chosen]
        x, y = augment_both(x, y, spec, generator) if len(x) else (x, y)
        summed, loss = _clipped_sum(network, Samples(x, y), objective, promise.clip_norm)
        losses += loss
        _noisy_gradients(parameters, summed, promise, noise, spec.batch_size)
        for parameter, then in zip(parameters, start, strict=True):
            if proximal_mu and parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - then, alpha=proximal_mu)
        stepper.step()
        this.progress("train", step, spec.local_steps)
    mean = float(np.mean(losses)) if losses else 0.0
    return difference(memory_of(network), this.weights), mean


def noised_update(delta: Mapping[str, Array], promise: Promise, noise: Noise) -> Weights:
    """Clip a whole update to ``clip_norm`` and add noise to every floating-point number.

    Raises
    ------
    UpdateError
        If an array is of whole numbers: noise does not hide a counter.
    """
    for name, array in delta.items():
        if array.dtype.kind != "f":
            raise UpdateError("dtype", f"{name}: noise needs floating-point numbers")
    scale = promise.clip_norm * promise.noise_multiplier
    clipped = strategies.clip_update(delta, promise.clip_norm)
    return {
        name: np.asarray(array + scale * noise.normal(array.size).reshape(array.shape), dtype=array.dtype)
        for name, array in clipped.items()
    }


def _by_subject(samples: Samples) -> list[NDArray[np.int64]]:
    """Return the positions of each subject's cases."""
    if len(samples.pseudonyms) != len(samples):
        raise DatasetError("dp-sgd: the samples do not say whose they are; expected one subject for each")
    found: dict[str, list[int]] = {}
    for position, pseudonym in enumerate(samples.pseudonyms):
        found.setdefault(pseudonym, []).append(position)
    return [np.asarray(positions) for _, positions in sorted(found.items())]


def _chosen(subjects: Sequence[NDArray[np.int64]], rate: float, noise: Noise) -> NDArray[np.int64]:
    """Draw subjects by chance, and one case of each."""
    taken = np.flatnonzero(noise.uniform(len(subjects)) < rate)
    which = noise.uniform(len(taken))
    picked = [
        subjects[int(position)][int(share * len(subjects[int(position)]))]
        for position, share in zip(taken, which, strict=True)
    ]
    return np.asarray(picked, dtype=np.int64)


def _clipped_sum(
    network: torch.nn.Module, samples: Samples, objective: Objective, clip_norm: float
) -> tuple[list[torch.Tensor], list[float]]:
    """Return the sum of the clipped gradients of single cases, and their losses.

    One backward pass each: the networks' in-place activations leave no other way that PyTorch's hooks allow.
    """
    parameters = list(network.parameters())
    summed = [torch.zeros_like(parameter) for parameter in parameters]
    losses = []
    for position, one in enumerate(samples.x):
        given = torch.from_numpy(one).unsqueeze(0)
        loss = objective.of(network, given, samples.y[position : position + 1]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum())
        if not bool(torch.isfinite(norm)):
            continue  # a case that leaves the range of numbers adds nothing, which is within its bound
        factor = min(1.0, clip_norm / max(float(norm), 1e-12))
        for total, gradient in zip(summed, gradients, strict=True):
            total.add_(gradient, alpha=factor)
        losses.append(float(loss.detach()))
    return summed, losses


def _noisy_gradients(
    parameters: Sequence[torch.nn.Parameter],
    summed: Sequence[torch.Tensor],
    promise: Promise,
    noise: Noise,
    divisor: int,
) -> None:
    """Set the parameters' gradients to the noisy sums over the divisor."""
    scale = promise.clip_norm * promise.noise_multiplier
    for parameter, total in zip(parameters, summed, strict=True):
        added = torch.from_numpy(noise.normal(total.numel()).reshape(total.shape))
        parameter.grad = ((total.double() + scale * added) / divisor).to(parameter.dtype)
