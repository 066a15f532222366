"""From trained weights to a model package, checked in the runtime that will serve it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch

from inference.card import ANOMALY_2D, CLASSIFICATION, SEGMENTATION_2D, SEGMENTATION_3D
from inference.deviations import DEVIATION, Threshold
from inference.package import Finding, ModelCard, ModelInput, ModelOutput, Package, sign_package
from inference.segments import ANATOMICAL_STRUCTURE, Category, Segment, VolumeSpec
from inference.session_process import SessionProcess
from trainer import onnx_file
from trainer.anomaly.measures import AnomalyMetrics
from trainer.anomaly.network import Strayed
from trainer.errors import ExportError
from trainer.networks import memory_of, with_weights
from trainer.objectives import batch_size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from trainer.anomaly.spec import AnomalySpec
    from trainer.datasets import Samples
    from trainer.task import TaskSpec

OPSET: Final = 18
PARITY_LIMIT: Final = 1e-4
PARITY_VOXELS: Final = 1e-4
"""Largest share of voxels of which the likeliest class may differ: those between two almost equal ones.

Of anomalies: that are on the other side of the threshold.
"""
NO_THRESHOLD: Final = (
    "no healthy held-out case to take the threshold of anomalies from; expected people without a mask of an "
    "anomaly in the held-out part"
)
INTENDED_USE: Final = "Research use only. Not a medical device; not for diagnosis."
_BATCH: Final = 64


@dataclass(frozen=True)
class Exported:
    """A written model package and how far the runtime strays from torch on real inputs.

    ``parity_max_abs`` is of a probability, or of a residual of anomalies; ``parity_voxels`` the share of
    voxels that become of another class, or come to the threshold's other side, 0 of a classification.
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
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    samples: Samples,
    folder: Path,
    threshold: Threshold | None = None,
    give_back: Callable[[], None] = lambda: None,
) -> Parity:
    """Write ``model.onnx`` into a folder and compare it with torch.

    The graph takes ``image``, float32 (n, 1, *size), and gives ``probability``, float32 (n, 1), with the
    sigmoid inside; of a segmentation ``segments``, float32 (n, classes, *size), with the softmax inside; of
    anomalies ``residual``, float32 (n, 1, *size), with the difference to the input inside. n is free.

    Parameters
    ----------
    task : TaskSpec
        The network and its input.
    weights : Mapping
        The trained model.
    samples : Samples
        Real inputs, at least one.
    folder : Path
        There already.
    threshold : Threshold, optional
        Of an anomaly task, which has no model without.
    give_back : callable
        Called when torch's network is gone and a runtime is about to load the model.

    Returns
    -------
    Parity
        How far the model strays.

    Raises
    ------
    ExportError
        If there is no sample or no threshold, a probability or residual differs by more than 1e-4, or more
        than one voxel of 10,000 becomes of another class or of the threshold's other side; or if the file
        would be larger than 2 GiB. No model is left then.
    """
    if len(samples) == 0:
        raise ExportError("no sample to compare the exported model on; expected at least one")
    package = Package(_card(task, threshold), folder, sha256="", signer="")
    try:
        return _near(_exported(task, weights, package, np.ascontiguousarray(samples.x), give_back))
    except BaseException:
        package.model_path.unlink(missing_ok=True)
        raise


def _near(parity: Parity) -> Parity:
    if not (parity.max_abs <= PARITY_LIMIT and parity.voxels <= PARITY_VOXELS):
        raise ExportError(
            "the exported model strays from the trained one; expected probabilities or residuals within "
            f"{PARITY_LIMIT} and another class or side at {PARITY_VOXELS} of all voxels at most"
        )
    return parity


def _exported(
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    package: Package,
    x: NDArray[np.float32],
    give_back: Callable[[], None],
) -> Parity:
    """Write a package's model and compare it; torch's network is gone before a runtime loads the model."""
    with tempfile.TemporaryFile(dir=package.folder) as answers:
        model = _answering(task, with_weights(task, weights)).eval()
        _to_onnx(model, task, package.card.output.name, package.model_path)
        _answer(model, x, answers)
        del model
        give_back()
        answers.seek(0)
        return _compare(answers, package, x)


