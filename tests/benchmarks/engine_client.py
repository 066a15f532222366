"""A site of the engine's own kind: its client interface for PyTorch around the same training as ours.

The engine runs this file inside its job process. Its only argument is the folder with task and cases.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import nvflare.client as flare
import torch

from tests.benchmarks.engine_model import Network
from trainer import metrics
from trainer.engine.exchange import load_dataset
from trainer.local_round import use_threads
from trainer.optimisation import Budget, probabilities, train
from trainer.ports import silent
from trainer.task import TaskSpec

SEED: Final = 1


def main(folder: Path) -> None:
    """Measure the global model and train it, as long as rounds come; note how long each training took."""
    use_threads(1)
    task = TaskSpec.from_json(json.loads((folder / "task.json").read_text(encoding="utf-8")))
    flare.init()
    site = flare.get_site_name()
    dataset = load_dataset(folder, site)
    network = Network(task.network.name, task.network.parameters)
    seconds: list[float] = []
    while flare.is_running():
        received: Any = flare.receive()
        if received is None:
            break
        network.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        scores = probabilities(network, dataset.validation.x)
        measured = metrics.measure(dataset.validation.y, scores, task.threshold)
        started = time.perf_counter()
        budget = Budget(task.local.local_steps, task.local.batch_size)
        loss = train(network, dataset.train, task.local, budget, seed=SEED, proximal_mu=0.0, progress=silent)
        seconds.append(time.perf_counter() - started)
        (folder / f"{site}.seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
        flare.send(
            flare.FLModel(
                params=network.state_dict(),
                metrics={"loss": loss, "log_loss": measured.log_loss or 0.0},
                meta={"NUM_STEPS_CURRENT_ROUND": len(dataset.train)},
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
