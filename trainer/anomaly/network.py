"""The split autoencoder: one encoder for shape, one for appearance, and a decoder of both codes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.anomaly.spec import AnomalySpec

_SLOPE: Final = 0.1


class SplitAutoencoder(torch.nn.Module):
    """Maps pictures, float32 (n, 1, rows, columns), to what they would be if they were healthy.

    Both codes have the shape (n, code, rows / 2^k, columns / 2^k) for k ``features``. The appearance encoder
    normalises nothing: the mean and contrast of a picture are what it is there to see.

    References
    ----------
    Bercea, Wiestler, Rueckert and Albarqouni, Federated Disentangled Representation Learning for Unsupervised
    Brain Anomaly Detection, Nature Machine Intelligence 4 (2022): FedDis. There images have 128 x 128 pixels
    and the network is larger.
    """

    def __init__(self, features: Sequence[int], code: int, groups: int, spec: AnomalySpec) -> None:
        super().__init__()
        self._spec = spec
        self.shape = _encoder(features, code, groups)
        self.appearance = _encoder(features, code, 0)
        self.decoder = _decoder(features, code, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction, of the shape of ``x``."""
        made: torch.Tensor = self.decoder(torch.cat([self.shape(x), self.appearance(x)], dim=1))
        return made

    def losses(self, x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Return the loss of each case, shape (n,); the generator draws the gamma of its shifted version.

        Mean absolute error of the reconstruction; one minus the cosine of the shape codes of picture and
        shifted picture (shape consistency); the absolute cosine of shape and appearance (orthogonality).
        """
        shape, appearance = self.shape(x), self.appearance(x)
        made = self.decoder(torch.cat([shape, appearance], dim=1))
        reach = np.log(self._spec.largest_gamma)
        gamma = np.exp(generator.uniform(-reach, reach, size=len(x))).astype(np.float32)
        shifted = self.shape(gamma_shifted(x, torch.from_numpy(gamma)))
        error = (made - x).abs().flatten(1).mean(dim=1)
        strayed = 1 - functional.cosine_similarity(shape.flatten(1), shifted.flatten(1))
        common = functional.cosine_similarity(shape.flatten(1), appearance.flatten(1)).abs()
        spec = self._spec
        total: torch.Tensor = error + spec.shape_weight * strayed + spec.orthogonality_weight * common
        return total


class Strayed(torch.nn.Module):
    """Maps pictures, float32 (n, 1, rows, columns), to how far each pixel is from what is made of it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the absolute residual, of the shape of ``x``."""
        strayed: torch.Tensor = (self.network(x) - x).abs()
        return strayed


def gamma_shifted(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return pictures to the power of their gamma, within each one's own lowest and highest value.

    Parameters
    ----------
    x : Tensor
        Shape (n, 1, rows, columns).
    gamma : Tensor
        Shape (n,), above 0.
    """
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    extent = (high - low).clamp(min=1e-6)
    return low + extent * ((x - low) / extent).clamp(0, 1) ** gamma.reshape(-1, 1, 1, 1)


def _encoder(features: Sequence[int], code: int, groups: int) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for before, after in pairwise((1, *features)):
        layers += [torch.nn.Conv2d(before, after, 3, stride=2, padding=1), *_shaped(after, groups)]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(features[-1], code, 1))


def _decoder(features: Sequence[int], code: int, groups: int) -> torch.nn.Sequential:
    layers = [torch.nn.Conv2d(2 * code, features[-1], 1), *_shaped(features[-1], 0)]
    widths = [*features[::-1], features[0]]
    for before, after in pairwise(widths):
        layers += [
            torch.nn.Upsample(scale_factor=2, mode="nearest"),
            torch.nn.Conv2d(before, after, 3, padding=1),
            *_shaped(after, groups),
        ]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(features[0], 1, 3, padding=1))


def _shaped(width: int, groups: int) -> list[torch.nn.Module]:
    normalised = [torch.nn.GroupNorm(groups, width)] if groups else []
    return [*normalised, torch.nn.LeakyReLU(_SLOPE)]
