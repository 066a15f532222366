"""A site's process holds a model's weights and gradients while it trains, and no third copy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.trainer.samples import small_task
from trainer import weights_io
from trainer.networks import initial_weights
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
NETWORK = NetworkSpec("resnet", {"features": [64, 128, 256, 512], "blocks": [1, 1, 1, 3], "groups": 4})
LOCAL = LocalSpec(batch_size=2, local_steps=1, optimizer="sgd")
ROUND = """
import json, os, sys
from pathlib import Path
from appliance.children import keep_freed_arrays, return_freed_memory
from tests.benchmarks.footprint import forget_peak, memory_of
from tests.trainer.samples import drawn_dataset
from tests.trainer.test_local_round_memory import LOCAL, NETWORK, small_task
from trainer.local_round import local_round, use_threads
from trainer.weights_io import Stored
use_threads(1)
keep_freed_arrays()
task = small_task(network=NETWORK, local=LOCAL)
dataset = drawn_dataset(0, task, train=4, validation=2)
small = small_task(local=LOCAL)
from trainer.networks import initial_weights
local_round(small, initial_weights(small), dataset, seed=0)  # what libraries load is no part of it
forget_peak(os.getpid())
before = memory_of(os.getpid()).resident
local_round(task, Stored(Path(sys.argv[1])), dataset, seed=0, max_norm=100.0)
peak = memory_of(os.getpid()).largest - before
return_freed_memory()
print(json.dumps([peak, memory_of(os.getpid()).resident - before]))
"""


@pytest.mark.slow
def test_a_local_round_holds_a_model_two_or_three_times_and_then_none(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights_io.save(path, initial_weights(small_task(network=NETWORK, local=LOCAL)))
    done = subprocess.run(
        [sys.executable, "-c", ROUND, str(path)], check=True, capture_output=True, text=True
    )
    model = path.stat().st_size / MIB
    peak, left = json.loads(done.stdout)
    assert peak / model < 3.2
    assert left / model < 0.5
