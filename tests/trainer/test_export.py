from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.package import FILES, open_package, pack
from inference.session import ModelSession
from tests.trainer.graphs import checked_source
from tests.trainer.samples import drawn, drawn_dataset, small_task
from trainer import export
from trainer.datasets import Samples
from trainer.errors import ExportError
from trainer.export import export_onnx, export_package
from trainer.local_round import predict, use_threads
from trainer.networks import initial_weights
from trainer.task import NetworkSpec

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.task import TaskSpec

use_threads(1)
TASK = small_task()
BATCH = NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"})


@pytest.mark.parametrize(
    "spec",
    [
        TASK.network,
        BATCH,
        NetworkSpec("densenet"),
        NetworkSpec("densenet", {"norm": "batch"}),
        NetworkSpec("linear"),
    ],
    ids=["resnet", "resnet-batch", "densenet", "densenet-batch", "linear"],
)
def test_the_exported_model_computes_what_torch_computes(spec: NetworkSpec, tmp_path: Path) -> None:
    task = small_task(network=spec)
    parity = export_onnx(task, initial_weights(task), drawn(1, 5, task), tmp_path)
    assert parity.max_abs < 1e-5
    assert parity.voxels == 0
    checked_source(tmp_path, "probability")


def test_the_model_holds_each_array_that_the_network_computes_with_as_it_was_trained(tmp_path: Path) -> None:
    task = small_task(network=BATCH)
    weights = initial_weights(task)
    export_onnx(task, weights, drawn(1, 2, task), tmp_path)
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    found = {one.name: onnx.numpy_helper.to_array(one) for one in tensors}
    expected = {f"0.{name}": array for name, array in weights.items() if "num_batches" not in name}
    assert len(tensors) == len(expected)  # the many zeros and ones among them are equal
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_the_same_weights_make_the_same_package(tmp_path: Path) -> None:
    key, samples = Ed25519PrivateKey.generate(), drawn(2, 3, TASK)
    made = [
        export_package(
            TASK,
            initial_weights(TASK),
            samples,
            tmp_path / name,
            card=export.model_card(TASK, "1", {}, {}),
            signing_key=key,
        )
        for name in ("one", "other")
    ]
    assert made[0] == made[1]
    pack(tmp_path / "one", tmp_path / "one.zip")
    pack(tmp_path / "other", tmp_path / "other.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(FILES)


def test_the_package_serves_the_trained_model_with_its_card(tmp_path: Path) -> None:
    key, weights, samples = Ed25519PrivateKey.generate(), initial_weights(TASK, 3), drawn(2, 70, TASK)
    made = export_package(
        TASK,
        weights,
        samples,
        tmp_path / "package",
        card=export.model_card(TASK, "run-1.3", {"run_id": "run-1", "rounds": 3}, {"auc": 0.9}),
        signing_key=key,
    )
    package = open_package(tmp_path / "package", {"research": key.public_key()})
    assert (package.sha256, package.signer) == (made.package_sha256, "research")
    assert package.card.input.preprocessing == TASK.preprocessing
    assert package.card.input.modalities == TASK.modalities
    assert package.card.output.findings[0].code == "52988006"
    assert (package.card.version, package.card.provenance["rounds"]) == ("run-1.3", 3)
    session = ModelSession(package, threads=1)
    found = session.run(samples.x[:1])
    assert found.shape == (1, 1)
    assert np.allclose(session.run(samples.x)[:, 0], predict(TASK, weights, samples.x), atol=1e-5)


def test_a_model_that_strays_is_not_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    genuine = export._to_onnx

    def wrong(model: torch.nn.Module, task: TaskSpec, output: str, path: Path) -> None:
        with torch.no_grad():
            last = list(model.parameters())[-1]
            last.add_(0.5)
            genuine(model, task, output, path)
            last.sub_(0.5)

    monkeypatch.setattr(export, "_to_onnx", wrong)
    with pytest.raises(ExportError, match="strays"):
        export_onnx(TASK, initial_weights(TASK), drawn_dataset(1, TASK).train, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_real_input_nothing_is_exported(tmp_path: Path) -> None:
    nothing = Samples(np.zeros((0, 1, 32, 32), np.float32), np.zeros(0, np.uint8))
    with pytest.raises(ExportError, match="sample"):
        export_onnx(TASK, initial_weights(TASK), nothing, tmp_path)
