"""A coordinator that does not follow the protocol: weights that make one case's gradient be its picture.

The weights fit the very network of the task, a residual network of four stages with group normalisation.
The first two stages only sort pixels into 16 channels of 7 by 7; what the third stage's first convolution
then multiplies, its gradient repeats. Each pair of its outputs, twins, sees the same and counts with opposite
signs: so group normalisation adds nothing of its own, and the logit is 0 whatever the picture shows. The
fourth stage lets each pair through at one place alone, and a gate lets through the few cases that score
highest by a chance projection: of a batch, often one.

References
----------
Fowl et al., Robbing the Fed, ICLR 2022; Boenisch et al., When the Curious Abandon Honesty, EuroS&P 2023
(trap weights); Wen et al., Fishing for User Data in Large-Batch Federated Learning, ICML 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.inversion import revealed
from trainer.networks import initial_weights, with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.task import TaskSpec

Array = NDArray[Any]
Weights = dict[str, Array]
FEATURES: Final = (8, 16, 32, 32)
SIZE: Final = 28
ROUNDS: Final = 16
ROWS: Final = "layer3.0.conv1.weight"  # whose gradient is the picture
_GATE: Final = "layer4.0.downsample.1"
_BIAS: Final = 3.0  # opens the activations that pixels pass; these are normalised
_OPEN: Final = 6.0  # opens all others: more than a group's normalised numbers reach


@dataclass(frozen=True)
class Strength:
    """How large the weights are: of the gate, of what opens it, of what passes it, and of the logit."""

    sharp: float
    judging: float
    fine: float
    passing: float
    logit: float


FAR: Final = Strength(sharp=3e3, judging=100.0, fine=3.0, passing=100.0, logit=1e3)
# Weaker, but no farther from an untrained model than a plan lets a round move one.
NEAR: Final = Strength(sharp=2.0, judging=1 / 3, fine=0.02, passing=1.0, logit=10 / 3)
_PLACES: Final = [divmod(k, 4) for k in range(16)]


def crafted_weights(task: TaskSpec, pictures: Array, seed: int, strength: Strength = FAR) -> list[Weights]:
    """Return the weights of each round: the first let no case through, each later one some more.

    Parameters
    ----------
    pictures : ndarray, shape (n, 1, 28, 28)
        The attacker's own, of another hospital; the last round lets half of these through.
    seed : int
        Of the projection that decides which cases come first.
    """
    weights = initial_weights(task, 0)
    if tuple(task.network.parameters["features"]) != FEATURES or task.size != (SIZE, SIZE):
        raise ValueError("these weights are crafted for features 8, 16, 32, 32 at 28 pixels")
    for name, array in weights.items():
        array[:] = 1.0 if array.ndim == 1 and name.endswith("weight") else 0.0
    _sorting(weights)
    _picking(weights, np.random.default_rng(seed), strength)
    scores = gate_scores(task, weights, pictures)
    middle, top = float(np.median(scores)), float(scores.max())
    thresholds = np.linspace(top + (top - middle) / 2, middle, ROUNDS)
    bias = np.ones_like(weights[f"{_GATE}.bias"])
    return [{**weights, f"{_GATE}.bias": bias * np.float32(-strength.sharp * one)} for one in thresholds]


def something_came(task: TaskSpec, weights: Mapping[str, Array], update: Mapping[str, Array]) -> bool:
    """Whether twins of every group differ by more than noise: then a case came through, whole."""
    gradient = np.asarray(revealed(task, weights, update)[ROWS], dtype=np.float64).reshape(4, -1, 16, 3, 3)
    signal, noise = gradient[:, ::2] - gradient[:, 1::2], gradient[:, ::2] + gradient[:, 1::2]
    energies = [(one**2).sum(axis=(1, 2, 3, 4)) for one in (signal, noise)]
    return bool((energies[0] > 2 * energies[1]).all())


def gate_scores(task: TaskSpec, weights: Mapping[str, Array], pictures: Array) -> NDArray[np.float64]:
    """Return by what the gate judges each picture; shape (n,)."""
    network = with_weights(task, weights).eval()
    found: list[torch.Tensor] = []
    module = network.get_submodule(_GATE)
    handle = module.register_forward_hook(lambda _, __, out: found.append(out[:, 0, 0, 0]))
    with torch.inference_mode():
        network(torch.from_numpy(pictures))
    handle.remove()
    bias, sharp = (float(weights[f"{_GATE}.{name}"][0]) for name in ("bias", "weight"))
    return np.asarray((found[0].double().numpy() - bias) / sharp)


def _sorting(weights: Weights) -> None:
    """Let the first two stages sort pixels: channel 4 s + g has every fourth row and column."""
    for channel in range(8):
        down, right = divmod(channel // 2, 2)
        weights["conv1.weight"][channel, 0, 2 + down, 2 + right] = 1
    weights["bn1.bias"][:] = _BIAS
    weights["layer1.0.bn2.weight"][:] = 0
    for channel in range(16):
        down, right = divmod(channel // 4, 2)
        weights["layer2.0.conv1.weight"][channel, 2 * (channel % 4), 1 + down, 1 + right] = 1
    _pass(weights, "layer2.0.conv2.weight", 1.0)
    weights["layer2.0.bn1.bias"][:] = weights["layer2.0.bn2.bias"][:] = _BIAS
    weights["layer2.0.downsample.1.weight"][:] = 0


def _picking(weights: Weights, generator: np.random.Generator, strength: Strength) -> None:
    """Let the later stages pick a place for each pair, and cases by a projection."""
    # At the border a kernel sees nothing beyond: so the gate's score is highest at the first place.
    kernel = np.zeros((16, 3, 3))
    seen = generator.normal(0, 1, (16, 2, 2))
    kernel[:, 1:, 1:] = seen - seen.mean()
    kernel[:, 0, 1] = kernel[:, 1, 0] = -1.0
    weights[ROWS][:] = 0.01 * kernel
    _pass(weights, "layer3.0.conv2.weight", strength.passing)
    weights["layer3.0.bn1.bias"][:] = weights["layer3.0.bn2.bias"][:] = _OPEN
    weights["layer3.0.downsample.1.weight"][:] = 0
    weights["layer4.0.bn1.bias"][:] = _OPEN
    for channel in range(32):
        down, right = _PLACES[channel // 2]
        weights["layer4.0.conv1.weight"][channel, channel, 1 + down % 2, 1 + right % 2] = strength.passing
        weights["layer4.0.conv2.weight"][channel, channel, 1 + down // 2, 1 + right // 2] = strength.passing
    weights["layer4.0.bn2.weight"][:] = strength.fine
    weights["layer4.0.bn2.bias"][:] = strength.fine * _OPEN
    weights["layer4.0.downsample.0.weight"][:] = strength.judging
    weights[f"{_GATE}.weight"][:] = strength.sharp
    weights["fc.weight"][0, ::2] = strength.logit
    weights["fc.weight"][0, 1::2] = -strength.logit


def _pass(weights: Weights, name: str, factor: float) -> None:
    every = np.arange(len(weights[name]))
    weights[name][every, every, 1, 1] = factor


@dataclass(frozen=True)
class Prior:
    """What the attacker expects of a picture: mean and covariance of another hospital's."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, pictures: Array) -> Prior:
        """Take it from pictures (n, 1, 28, 28), each brought to mean 0 and deviation 1."""
        flat = pictures.reshape(len(pictures), -1).astype(np.float64)
        flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
        return cls(flat.mean(0), np.cov(flat.T))


