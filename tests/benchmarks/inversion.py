"""What the pictures were that an update came from, for one who saw the update and kept to the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from monai.metrics import SSIMMetric
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from trainer.networks import with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.datasets import Samples
    from trainer.task import TaskSpec

Array = NDArray[Any]
ITERATIONS: Final = 400
SMOOTHING: Final = (10.0, 1.0, 0.1)
_TOTAL_VARIATION: Final = 1e-2
_CHUNK: Final = 64


def revealed(
    task: TaskSpec, weights: Mapping[str, Array], update: Mapping[str, Array]
) -> dict[str, NDArray[np.float32]]:
    """Return the gradient that one plain step's update shows: the attacker knows the task's numbers.

    It is the gradient itself, unless the step clipped it, and then a multiple.
    """
    spec = task.local
    return {
        name: np.asarray(-array / spec.learning_rate - spec.weight_decay * weights[name], dtype=np.float32)
        for name, array in update.items()
    }


class Learnt:
    """An attacker who computes the gradients of pictures that are not secret, and learns the way back.

    The way back is linear, with as much smoothing as does best on updates that went through the very
    protection: an attacker knows the plan.

    References
    ----------
    Wu et al., Learning to Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning, UAI
    2023; here by ridge regression, since labels are known and so the gradient's sign is.
    """

    def __init__(self, task: TaskSpec, weights: Mapping[str, Array], pictures: Array) -> None:
        self._task, self._weights = task, weights
        self._shape = pictures.shape[1:]
        self._gradients = directions(task, weights, pictures)
        self._centre = self._gradients.mean(0)
        self._gradients -= self._centre
        flat = _normalised(pictures)
        self._mean = flat.mean(0)
        self._gram = (self._gradients @ self._gradients.T).double()
        self._targets = (flat - self._mean).double()
        self._solved: dict[float, torch.Tensor] = {}

    @property
    def mean(self) -> NDArray[np.float32]:
        """What a guess is that saw no update: the mean picture, shape (1, 1, rows, columns)."""
        return np.asarray(self._mean.reshape(1, *self._shape).numpy())

    def guesses(
        self, update: Mapping[str, Array], smoothing: float, labels: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return pictures, one for each sign that the labels allow: shape (1 or 2, 1, rows, columns)."""
        found = revealed(self._task, self._weights, update)
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in found.values()]))
        flat = flat / flat.norm().clamp_min(1e-12)
        signs = sorted({1.0 if label == 0 else -1.0 for label in labels})
        return np.concatenate([self._decoded(sign * flat, smoothing) for sign in signs])

    def smoothing_for(self, updates: Sequence[Mapping[str, Array]], truths: Samples) -> float:
        """Return the smoothing that does best on updates of one case each whose pictures are known."""

        def error(smoothing: float) -> float:
            pairs = zip(updates, truths.x, truths.y, strict=True)
            missed = [
                np.mean((self.guesses(update, smoothing, [int(y)])[0] - _standard(x)) ** 2)
                for update, x, y in pairs
            ]
            return float(np.mean(missed))

        return min(SMOOTHING, key=error)

    def _decoded(self, direction: torch.Tensor, smoothing: float) -> NDArray[np.float32]:
        if smoothing not in self._solved:
            ridge = smoothing * 0.1 * self._gram.diagonal().mean()
            factor = torch.linalg.cholesky(self._gram + ridge * torch.eye(len(self._gram)))
            self._solved[smoothing] = torch.cholesky_solve(self._targets, factor).float()
        near = self._gradients @ (direction - self._centre)
        return np.asarray((near @ self._solved[smoothing] + self._mean).reshape(1, *self._shape).numpy())


def varied(pictures: Array, seed: int) -> NDArray[np.float32]:
    """Return the pictures and, of each, one that is mirrored or not, shifted and stretched."""
    generator = np.random.default_rng(seed)
    others = np.empty_like(pictures)
    for other, picture in zip(others, pictures, strict=True):
        rows, columns = (
            (np.arange(n) - n / 2) * generator.uniform(0.75, 1.1) + n / 2 + generator.uniform(-0.1, 0.1) * n
            for n in picture.shape[1:]
        )
        y, x = (
            np.clip(np.rint(at), 0, n - 1).astype(int)
            for at, n in zip((rows, columns), picture.shape[1:], strict=True)
        )
        other[:] = picture[:, y][:, :, x if generator.random() < 0.5 else x[::-1]]
    return np.concatenate([pictures, others])


def directions(task: TaskSpec, weights: Mapping[str, Array], pictures: Array) -> torch.Tensor:
    """Return the direction of the logit's gradient at each picture, shape (n, parameters)."""
    network = with_weights(task, weights).train()
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def logit(values: dict[str, torch.Tensor], picture: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional_call(network, values, (picture.unsqueeze(0),))
        return made.squeeze()

    each = vmap(grad(logit), in_dims=(None, 0))
    found = torch.empty(len(pictures), sum(parameter.numel() for parameter in parameters.values()))
    for first in range(0, len(pictures), _CHUNK):
        made = each(parameters, torch.from_numpy(pictures[first : first + _CHUNK]))
        found[first : first + _CHUNK] = torch.cat([one.flatten(1) for one in made.values()], 1)
    return found.div_(found.norm(dim=1, keepdim=True).clamp_min(1e-12))


def _normalised(pictures: Array) -> torch.Tensor:
    return torch.from_numpy(np.stack([_standard(one).ravel() for one in pictures]))


def _standard(picture: Array) -> NDArray[np.float32]:
    """Return a picture of mean 0 and deviation 1: group normalisation leaves no trace of either."""
    return np.asarray((picture - picture.mean()) / (picture.std() or 1.0), dtype=np.float32)


def matched(
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
