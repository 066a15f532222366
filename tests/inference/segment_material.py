"""Cards and models that mark segments, made by tests themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pydicom import dcmread

from inference.card import SEGMENTATION_2D, SEGMENTATION_3D, ModelCard, ModelInput, ModelOutput
from inference.preprocessing import PreprocessingSpec
from inference.results.context import SegmentContext
from inference.segments import Segment, VolumeSpec
from inference.study import build_segment_results, segment_study
from tests.trainer import masked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom import Dataset

    from inference.session import ModelSession
    from inference.study import SegmentOutcome

GREY = Segment(1, "HIP-ANT", "99CLOISTER", "Anterior hippocampus", "Anterior hippocampus")
WHITE = Segment(2, "HIP-POST", "99CLOISTER", "Posterior hippocampus", "Posterior hippocampus")
SIZE = (16, 24, 16)
# Of each class, how its logit grows with the input, and where it starts: dark, grey, white.
SCALE, START = (-4.0, 0.0, 4.0), (0.0, 0.5, -3.0)


def make_segment_card(**changes: Any) -> ModelCard:
    """A card of volumes, or with ``volume=None`` of pictures; parts of input and output by their name."""
    volume = changes.pop("volume", VolumeSpec(SIZE[0], (1.0, 1.0, 1.0)))
    spec = changes.pop("spec", PreprocessingSpec(rows=SIZE[1], columns=SIZE[2]))
    modalities = changes.pop("modalities", ("MR",))
    values: dict[str, Any] = {
        "name": "hippocampus",
        "version": "1.0",
        "task": SEGMENTATION_2D if volume is None else SEGMENTATION_3D,
        "input": ModelInput(modalities, spec, volume=volume),
        "output": ModelOutput(name="segments", segments=changes.pop("segments", (GREY, WHITE))),
        "intended_use": "Research use only.",
        "provenance": {"rounds": 3},
    }
    return ModelCard(**{**values, **changes})


def make_segment_model(
    size: Sequence[int] = SIZE,
    *,
    scale: Sequence[float] = SCALE,
    start: Sequence[float] = START,
    last: str = "Softmax",
) -> ModelProto:
    """A model that looks at each voxel alone: dark is nothing, grey one segment, white the other."""
    classes, axes = len(scale), (1,) * len(size)
    factors = np.array(scale, dtype=np.float32).reshape(1, classes, *axes)
    offsets = np.array(start, dtype=np.float32).reshape(1, classes, *axes)
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "start"], ["logits"]),
        helper.make_node(last, ["logits"], ["segments"], **({"axis": 1} if last == "Softmax" else {})),
    ]
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *size])],
        [helper.make_tensor_value_info("segments", TensorProto.FLOAT, ["n", classes, *size])],
        [numpy_helper.from_array(factors, "scale"), numpy_helper.from_array(offsets, "start")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def make_segment_onnx(**changes: Any) -> bytes:
    """The bytes of :func:`make_segment_model`."""
    content: bytes = make_segment_model(**changes).SerializeToString()
    return content


DRAWN = masked.draw(3)
A, B = np.deg2rad(20), np.deg2rad(35)
OBLIQUE = (np.cos(A), np.sin(A), 0.0, -np.sin(A) * np.cos(B), np.cos(A) * np.cos(B), np.sin(B))
SERIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "from head to foot, columns to the right": {"orientation": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
    "sagittal": {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)},
    "oblique": {"orientation": OBLIQUE},
    "anisotropic": {"spacing_mm": (1.0, 0.6, 0.8)},
    "oblique and anisotropic": {"orientation": OBLIQUE, "spacing_mm": (0.9, 0.5, 1.0)},
}


def context_of(session: ModelSession, outcome: SegmentOutcome, **changes: Any) -> SegmentContext:
    values: dict[str, Any] = {
        "card": session.card,
        "package_sha256": session.package_sha256,
        "revision_id": "0" * 32,
        "made_at": datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        "software_version": "0.1.0",
        "unreadable": len(outcome.unreadable),
        "marked": outcome.marked,
    }
    return SegmentContext(**{**values, **changes})


def made(
    session: ModelSession, folder: Path, instances: Sequence[Dataset]
) -> tuple[SegmentContext, dict[str, list[Dataset]]]:
    """Store a study, run the model and write its results; return what is read back, by kind."""
    paths = masked.save(folder / "study", list(instances))
    context = context_of(session, segment_study(session, paths, lambda: None))
    found: dict[str, list[Dataset]] = {}
    for number, (kind, ds) in enumerate(build_segment_results(context)):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        found.setdefault(kind, []).append(dcmread(folder / f"{number}.dcm"))
    return context, found


def pictures_card(**changes: Any) -> ModelCard:
    return make_segment_card(volume=None, **changes)
