"""Residual, dense, U-shaped and linear networks on PyTorch alone: MONAI costs a process 90 MiB and seconds.

But for the linear one, arrays have the names of MONAI 1.6's ``ResNet`` (basic blocks), ``DenseNet`` and
``UNet`` (no residual units) and are drawn in the same order, so models fit both and the same seed draws the
same. One channel comes in.

References
----------
He et al., Deep Residual Learning for Image Recognition, CVPR 2016; Huang et al., Densely Connected
Convolutional Networks, CVPR 2017; Ronneberger et al., U-Net, MICCAI 2015; Kerfoot et al., Left-Ventricle
Quantification Using Residual U-Net, STACOM 2018: strided convolutions down and up.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

Norm = Callable[[int], nn.Module]  # features to what normalises them
_BOTTLENECK: Final = 4  # features of a dense layer's first convolution, in those of its second
_CONVOLUTIONS: Final = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


class ResNet(nn.Module):
    """Four stages of basic blocks, float32 (n, 1, rows, columns) to logits (n, 1)."""

    def __init__(self, features: Sequence[int], blocks: Sequence[int], norm: Norm, *, max_pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, features[0], kernel_size=5, stride=2, padding=2, bias=False)
        self.bn1 = norm(features[0])
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if max_pool else nn.Identity()
        self.layer1 = _stage(features[0], features[0], blocks[0], norm, stride=1)
        self.layer2 = _stage(features[0], features[1], blocks[1], norm)
        self.layer3 = _stage(features[1], features[2], blocks[2], norm)
        self.layer4 = _stage(features[2], features[3], blocks[3], norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features[3], 1)
        _draw(self, "fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, 1)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Linear(nn.Module):
    """Logistic regression on the pixels, float32 (n, 1, rows, columns) to logits (n, 1); starts at zero."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.fc = nn.Linear(rows * columns, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, 1)."""
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits


def _stage(come: int, wide: int, count: int, norm: Norm, stride: int = 2) -> nn.Sequential:
    first = _Residual(come, wide, stride, norm)
    return nn.Sequential(first, *(_Residual(wide, wide, 1, norm) for _ in range(count - 1)))


class _Residual(nn.Module):
    def __init__(self, come: int, wide: int, stride: int, norm: Norm) -> None:
        super().__init__()
        downsample = None
        if stride != 1 or come != wide:
            downsample = nn.Sequential(
                nn.Conv2d(come, wide, kernel_size=1, stride=stride, bias=False), norm(wide)
            )
        self.conv1 = nn.Conv2d(come, wide, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(wide)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(wide, wide, kernel_size=3, padding=1, bias=False)
        self.bn2 = norm(wide)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past = x if self.downsample is None else self.downsample(x)
        inner = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.act(inner + past)
        return out


class DenseNet(nn.Module):
    """Dense blocks with halving transitions between, float32 (n, 1, rows, columns) to logits (n, 1)."""

    def __init__(self, features: int, growth: int, blocks: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(1, features, 7, stride=2, padding=3, bias=False))
        self.features.add_module("norm0", norm(features))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        for number, count in enumerate(blocks, start=1):
            block = nn.Sequential()
            for layer in range(1, count + 1):
                block.add_module(f"denselayer{layer}", _Dense(features, growth, norm))
                features += growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(blocks):
                self.features.add_module(f"transition{number}", _transition(features, norm))
                features //= 2
        self.features.add_module("norm5", norm(features))
        self.class_layers = nn.Sequential()
        self.class_layers.add_module("relu", nn.ReLU(inplace=True))
        self.class_layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.class_layers.add_module("flatten", nn.Flatten(1))
        self.class_layers.add_module("out", nn.Linear(features, 1))
        _draw(self, "fan_in")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, 1)."""
        logits: torch.Tensor = self.class_layers(self.features(x))
        return logits


class _Dense(nn.Module):
    def __init__(self, come: int, growth: int, norm: Norm) -> None:
        super().__init__()
        between = _BOTTLENECK * growth
        self.layers = nn.Sequential()
        self.layers.add_module("norm1", norm(come))
        self.layers.add_module("relu1", nn.ReLU(inplace=True))
        self.layers.add_module("conv1", nn.Conv2d(come, between, kernel_size=1, bias=False))
        self.layers.add_module("norm2", norm(between))
        self.layers.add_module("relu2", nn.ReLU(inplace=True))
        self.layers.add_module("conv2", nn.Conv2d(between, growth, kernel_size=3, padding=1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.layers(x)], 1)


def _transition(features: int, norm: Norm) -> nn.Sequential:
    halving = nn.Sequential()
    halving.add_module("norm", norm(features))
    halving.add_module("relu", nn.ReLU(inplace=True))
    halving.add_module("conv", nn.Conv2d(features, features // 2, kernel_size=1, bias=False))
    halving.add_module("pool", nn.AvgPool2d(kernel_size=2, stride=2))
    return halving


class UNet(nn.Module):
    """Halves between ``features`` and doubles back, float32 (n, 1, *size) to logits (n, classes, *size)."""

    def __init__(self, dimensions: int, features: Sequence[int], classes: int, norm: Norm) -> None:
        super().__init__()
        inner: nn.Module | None = None
        below = 0
        # From the bottom up: that is the order in which MONAI draws weights.
        for number, (wide, deep) in reversed(list(enumerate(pairwise(features)))):
            if inner is None:
                inner, below = _Convolution(dimensions, wide, deep, norm, stride=1), deep
            down = _Convolution(dimensions, features[number - 1] if number else 1, wide, norm)
            leaves, last = (features[number - 1], norm) if number else (classes, None)
            up = _Convolution(dimensions, wide + below, leaves, last, up=True)
            inner, below = nn.Sequential(down, _Skip(inner), up), leaves
        self.model = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, classes, *size)."""
        logits: torch.Tensor = self.model(x)  # type: ignore[misc]
        return logits


class _Convolution(nn.Sequential):
    """A convolution, then, unless it is the last, normalisation and activation."""

    def __init__(
        self, dimensions: int, come: int, leave: int, norm: Norm | None, *, stride: int = 2, up: bool = False
    ) -> None:
        super().__init__()
        ahead, back = _CONVOLUTIONS[dimensions]
        if up:
            convolution: nn.Module = back(come, leave, 3, stride=stride, padding=1, output_padding=1)
        else:
            convolution = ahead(come, leave, 3, stride=stride, padding=1)
        self.add_module("conv", convolution)
        if norm is not None:
            after = nn.Sequential()
            after.add_module("N", norm(leave))
            after.add_module("A", nn.PReLU())
            self.add_module("adn", after)


class _Skip(nn.Module):
    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.submodule(x)], 1)


def _draw(network: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of convolutions for rectified units; biases of what makes logits begin at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
