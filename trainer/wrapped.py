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
        """Map float32 (n, 1, *size) to the network's logits."""
        logits: torch.Tensor = self.network(harmonised(x, self.style))
        return logits


class Mixture(torch.nn.Module):
    """Two networks, weighed for each picture by a gate that sees it coarsely.

    Logits are mixed, not probabilities as in the paper: what is exported ends in one sigmoid.
    """

    def __init__(self, shared: torch.nn.Module, private: torch.nn.Module, dimensions: int = 2) -> None:
        super().__init__()
        self.shared = shared
        self.private = private
        self.gate = torch.nn.Linear(GATE_CELLS**dimensions, 1)
        torch.nn.init.zeros_(self.gate.weight)
        torch.nn.init.zeros_(self.gate.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 (n, 1, *size) to the network's logits."""
        ours, own = self.shared(x), self.private(x)
        share = torch.sigmoid(self.gate(_coarse(x))).reshape(-1, *(1,) * (ours.dim() - 1))
        mixed: torch.Tensor = share * ours + (1 - share) * own
        return mixed


def statistics(x: torch.Tensor, bands: int) -> torch.Tensor:
    """Return each picture's style, shape (n, bands + 2): mean, deviation of each band, of what remains."""
    parts = _bands(x, bands)
    mean = x.flatten(1).mean(dim=1, keepdim=True)
    return torch.cat([mean, *(_deviation(part).reshape(-1, 1) for part in parts)], dim=1)


def harmonised(x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Return pictures of this style; no band is amplified more than eightfold, since that would be noise."""
    parts = _bands(x, style.shape[0] - 2)
    result = torch.zeros_like(x) + style[0]
    for position, part in enumerate(parts):
        gain = style[position + 1] / (_deviation(part) + _TINY)
        result = result + _centred(part) * gain.clamp(max=_MOST_GAIN)
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
    """Smooth by 1-2-1 in every direction, over points ``reach`` apart; beyond the edge it repeats."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    plane = torch.outer(row, row)
    if x.dim() == 5:
        padded = functional.pad(x, (reach,) * 6, mode="replicate")
        solid = (row.reshape(3, 1, 1) * plane).reshape(1, 1, 3, 3, 3)
        return functional.conv3d(padded, solid, dilation=reach)
    padded = functional.pad(x, (reach,) * 4, mode="replicate")
    return functional.conv2d(padded, plane.reshape(1, 1, 3, 3), dilation=reach)


def _centred(part: torch.Tensor) -> torch.Tensor:
    return part - part.mean(dim=tuple(range(1, part.dim())), keepdim=True)


def _deviation(part: torch.Tensor) -> torch.Tensor:
    squares = _centred(part) ** 2
    return squares.mean(dim=tuple(range(1, part.dim())), keepdim=True).sqrt()


def _coarse(x: torch.Tensor) -> torch.Tensor:
    """Return the means of 4 x 4 (x 4) cells; the last row, column and slice of cells may be cut off."""
    cell = tuple(int(extent) // GATE_CELLS for extent in x.shape[2:])
    if len(cell) == 3:
        return functional.avg_pool3d(x, cell, cell)[:, :, :GATE_CELLS, :GATE_CELLS, :GATE_CELLS].flatten(1)
    return functional.avg_pool2d(x, cell, cell)[:, :, :GATE_CELLS, :GATE_CELLS].flatten(1)
