"""The network of a benchmark, as a class that the engine makes by its name at its own coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainer.networks import build
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


class Network(torch.nn.Module):
    """One of our networks, untrained, by what its :class:`NetworkSpec` says."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self.inner = build(NetworkSpec(name, dict(parameters)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, 1)."""
        logits: torch.Tensor = self.inner(x)
        return logits
