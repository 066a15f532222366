"""From trained weights to a model package, checked in the runtime that will serve it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from inference.card import CLASSIFICATION, SEGMENTATION_2D, SEGMENTATION_3D
from inference.package import Finding, ModelCard, ModelInput, ModelOutput, Package, write_package
from inference.segments import ANATOMICAL_STRUCTURE, Category, Segment, VolumeSpec
from inference.session import ModelSession
from trainer.errors import ExportError
from trainer.networks import with_weights
from trainer.objectives import batch_size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from trainer.datasets import Samples
    from trainer.task import TaskSpec

OPSET: Final = 18
PARITY_LIMIT: Final = 1e-4
PARITY_VOXELS: Final = 1e-4
"""Largest share of voxels of which the likeliest class may differ: those between two almost equal ones."""
NO_PACKAGE: Final = (
    "an anomaly task has no model package: its answer is how far a picture strays, which no result says; "
    "expected a classification or a segmentation"
)
INTENDED_USE: Final = "Research use only. Not a medical device; not for diagnosis."
_BATCH: Final = 64


@dataclass(frozen=True)
class Exported:
    """A written model package and how far the runtime strays from torch on real inputs.

    ``parity_max_abs`` is of a probability; ``parity_voxels`` the share of voxels that become of another
    class, 0 of a classification.
    """

    package_sha256: str
    parity_max_abs: float
    parity_voxels: float = 0.0


@dataclass(frozen=True)
class Parity:
    """How far the runtime strays from torch, as in :class:`Exported`."""

    max_abs: float
    voxels: float = 0.0


def export_onnx(
    task: TaskSpec, weights: Mapping[str, NDArray[Any]], samples: Samples
) -> tuple[bytes, Parity]:
    """Export to ONNX and compare with torch.

    The graph takes ``image``, float32 (n, 1, *size), and gives ``probability``, float32 (n, 1), with the
    sigmoid inside; of a segmentation ``segments``, float32 (n, classes, *size), with the softmax inside. n is
    free.

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
    bytes, Parity
        The model and how far it strays.

    Raises
    ------
    ExportError
        If there is no sample, a probability differs by more than 1e-4, more than one voxel of 10,000 becomes
        of another class, or the task is one of anomalies.
    """
    if task.anomaly is not None:
        raise ExportError(NO_PACKAGE)
    if len(samples) == 0:
        raise ExportError("no sample to compare the exported model on; expected at least one")
    last = torch.nn.Sigmoid() if task.segmentation is None else torch.nn.Softmax(dim=1)
    model = torch.nn.Sequential(with_weights(task, weights), last).eval()
    content = _to_onnx(model, task)
    parity = _compare(model, task, content, np.ascontiguousarray(samples.x))
    if not (parity.max_abs <= PARITY_LIMIT and parity.voxels <= PARITY_VOXELS):
        raise ExportError(
            "the exported model strays from the trained one; expected probabilities within "
            f"{PARITY_LIMIT} and another class at {PARITY_VOXELS} of all voxels at most"
        )
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
    return Exported(write_package(folder, content, card, signing_key), parity.max_abs, parity.voxels)


def model_card(
    task: TaskSpec, version: str, provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a model of this task; raises ExportError for one of anomalies."""
    kind, volume, output = _answer_of(task)
    return ModelCard(
        name=task.name,
        version=version,
        task=kind,
        input=ModelInput(modalities=task.modalities, preprocessing=task.preprocessing, volume=volume),
        output=output,
        intended_use=INTENDED_USE,
        provenance=provenance,
        metrics=metrics,
    )


def _answer_of(task: TaskSpec) -> tuple[str, VolumeSpec | None, ModelOutput]:
    if task.finding is not None:
        finding = Finding(
            code=task.finding.code,
            scheme=task.finding.scheme,
            meaning=task.finding.meaning,
            label=task.label,
            threshold=task.threshold,
        )
        return CLASSIFICATION, None, ModelOutput(findings=(finding,))
    spec = task.segmentation
    if spec is None:
        raise ExportError(NO_PACKAGE)
    segments = tuple(
        Segment(
            number=number,
            code=one.code,
            scheme=one.scheme,
            meaning=one.meaning,
            label=one.meaning,
            category=ANATOMICAL_STRUCTURE if one.category is None else Category(**asdict(one.category)),
        )
        for number, one in enumerate(spec.segments, start=1)
    )
    output = ModelOutput(name="segments", segments=segments)
    if spec.spatial_dimensions == 2:
        return SEGMENTATION_2D, None, output
    slices, rows, columns = spec.spacing_mm
    return SEGMENTATION_3D, VolumeSpec(spec.slices, (slices, rows, columns)), output


def _to_onnx(model: torch.nn.Module, task: TaskSpec) -> bytes:
    example = torch.zeros((2, 1, *task.size))
    output = _answer_of(task)[2].name
    with tempfile.TemporaryDirectory(prefix="cloister-export-") as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        # The tracing exporter needs a fifth of the other one's time and memory; torch is pinned.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["image"],
            output_names=[output],
            dynamic_axes={"image": {0: "n"}, output: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
        return path.read_bytes()


def _compare(model: torch.nn.Module, task: TaskSpec, content: bytes, x: NDArray[np.float32]) -> Parity:
    """Run both as an inference worker would, part by part: of volumes all answers together are large."""
    furthest, differing, voxels = 0.0, 0, 0
    with tempfile.TemporaryDirectory(prefix="cloister-export-") as name:
        package = Package(model_card(task, "0", {}, {}), Path(name), sha256="", signer="")
        package.model_path.write_bytes(content)
        session = ModelSession(package, threads=1)
        step = batch_size_of(x, _BATCH)
        for first in range(0, len(x), step):
            part = x[first : first + step]
            with torch.inference_mode():
                expected = model(torch.from_numpy(part)).numpy()
            found = session.run(part)
            strays = float(np.max(np.abs(found.astype(np.float64) - expected)))
            furthest = max(furthest, strays) if np.isfinite(strays) else float("inf")
            if task.segmentation is not None:
                differing += int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
                voxels += found[:, 0].size
    return Parity(furthest, differing / max(1, voxels))
