"""Training steps on one process: sampling, augmentation, loss, proximal term. Deterministic by seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from trainer import steppers
from trainer.anomaly.network import Strayed
from trainer.objectives import batch_size_of, objective_of
from trainer.ports import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.datasets import Samples
    from trainer.ports import Progress
    from trainer.steppers import Stepper
    from trainer.task import LocalSpec

_MAX_GRADIENT_NORM: Final = 5.0
_EVALUATION_BATCH: Final = 64


@dataclass(frozen=True)
class Budget:
    """How long to train: ``steps`` of ``batch_size`` cases."""

    steps: int
    batch_size: int


def seed_of(*parts: object) -> int:
    """Return a seed that depends on every part and on nothing else."""
    text = "\n".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


def train(  # noqa: PLR0913 - all that the same weights depend on
    network: torch.nn.Module,
    samples: Samples,
    spec: LocalSpec,
    budget: Budget,
    *,
    seed: int,
    proximal_mu: float,
    progress: Progress,
    centre: Sequence[torch.Tensor] | None = None,
    make_stepper: Callable[[torch.nn.Module, LocalSpec], Stepper] = steppers.make,
) -> float:
    """Train a network in place and return the mean loss over the last tenth of the steps.

    Parameters
    ----------
    network : Module
        Gives logits (n, 1), or (n, classes, *size) where the samples have masks; or is a split autoencoder.
    samples : Samples
        At least one case.
    spec : LocalSpec
        Optimizer and augmentation.
    budget : Budget
        Steps and batch size.
    seed : int
        Decides order and augmentation.
    proximal_mu : float
        Weight of half the squared distance to the centre; 0 switches it off.
    progress : Progress
        Called with stage ``train`` after each step.
    centre : sequence of Tensor, optional
        Of the proximal term, in the order of the network's parameters; the starting weights by default.
    make_stepper : callable
        Makes the optimizer.
    """
    network.train()
    start = _centre(network, centre) if proximal_mu else ()
    stepper = make_stepper(network, spec)
    objective = objective_of(network, samples, seed=seed_of("objective", seed))
    generator = np.random.default_rng(seed)
    losses: list[float] = []
    for step, indices in enumerate(_order(len(samples), budget, generator), start=1):
        x, y = augment_both(samples.x[indices], samples.y[indices], spec, generator)
        loss = objective.of(network, torch.from_numpy(x), y).mean()
        (loss + _proximal(network, start, proximal_mu)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
        stepper.step()
        losses.append(float(loss.detach()))
        progress("train", step, budget.steps)
    return float(np.mean(losses[-max(1, budget.steps // 10) :]))


def probabilities(
    network: torch.nn.Module, x: NDArray[np.float32], progress: Progress = silent
) -> NDArray[np.float64]:
    """Return the probability of the finding for each input, shape (n,); progress has stage ``evaluate``."""
    network.eval()
    parts = [np.empty(0, dtype=np.float64)]
    with torch.inference_mode():
        for first in range(0, len(x), _EVALUATION_BATCH):
            logits = network(torch.from_numpy(np.ascontiguousarray(x[first : first + _EVALUATION_BATCH])))
            parts.append(torch.sigmoid(logits).double().numpy().reshape(-1))
            progress("evaluate", min(first + _EVALUATION_BATCH, len(x)), len(x))
    return np.concatenate(parts)


def segmented(
    network: torch.nn.Module, x: NDArray[np.float32], progress: Progress = silent
) -> NDArray[np.uint8]:
    """Return the likeliest class of each voxel, shape (n, *size); progress has stage ``evaluate``."""
    network.eval()
    found = np.empty((len(x), *x.shape[2:]), dtype=np.uint8)
    size = batch_size_of(x, _EVALUATION_BATCH)
    with torch.inference_mode():
        for first in range(0, len(x), size):
            logits = network(torch.from_numpy(np.ascontiguousarray(x[first : first + size])))
            found[first : first + size] = logits.argmax(dim=1).numpy()
            progress("evaluate", min(first + size, len(x)), len(x))
    return found


def residuals(
    network: torch.nn.Module, x: NDArray[np.float32], progress: Progress = silent
) -> NDArray[np.float32]:
    """Return how far each pixel is from what a split autoencoder makes of it, shape (n, *size), 0 or more.

    progress has stage ``evaluate``.
    """
    strayed = Strayed(network).eval()
    found = np.empty((len(x), *x.shape[2:]), dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(x), _EVALUATION_BATCH):
            given = torch.from_numpy(np.ascontiguousarray(x[first : first + _EVALUATION_BATCH]))
            found[first : first + _EVALUATION_BATCH] = strayed(given).squeeze(1).numpy()
            progress("evaluate", min(first + _EVALUATION_BATCH, len(x)), len(x))
    return found


def loss_and_gradient(
    network: torch.nn.Module, samples: Samples, progress: Progress = silent
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Return the mean loss over all samples, weighted as in training, and its gradient by parameter.

    The network is as it is used, not as it trains; nothing of it changes, and its gradients are cleared.
    """
    network.eval()
    objective, size = objective_of(network, samples), batch_size_of(samples.x, _EVALUATION_BATCH)
    total = 0.0
    for first in range(0, len(samples), size):
        x = torch.from_numpy(np.ascontiguousarray(samples.x[first : first + size]))
        summed = objective.of(network, x, samples.y[first : first + size]).sum()
        (summed / len(samples)).backward()  # type: ignore[no-untyped-call]
        total += float(summed.detach())
        progress("evaluate", min(first + size, len(samples)), len(samples))
    gradient = {
        name: np.array(parameter.grad.numpy())
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    network.zero_grad()
    return total / len(samples), gradient


def augment(x: NDArray[np.float32], spec: LocalSpec, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return shifted and rescaled copies; what a shift uncovers repeats the edge."""
    return augment_both(x, np.zeros(len(x), dtype=np.uint8), spec, generator)[0]


def augment_both(
    x: NDArray[np.float32], y: NDArray[np.uint8], spec: LocalSpec, generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return inputs as :func:`augment` does, and with them their labels, or masks shifted alike."""
    size = x.shape[2:]
    reach = round(spec.shift_fraction * max(size))
    result, marked = np.array(x, dtype=np.float32), np.array(y)
    if reach:
        starts = generator.integers(0, 2 * reach + 1, size=(len(x), len(size)))
        for position, start in enumerate(starts):
            result[position, 0] = _shifted(x[position, 0], start, reach)
            if y.ndim > 1:
                marked[position] = _shifted(y[position], start, reach)
    if spec.gain_fraction:
        gain = generator.uniform(1 - spec.gain_fraction, 1 + spec.gain_fraction, size=len(x))
        result *= gain.astype(np.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return result, marked


def _shifted(array: NDArray[Any], start: NDArray[np.int64], reach: int) -> NDArray[Any]:
    padded = np.pad(array, reach, mode="edge")
    window = tuple(
        slice(first, first + extent) for first, extent in zip(start.tolist(), array.shape, strict=True)
    )
    return padded[window]


def _order(count: int, budget: Budget, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield index batches; every case comes once before any comes again."""
    waiting = np.empty(0, dtype=np.int64)
    size = min(budget.batch_size, count)
    for _ in range(budget.steps):
        if waiting.size < size:
            waiting = np.concatenate([waiting, generator.permutation(count)])
        yield waiting[:size]
        waiting = waiting[size:]


def _centre(network: torch.nn.Module, given: Sequence[torch.Tensor] | None) -> Sequence[torch.Tensor]:
    return given or [parameter.detach().clone() for parameter in network.parameters()]


def _proximal(network: torch.nn.Module, start: Sequence[torch.Tensor], mu: float) -> torch.Tensor:
    if mu == 0:
        return torch.zeros(())
    squares = [((now - then) ** 2).sum() for now, then in zip(network.parameters(), start, strict=True)]
    return mu / 2 * torch.stack(squares).sum()
