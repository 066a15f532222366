"""The export of a run's last step holds a model once, the runtime beside it less than three times.

What is on disk, hashed and zipped is in memory in pieces; a loaded model is there once.
"""

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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from appliance.children import children_of, keep_freed_arrays, return_freed_memory
from inference.package import open_package, pack
from inference.session import ModelSession
from inference.session_process import SessionProcess
from tests.benchmarks.footprint import forget_peak, memory_of
from tests.trainer.samples import drawn, small_task
from tests.trainer.test_local_round_memory import NETWORK
from trainer.export import export_package, model_card
from trainer.local_round import use_threads
from trainer.networks import initial_weights
from trainer.weights_io import Stored

def export(task, weights, folder):
    card = model_card(task, "1", {}, {})
    export_package(task, weights, samples, folder, card=card, signing_key=key)
    pack(folder, folder.with_suffix(".zip"))

def asked(package):
    with SessionProcess(package) as session:
        session.run(samples.x)
        (pid,) = children_of(os.getpid())
        return memory_of(pid).largest

use_threads(1)
folder, key = Path(sys.argv[1]), Ed25519PrivateKey.generate()
small, task = small_task(), small_task(network=NETWORK)
samples = drawn(1, 4, task)
export(small, initial_weights(small), folder / "small")  # what libraries load is no part of it
keep_freed_arrays()
return_freed_memory()
forget_peak(os.getpid())
before = memory_of(os.getpid()).resident
export(task, Stored(folder / "model.safetensors"), folder / "large")
peak = memory_of(os.getpid()).largest - before
few, many = (open_package(folder / name, {"own": key.public_key()}) for name in ("small", "large"))
beside = asked(many) - asked(few)
ModelSession(few, threads=1)
return_freed_memory()
before = memory_of(os.getpid()).resident
session = ModelSession(many, threads=1)
return_freed_memory()
print(json.dumps([peak, beside, memory_of(os.getpid()).resident - before]))
"""


@pytest.mark.slow
def test_an_export_and_a_loaded_model_hold_few_copies(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights_io.save(path, initial_weights(small_task(network=NETWORK)))
    argv = [sys.executable, "-c", EXPORT, str(tmp_path)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    model = path.stat().st_size / MIB
    peak, beside, loaded = (size / model for size in json.loads(done.stdout))
    assert peak < 2.0
    assert beside < 2.8
    assert loaded < 1.6
