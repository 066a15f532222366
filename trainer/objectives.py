"""What training minimises: of labels, of masks, and of pictures that a network makes again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from torch.nn import functional

from trainer.anomaly.network import SplitAutoencoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.datasets import Samples

_SMOOTH: Final = 1e-5
# A site with one positive case in a thousand must not throw the model about.
_MAX_CLASS_WEIGHT: Final = 20.0


class Objective(Protocol):
    """The loss of each case, so that means, sums and clipped gradients come from one place."""

    def of(self, network: torch.nn.Module, x: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case, shape (n,), of a network, its inputs and what is known of them."""


class Supervised(ABC):
    """The loss is one of the network's outputs and of what they should be."""

    def of(self, network: torch.nn.Module, x: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case."""
        return self.losses(network(x), y)

    @abstractmethod
    def losses(self, outputs: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case, shape (n,)."""


class Labels(Supervised):
    """Binary cross entropy of logits (n, 1) and labels (n,); ``weight`` is that of a positive case."""

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = torch.tensor(weight)

    def losses(self, outputs: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case."""
        target = torch.from_numpy(y.astype(np.float32)).unsqueeze(1)
        found = functional.binary_cross_entropy_with_logits(
            outputs, target, pos_weight=self._weight, reduction="none"
        )
        return found.squeeze(1)


class Masks(Supervised):
    """Dice loss over segments plus cross entropy over voxels, of logits (n, classes, *size).

    References
    ----------
    Milletari et al., V-Net, 3DV 2016 (Dice loss); Isensee et al., nnU-Net, Nature Methods 18 (2021), for the
    sum of both. The background has no part in Dice.
    """

    def losses(self, outputs: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case."""
        target = torch.from_numpy(y.astype(np.int64))
        voxels = tuple(range(2, outputs.dim()))
        entropy = functional.cross_entropy(outputs, target, reduction="none").flatten(1).mean(dim=1)
        shares = torch.softmax(outputs, dim=1)[:, 1:]
        truth = torch.stack([(target == number).float() for number in range(1, outputs.shape[1])], dim=1)
        common = (shares * truth).sum(dim=voxels)
        both = shares.sum(dim=voxels) + truth.sum(dim=voxels)
        overlap = (2 * common + _SMOOTH) / (both + _SMOOTH)
        return entropy + 1 - overlap.mean(dim=1)


class Healthy:
    """The loss of a split autoencoder, whatever is marked; the seed decides how pictures are shifted."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def of(self, network: torch.nn.Module, x: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case."""
        del y
        if not isinstance(network, SplitAutoencoder):
            raise TypeError("expected a split autoencoder")
        return network.losses(x, self._generator)


def objective_of(
    network: torch.nn.Module, samples: Samples, *, weighted: bool = True, seed: int = 0
) -> Objective:
    """Return what training a network on these samples minimises.

    ``weighted``: labels by how rare they are here. ``seed`` is for what draws by chance.
    """
    if isinstance(network, SplitAutoencoder):
        return Healthy(seed)
    if samples.masks:
        return Masks()
    return Labels(class_weight(samples) if weighted else 1.0)


def class_weight(samples: Samples) -> float:
    """Return the weight of a positive case: negatives per positive, within 1/20 and 20."""
    positives, negatives = samples.positives, len(samples) - samples.positives
    if positives == 0 or negatives == 0:
        return 1.0
    return float(np.clip(negatives / positives, 1 / _MAX_CLASS_WEIGHT, _MAX_CLASS_WEIGHT))


def batch_size_of(x: NDArray[Any], most: int) -> int:
    """Return how many cases go through a network at once: fewer of large volumes."""
    return most if x.ndim == 4 else max(1, min(most, 2**21 // max(1, int(np.prod(x.shape[2:])))))
