"""SCAFFOLD at a site: gradient descent, corrected by control variates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.errors import WeightsError
from trainer.site_rules.base import Whole, train_from, without
from trainer.steppers import Corrected
from trainer.strategies.scaffold import CONTROL, Scaffold
from trainer.weights_io import difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.site_rules.base import Round
    from trainer.steppers import Stepper
    from trainer.task import LocalSpec, TaskSpec
    from trainer.weights_io import Array, Weights


class Controlled(Whole):
    """SCAFFOLD's site: plain gradient descent, corrected by the difference of two control variates."""

    stateful = True

    def deployed(
        self, task: TaskSpec, weights: Mapping[str, Array], own: Mapping[str, Array], *, trained: bool
    ) -> Mapping[str, Array]:
        """Return the global model without the control variates."""
        del task, own, trained
        return without(weights, CONTROL)

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train, and say how the site's control variate changes (option II)."""
        rate = Scaffold().local_rate(this.parameters, this.task.local.learning_rate)
        spec = replace(this.task.local, learning_rate=rate)
        start = self.deployed(this.task, this.weights, this.own, trained=False)
        own = _controls(this)

        def stepper(network: torch.nn.Module, spec: LocalSpec) -> Stepper:
            named = dict(network.named_parameters())
            corrections = [torch.from_numpy(this.weights[CONTROL + n] - own[n]) for n in named]
            return Corrected(named.values(), corrections, spec)

        after, loss = train_from(
            replace(this, task=replace(this.task, local=spec)), start, make_stepper=stepper
        )
        delta = difference(after, start)
        steps = spec.local_steps * rate
        for name, mine in own.items():
            change = -this.weights[CONTROL + name] - delta[name] / steps  # next - own, of option II
            delta[CONTROL + name] = np.asarray(change, dtype=mine.dtype)
        return delta, loss, {}

    def kept(self, this: Round, sent: Mapping[str, Array], made: Mapping[str, Array]) -> Weights:
        """Keep the control variate as the coordinator counts it: by what left, scaled down or not."""
        del made
        return {name: np.asarray(mine + sent[CONTROL + name]) for name, mine in _controls(this).items()}


def _controls(this: Round) -> Weights:
    """Return the site's control variate: as kept, or zero in its first round."""
    names = [name.removeprefix(CONTROL) for name in this.weights if name.startswith(CONTROL)]
    if not this.own:
        return {name: np.zeros_like(this.weights[name]) for name in names}
    if set(this.own) != set(names):
        raise WeightsError("scaffold: the site's control variate does not fit the global model")
    return {name: this.own[name] for name in names}
