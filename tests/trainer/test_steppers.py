from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trainer.steppers import make
from trainer.task import LocalSpec


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_those_of_pytorch_s_optimizer(name: str) -> None:
    spec = LocalSpec(optimizer=name, learning_rate=0.01, weight_decay=0.1)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    reference: torch.optim.Optimizer = (
        torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        if name == "sgd"
        else torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    )
    stepper = make(ours, spec)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        x = torch.rand((4, 5), generator=generator)
        reference.zero_grad()
        for network in (ours, theirs):
            torch.sum(network(x) ** 2).backward()  # type: ignore[no-untyped-call]
        stepper.step()
        reference.step()
        assert all(parameter.grad is None for parameter in ours.parameters())
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-7)


def test_a_local_round_does_not_load_pytorch_s_compiler() -> None:
    code = """
import sys
from tests.trainer.samples import drawn_dataset, small_task
from trainer.local_round import local_round
from trainer.networks import initial_weights
task = small_task()
local_round(task, initial_weights(task), drawn_dataset(1, task, train=4, validation=4), seed=0)
sys.exit(any(name in sys.modules for name in ("torch._dynamo", "sympy", "onnx", "onnxruntime")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
