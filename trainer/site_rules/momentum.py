"""Sites that train by gradient descent with a momentum of the plan's: DFedAvgM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.peers.dfedavgm import DFedAvgM
from trainer.site_rules.base import Whole, train_from
from trainer.steppers import SGD
from trainer.weights_io import difference

if TYPE_CHECKING:
    import torch

    from trainer.site_rules.base import Round
    from trainer.steppers import Stepper
    from trainer.task import LocalSpec
    from trainer.weights_io import Weights


class Momentum(Whole):
    """DFedAvgM's site: gradient descent, each step repeats a share of the last, anew in each round."""

    def train(self, this: Round) -> tuple[Weights, float, Weights]:
        """Train the site's model."""
        rule = DFedAvgM()
        rate = rule.local_rate(this.parameters, this.task.local.learning_rate)
        momentum = rule.momentum(this.parameters)
        spec = replace(this.task.local, learning_rate=rate)

        def stepper(network: torch.nn.Module, spec: LocalSpec) -> Stepper:
            return SGD(network.parameters(), spec, momentum)

        with_rate = replace(this, task=replace(this.task, local=spec))
        after, loss = train_from(with_rate, this.weights, make_stepper=stepper)
        return difference(after, this.weights), loss, {}