def read_out(
    task: TaskSpec, weights: Mapping[str, Array], update: Mapping[str, Array], prior: Prior
) -> NDArray[np.float32]:
    """Return the picture (1, 1, 28, 28) that stands in an update of crafted weights.

    What twins do not agree on is noise, and says how much of it there is. The picture is the likeliest one
    under that noise and the prior; numbers that are exactly 0 were not sent.
    """
    gradient = np.asarray(revealed(task, weights, update)[ROWS], dtype=np.float64)
    rows = (gradient[::2] - gradient[1::2]) / 2
    sent = (gradient[::2] != 0) | (gradient[1::2] != 0)
    noise = float(np.mean((gradient[::2] + gradient[1::2])[sent] ** 2)) / 4 if sent.any() else 0.0
    pixels = _pixels()
    seen = (pixels >= 0) & sent
    if not seen.any():
        return np.asarray(prior.mean.reshape(1, 1, SIZE, SIZE), dtype=np.float32)
    expected = prior.mean + _BIAS
    scale = _scales(rows, seen, pixels, expected)
    weight = np.zeros(SIZE * SIZE)
    total = np.zeros(SIZE * SIZE)
    precise = np.broadcast_to(scale[:, None, None, None] ** 2, rows.shape)
    np.add.at(weight, pixels[seen], precise[seen])
    np.add.at(total, pixels[seen], (rows * scale[:, None, None, None])[seen])
    known = weight > 0
    measured = total[known] / weight[known] - expected[known]
    spread = noise / weight[known] + 1e-6
    across = prior.covariance[:, known]
    gain = np.linalg.solve(across[known] + np.diag(spread), measured)
    return np.asarray((prior.mean + across @ gain).reshape(1, 1, SIZE, SIZE), dtype=np.float32)


def _pixels() -> NDArray[np.int64]:
    """Return which pixel each number of each pair's row repeats, shape (16, 16, 3, 3); -1 beyond the edge."""
    found = np.full((16, 16, 3, 3), -1)
    for pair, (row, column) in enumerate(_PLACES):
        for channel, i, j in np.ndindex(16, 3, 3):
            y, x = 2 * row - 1 + i, 2 * column - 1 + j
            if 0 <= y < 7 and 0 <= x < 7:
                inner, outer = divmod(channel // 4, 2), divmod(channel % 4, 2)
                at = (4 * y + 2 * inner[0] + outer[0]) * SIZE + 4 * x + 2 * inner[1] + outer[1]
                found[pair, channel, i, j] = at
    return found


def _scales(rows: Array, seen: Array, pixels: Array, expected: Array) -> NDArray[np.float64]:
    """Return by what each pair's row is multiplied: one factor for four pairs, which share a group."""
    scale = np.ones(16)
    guess = expected
    for _ in range(30):
        for group in range(4):
            part = slice(4 * group, 4 * group + 4)
            chosen = seen[part]
            wanted = guess[pixels[part]][chosen]
            scale[part] = (rows[part][chosen] * wanted).sum() / max((wanted**2).sum(), 1e-30)
        total, weight = np.zeros(len(expected)), np.zeros(len(expected))
        factor = np.broadcast_to(scale[:, None, None, None], rows.shape)
        np.add.at(total, pixels[seen], (rows * factor)[seen])
        np.add.at(weight, pixels[seen], (factor**2)[seen])
        guess = np.where(weight > 0, total / np.maximum(weight, 1e-30), expected)
        guess = guess * (expected.sum() / max(guess.sum(), 1e-30))
    return scale
