"""The export of a run's last step holds a model five times at most, and a loaded one holds it once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.trainer.samples import small_task
from tests.trainer.test_local_round_memory import MIB, NETWORK
from trainer import weights_io
from trainer.networks import initial_weights

if TYPE_CHECKING:
    from pathlib import Path

EXPORT = """
import json, os, sys
from pathlib import Path
from appliance.children import keep_freed_arrays, return_freed_memory
from inference.card import ModelCard
from inference.package import Package
from inference.session import ModelSession
from tests.benchmarks.footprint import forget_peak, memory_of
from tests.trainer.samples import drawn, small_task
from tests.trainer.test_local_round_memory import NETWORK
from trainer.export import export_onnx, model_card
from trainer.local_round import use_threads
from trainer.networks import initial_weights
from trainer.weights_io import Stored
use_threads(1)
small, task = small_task(), small_task(network=NETWORK)
samples = drawn(1, 4, task)
export_onnx(small, initial_weights(small), samples)  # what libraries load is no part of it
keep_freed_arrays()
return_freed_memory()
forget_peak(os.getpid())
before = memory_of(os.getpid()).resident
content, _ = export_onnx(task, Stored(Path(sys.argv[1]) / "model.safetensors"), samples)
peak = memory_of(os.getpid()).largest - before
package = Package(model_card(task, "1", {}, {}), Path(sys.argv[1]), sha256="", signer="")
package.model_path.write_bytes(content)
del content
return_freed_memory()
before = memory_of(os.getpid()).resident
session = ModelSession(package, threads=1)
return_freed_memory()
print(json.dumps([peak, memory_of(os.getpid()).resident - before]))
"""


@pytest.mark.slow
def test_an_export_and_a_loaded_model_hold_few_copies(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights_io.save(path, initial_weights(small_task(network=NETWORK)))
    argv = [sys.executable, "-c", EXPORT, str(tmp_path)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    model = path.stat().st_size / MIB
    peak, loaded = json.loads(done.stdout)
    assert peak / model < 5.5
    assert loaded / model < 1.6
