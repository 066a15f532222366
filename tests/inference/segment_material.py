"""Cards and models that mark segments, made by tests themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from inference.card import SEGMENTATION_2D, SEGMENTATION_3D, ModelCard, ModelInput, ModelOutput
from inference.preprocessing import PreprocessingSpec
from inference.segments import Segment, VolumeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

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