def export_package(
    task: TaskSpec,
    weights: Mapping[str, NDArray[Any]],
    samples: Samples,
    folder: Path,
    *,
    card: ModelCard,
    signing_key: Ed25519PrivateKey,
    give_back: Callable[[], None] = lambda: None,
) -> Exported:
    """Export, check and write a signed package with this card of :func:`model_card`.

    Raises and calls back as :func:`export_onnx` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parity = export_onnx(task, weights, samples, folder, card.threshold, give_back)
    return Exported(sign_package(folder, card, signing_key), parity.max_abs, parity.voxels)


def model_card(
    task: TaskSpec, version: str, provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a model of this task; of anomalies with the threshold that ``metrics`` found.

    Raises
    ------
    ExportError
        If a model of anomalies has no threshold.
    """
    threshold = None if task.anomaly is None else _threshold(task.anomaly, metrics)
    return replace(_card(task, threshold), version=version, provenance=provenance, metrics=metrics)


def _threshold(spec: AnomalySpec, metrics: Mapping[str, Any]) -> Threshold:
    """Read the threshold out of the figures of the held-out part."""
    found = AnomalyMetrics.from_json(metrics)
    if not found.threshold or not found.healthy:
        raise ExportError(NO_THRESHOLD)
    return Threshold(found.threshold, spec.healthy_share, found.healthy, found.healthy_subjects)


def _answering(task: TaskSpec, network: torch.nn.Module) -> torch.nn.Module:
    """Return the network with what makes its last layer an answer."""
    if task.anomaly is not None:
        return Strayed(network)
    last = torch.nn.Sigmoid() if task.segmentation is None else torch.nn.Softmax(dim=1)
    return torch.nn.Sequential(network, last)


def _card(task: TaskSpec, threshold: Threshold | None) -> ModelCard:
    kind, volume, output = _answer_of(task, threshold)
    return ModelCard(
        name=task.name,
        version="0",
        task=kind,
        input=ModelInput(modalities=task.modalities, preprocessing=task.preprocessing, volume=volume),
        output=output,
        intended_use=INTENDED_USE,
    )


def _answer_of(task: TaskSpec, threshold: Threshold | None) -> tuple[str, VolumeSpec | None, ModelOutput]:
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
        if threshold is None:
            raise ExportError(NO_THRESHOLD)
        return ANOMALY_2D, None, ModelOutput(name="residual", segments=(DEVIATION,), threshold=threshold)
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


def _to_onnx(model: torch.nn.Module, task: TaskSpec, output: str, path: Path) -> None:
    """Write the graph first, then over it the whole: what is computed of weights is left to the runtime."""
    example = torch.zeros((2, 1, *task.size))
    with warnings.catch_warnings():
        # The tracing exporter needs a fifth of the other one's time and memory; torch is pinned.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            export_params=False,
            do_constant_folding=False,
            keep_initializers_as_inputs=True,  # or weights that happen to be equal become one
            input_names=["image"],
            output_names=[output],
            dynamic_axes={"image": {0: "n"}, output: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
    onnx_file.write(path, onnx.load(path), memory_of(model))


def _answer(model: torch.nn.Module, x: NDArray[np.float32], answers: IO[bytes]) -> None:
    """Write down what torch answers: of volumes all answers together are large."""
    for part in _parts(x):
        with torch.inference_mode():
            answers.write(np.ascontiguousarray(model(torch.from_numpy(part)).numpy()).data)


def _compare(answers: IO[bytes], package: Package, x: NDArray[np.float32]) -> Parity:
    """Answer as an inference worker would and compare with what was written down."""
    furthest, differing, voxels = 0.0, 0, 0
    card = package.card
    with SessionProcess(package) as session:
        for part in _parts(x):
            found = session.run(part)
            expected = np.frombuffer(answers.read(found.nbytes), np.float32).reshape(found.shape)
            strays = float(np.max(np.abs(found.astype(np.float64) - expected)))
            furthest = max(furthest, strays) if np.isfinite(strays) else float("inf")
            if card.segmenting:
                differing += int((_marks(card, found) != _marks(card, expected)).sum())
                voxels += found[:, 0].size
    return Parity(furthest, differing / max(1, voxels))


def _parts(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    step = batch_size_of(x, _BATCH)
    return (x[first : first + step] for first in range(0, len(x), step))


def _marks(card: ModelCard, answer: NDArray[np.float32]) -> NDArray[Any]:
    """Return the class of each voxel, or whether it is above the threshold."""
    if card.threshold is None:
        return np.asarray(answer.argmax(axis=1))
    return np.asarray(answer[:, 0] > card.threshold.value)
