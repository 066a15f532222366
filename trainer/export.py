"""From trained weights to a model package, checked in the runtime that will serve it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from inference.package import Finding, ModelCard, ModelInput, ModelOutput, Package, write_package
from inference.session import ModelSession
from trainer.errors import ExportError
from trainer.networks import with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from trainer.datasets import Samples
    from trainer.task import TaskSpec

OPSET: Final = 18
PARITY_LIMIT: Final = 1e-4
NO_PACKAGE: Final = "only a classification has a model package yet; expected a classification task"
INTENDED_USE: Final = "Research use only. Not a medical device; not for diagnosis."


@dataclass(frozen=True)
class Exported:
    """A written model package and how far the runtime strays from torch on real inputs."""

    package_sha256: str
    parity_max_abs: float


def export_onnx(task: TaskSpec, weights: Mapping[str, NDArray[Any]], samples: Samples) -> tuple[bytes, float]:
    """Export to ONNX and compare with torch.

    The graph takes ``image``, float32 (n, 1, rows, columns), and gives ``probability``, float32 (n, 1), with
    the sigmoid inside; n is free.

    Parameters
    ----------
    task : TaskSpec
        The network and its input.
    weights : Mapping
        The trained model.
    samples : Samples
        Real inputs, at least one.

    Returns
    -------
    bytes, float
        The model and the largest absolute difference of a probability.

    Raises
    ------
    ExportError
        If there is no sample, or the difference is above 1e-4.
    """
    if task.finding is None:
        raise ExportError(NO_PACKAGE)
    if len(samples) == 0:
        raise ExportError("no sample to compare the exported model on; expected at least one")
    model = torch.nn.Sequential(with_weights(task, weights), torch.nn.Sigmoid()).eval()
    content = _to_onnx(model, task)
    x = np.ascontiguousarray(samples.x)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()
    found = _served(task, content, x)
    parity = float(np.max(np.abs(found.astype(np.float64) - expected)))
    if not parity <= PARITY_LIMIT:
        raise ExportError(f"the exported model strays from the trained one; expected at most {PARITY_LIMIT}")
    return content, parity


def export_package(
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    samples: Samples,
    folder: Path,
    *,
    version: str,
    signing_key: Ed25519PrivateKey,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Exported:
    """Export, check and write a signed model package; raises ExportError."""
    content, parity = export_onnx(task, weights, samples)
    card = model_card(task, version, provenance, metrics)
    return Exported(write_package(folder, content, card, signing_key), parity)


def model_card(
    task: TaskSpec, version: str, provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a model of this task; raises ExportError for a task without a finding."""
    if task.finding is None:
        raise ExportError(NO_PACKAGE)
    finding = Finding(
        code=task.finding.code,
        scheme=task.finding.scheme,
        meaning=task.finding.meaning,
        label=task.label,
        threshold=task.threshold,
    )
    return ModelCard(
        name=task.name,
        version=version,
        input=ModelInput(modalities=task.modalities, preprocessing=task.preprocessing),
        output=ModelOutput(findings=(finding,)),
        intended_use=INTENDED_USE,
        provenance=provenance,
        metrics=metrics,
    )


def _to_onnx(model: torch.nn.Module, task: TaskSpec) -> bytes:
    example = torch.zeros((2, 1, task.preprocessing.rows, task.preprocessing.columns))
    with tempfile.TemporaryDirectory(prefix="cloister-export-") as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        # The tracing exporter needs a fifth of the other one's time and memory; torch is pinned.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["image"],
            output_names=["probability"],
            dynamic_axes={"image": {0: "n"}, "probability": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
        return path.read_bytes()


def _served(task: TaskSpec, content: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the model as the inference worker would."""
    with tempfile.TemporaryDirectory(prefix="cloister-export-") as name:
        package = Package(model_card(task, "0", {}, {}), Path(name), sha256="", signer="")
        package.model_path.write_bytes(content)
        session = ModelSession(package, threads=1)
        parts = [session.run(x[first : first + 64]) for first in range(0, len(x), 64)]
    return np.concatenate(parts)
