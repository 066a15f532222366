"""Networks around the task's network, which a site's model is made of under some strategies."""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

PRIVATE: Final = "private:"
GATE: Final = "gate:"
GATE_CELLS: Final = 4
_MOST_GAIN: Final = 8.0
_TINY: Final = 1e-3


class Harmonised(torch.nn.Module):
    """A network that sees every picture in one style."""

    style: torch.Tensor

    def __init__(self, network: torch.nn.Module, style: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("style", style)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 (n, 1, rows, columns) to logits (n, 1)."""
        logits: torch.Tensor = self.network(harmonised(x, self.style))
        return logits


class Mixture(torch.nn.Module):
    """Two networks, weighed for each picture by a gate that sees it coarsely.

    Logits are mixed, not probabilities as in the paper: what is exported ends in one sigmoid.
    """

    def __init__(self, shared: torch.nn.Module, private: torch.nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.private = private
        self.gate = torch.nn.Linear(GATE_CELLS**2, 1)
        torch.nn.init.zeros_(self.gate.weight)
        torch.nn.init.zeros_(self.gate.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 (n, 1, rows, columns) to logits (n, 1)."""
        share = torch.sigmoid(self.gate(_coarse(x)))
        mixed: torch.Tensor = share * self.shared(x) + (1 - share) * self.private(x)
        return mixed


def statistics(x: torch.Tensor, bands: int) -> torch.Tensor:
    """Return each picture's style, shape (n, bands + 2): mean, deviation of each band, of what remains."""
    parts = _bands(x, bands)
    mean = x.mean(dim=(1, 2, 3)).unsqueeze(1)
    return torch.cat([mean, *(_deviation(part).reshape(-1, 1) for part in parts)], dim=1)


def harmonised(x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Return pictures of this style; no band is amplified more than eightfold, since that would be noise."""
    parts = _bands(x, style.shape[0] - 2)
    result = torch.zeros_like(x) + style[0]
    for position, part in enumerate(parts):
        centred = part - part.mean(dim=(1, 2, 3), keepdim=True)
        gain = style[position + 1] / (_deviation(part) + _TINY)
        result = result + centred * gain.clamp(max=_MOST_GAIN)
    return result


def _bands(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return details from fine to coarse and what remains; they sum to ``x``."""
    parts = []
    for level in range(count):
        smooth = _blurred(x, 2**level)
        parts.append(x - smooth)
        x = smooth
    return [*parts, x]


def _blurred(x: torch.Tensor, reach: int) -> torch.Tensor:
    """Smooth by 1-2-1 in both directions, over points ``reach`` apart; beyond the edge it repeats."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = torch.outer(row, row).reshape(1, 1, 3, 3)
    padded = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(padded, kernel, dilation=reach)


def _deviation(part: torch.Tensor) -> torch.Tensor:
    centred = part - part.mean(dim=(1, 2, 3), keepdim=True)
    return (centred * centred).mean(dim=(1, 2, 3), keepdim=True).sqrt()


def _coarse(x: torch.Tensor) -> torch.Tensor:
    """Return the means of 4 x 4 cells; the last row and column of cells may be cut off."""
    rows, columns = int(x.shape[2]) // GATE_CELLS, int(x.shape[3]) // GATE_CELLS
    cells = functional.avg_pool2d(x, (rows, columns), (rows, columns))
    return cells[:, :, :GATE_CELLS, :GATE_CELLS].flatten(1)
