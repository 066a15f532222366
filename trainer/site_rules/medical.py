"""Sites of Auto-FedAvg, transfer, variation-aware harmonisation and the mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from trainer import steppers
from trainer.errors import UnfitModelError
from trainer.networks import head_names, initial_weights, weights_of, with_weights
from trainer.optimisation import Budget, loss_and_gradient, seed_of, train
from trainer.site_rules.base import Whole, train_from, without
from trainer.strategies.adaptation import DomainAdaptation
from trainer.strategies.autofedavg import SIZE, SKETCH, sketch
from trainer.strategies.variation import BANDS, STYLE
from trainer.strategies.warmstart import WarmStart
from trainer.weights_io import difference
from trainer.wrapped import GATE, GATE_CELLS, PRIVATE, harmonised, statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.datasets import Samples
    from trainer.site_rules.base import Round
    from trainer.steppers import Stepper
    from trainer.task import LocalSpec, TaskSpec
    from trainer.weights_io import Array, Weights

_BATCH: Final = 64


class Weighed(Whole):
    """Auto-FedAvg's site: beside its update it sends a sketch of its gradient at the global model."""

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the global model without the sketch's place."""
        del task, own, trained
        if SKETCH not in weights or weights[SKETCH].shape != (SIZE,):
            raise UnfitModelError("auto-fedavg: expected a global model with the sketch's place")
        return without(weights, SKETCH)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train; the gradient is that of all training cases, of the model as it came."""
        start = self.deployed(this.task, this.weights, this.own, trained=False)
        _, gradient = loss_and_gradient(with_weights(this.task, start), this.samples, this.progress)
        after, loss = train_from(this, start)
        delta = difference(after, start)
        delta[SKETCH] = sketch(gradient) - this.weights[SKETCH]
        return delta, loss, {}


class Frozen(Whole):
    """Transfer's site: in the first rounds it trains the last layer alone."""

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train the head, or all of it."""
        if this.number > WarmStart().frozen_rounds(this.parameters):
            return super().train(this)
        head = head_names(this.task)

        def stepper(network: torch.nn.Module, spec: LocalSpec) -> Stepper:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in head)
            for module in network.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - of any dimension
                    module.eval()
            return steppers.make(network, spec)

        after, loss = train_from(this, this.weights, make_stepper=stepper)
        return difference(after, this.weights), loss, {}


class InStyle(Whole):
    """Variation-aware's site: its style goes into the mean; it trains on pictures of the agreed one."""

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the global model with its style, whose length decides how often a picture is smoothed."""
        del task, own, trained
        if STYLE not in weights or weights[STYLE].shape != (BANDS + 2,):
            raise UnfitModelError(
                f"variation-aware: expected a global model with {BANDS + 2} numbers of style"
            )
        return {**without(weights, STYLE), STYLE: weights[STYLE]}

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Send the style alone in the first round; train as well from the second on."""
        own_style = _style_of(this.samples)
        if this.number == 1:
            delta = {name: np.zeros_like(array) for name, array in this.weights.items()}
            loss, _ = loss_and_gradient(with_weights(this.task, this.weights), this.samples, this.progress)
        else:
            start = without(this.weights, STYLE)
            samples = replace(this.samples, x=_in_style(this.samples, this.weights[STYLE]))
            after, loss = train_from(replace(this, samples=samples), start)
            delta = difference(after, start)
        delta[STYLE] = own_style - this.weights[STYLE]
        return delta, loss, {}


class Expert(Whole):
    """The mixture's site: FedAvg's update with noise; a private network and a gate that stay."""

    stateful = True
    own_part = "private network and gate"

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the mixture; before a site has a private network, the shared one."""
        del task, trained
        return {**without(weights), **own}

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train the shared network, then private network and gate beside it as it is."""
        after, loss = train_from(this, this.weights)
        delta = difference(after, this.weights)
        network = with_weights(this.task, {**after, **(this.own or _fresh(this))})
        self._train_private(this, network)
        state = weights_of(network)
        made = {
            (PRIVATE if name.startswith("private.") else GATE) + name.partition(".")[2]: array
            for name, array in state.items()
            if not name.startswith("shared.")
        }
        return _with_noise(delta, DomainAdaptation().noise(this.parameters), this.seed), loss, made

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the private network and the gate."""
        del this, sent
        return dict(made)

    @staticmethod
    def _train_private(this: Round, network: torch.nn.Module) -> None:
        def stepper(mixture: torch.nn.Module, spec: LocalSpec) -> Stepper:
            shared = mixture.get_submodule("shared")
            shared.requires_grad_(requires_grad=False).eval()
            return steppers.make(mixture, spec)

        spec = this.task.local
        train(
            network,
            this.samples,
            spec,
            Budget(spec.local_steps, spec.batch_size),
            seed=seed_of("private", this.seed),
            proximal_mu=0.0,
            progress=this.progress,
            make_stepper=stepper,
        )


def _fresh(this: Round) -> Weights:
    """Return a private network and a gate before their first round: untrained, each weighing half."""
    private = initial_weights(this.task, seed_of("expert", this.seed))
    shapes = {"weight": (1, GATE_CELLS ** len(this.task.size)), "bias": (1,)}
    gate = {GATE + name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    return {PRIVATE + name: array for name, array in private.items()} | gate


def _with_noise(delta: Mapping[str, Array], noise: float, seed: int) -> Weights:
    """Add Gaussian noise by array, in units of its root mean square; counters stay."""
    generator = np.random.default_rng(seed_of("noise", seed))
    noisy = {}
    for name in sorted(delta):
        array = delta[name]
        if array.dtype.kind == "f" and array.size:
            scale = noise * float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
            array = (array + generator.normal(0.0, 1.0, array.shape) * scale).astype(array.dtype)
        noisy[name] = np.asarray(array)
    return noisy


@torch.no_grad()
def _style_of(samples: Samples) -> Array:
    """Return the mean style over the training pictures, float32."""
    parts = [
        statistics(torch.from_numpy(np.ascontiguousarray(samples.x[first : first + _BATCH])), BANDS).numpy()
        for first in range(0, len(samples), _BATCH)
    ]
    return np.asarray(np.concatenate(parts).astype(np.float64).mean(axis=0), dtype=np.float32)


@torch.no_grad()
def _in_style(samples: Samples, style: Array) -> Array:
    target = torch.from_numpy(np.array(style))
    parts = [
        harmonised(torch.from_numpy(np.ascontiguousarray(samples.x[first : first + _BATCH])), target).numpy()
        for first in range(0, len(samples), _BATCH)
    ]
    return np.concatenate(parts)
