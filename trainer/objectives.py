"""What training minimises and evaluation measures, for labels and for masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.datasets import Samples

_SMOOTH: Final = 1e-5
# A site with one positive case in a thousand must not throw the model about.
_MAX_CLASS_WEIGHT: Final = 20.0


class Objective(Protocol):
    """The loss of each case, so that means, sums and clipped gradients come from one place."""

    def losses(self, outputs: torch.Tensor, y: NDArray[np.uint8]) -> torch.Tensor:
        """Return the loss of each case, shape (n,), of the network's outputs and what they should be."""


class Labels:
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


class Masks:
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


def objective_of(samples: Samples, *, weighted: bool = True) -> Objective:
    """Return what training on these samples minimises; ``weighted``: labels by how rare they are here."""
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
