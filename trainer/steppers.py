"""The optimizers of local training, in tensor operations alone.

PyTorch's own compute the same (a test compares them), but the first one made in a process loads PyTorch's
compiler: 800 modules, 90 MiB and a second, in every site's worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trainer.task import LocalSpec

_MOMENTUM: Final = 0.9
_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8


class Stepper(Protocol):
    """Moves parameters by their gradients and clears these."""

    def step(self) -> None:
        """Make one step."""


class SGD:
    """Stochastic gradient descent with momentum and coupled weight decay."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], spec: LocalSpec, momentum: float = _MOMENTUM
    ) -> None:
        self._momentum = momentum
        self._parameters = list(parameters)
        self._spec = spec
        self._velocity: list[torch.Tensor | None] = [None] * len(self._parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Make one step."""
        for position, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.add(parameter, alpha=self._spec.weight_decay)
            velocity = self._velocity[position]
            velocity = gradient if velocity is None else velocity.mul_(self._momentum).add_(gradient)
            self._velocity[position] = velocity
            parameter.add_(velocity, alpha=-self._spec.learning_rate)
            parameter.grad = None


class Corrected:
    """Plain stochastic gradient descent along corrected gradients, as SCAFFOLD needs it: no momentum."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], corrections: Iterable[torch.Tensor], spec: LocalSpec
    ) -> None:
        self._pairs = list(zip(parameters, corrections, strict=True))
        self._spec = spec

    @torch.no_grad()
    def step(self) -> None:
        """Make one step."""
        for parameter, correction in self._pairs:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.add(parameter, alpha=self._spec.weight_decay).add_(correction)
            parameter.add_(gradient, alpha=-self._spec.learning_rate)
            parameter.grad = None


class AdamW:
    """Adam with decoupled weight decay.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, algorithm 2.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], spec: LocalSpec) -> None:
        self._parameters = list(parameters)
        self._spec = spec
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._count = 0

    @torch.no_grad()
    def step(self) -> None:
        """Make one step."""
        self._count += 1
        rate = self._spec.learning_rate
        correction1 = 1 - _BETA1**self._count
        correction2 = 1 - _BETA2**self._count
        for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
            if parameter.grad is None:
                continue
            parameter.mul_(1 - rate * self._spec.weight_decay)
            first.lerp_(parameter.grad, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(parameter.grad, parameter.grad, value=1 - _BETA2)
            root = (second.sqrt() / correction2**0.5).add_(_EPSILON)
            parameter.addcdiv_(first, root, value=-rate / correction1)
            parameter.grad = None


def make(network: torch.nn.Module, spec: LocalSpec) -> Stepper:
    """Return the optimizer that a task names, with fresh state."""
    kind = SGD if spec.optimizer == "sgd" else AdamW
    return kind(network.parameters(), spec)
