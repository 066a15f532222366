"""Cards and models of anomalies, made by tests themselves: a model that makes everything black."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from inference.card import ANOMALY_2D, ModelCard, ModelInput, ModelOutput
from inference.deviations import DEVIATION, Threshold
from inference.preprocessing import PreprocessingSpec

SIZE: Final = (24, 16)
SPEC: Final = PreprocessingSpec(rows=SIZE[0], columns=SIZE[1])
# Input is -2 (black) to 2 (white): a residual of 2.8 is 70 % of black to white.
THRESHOLD: Final = Threshold(2.8, healthy_share=0.98, pictures=12, people=3)
GREY_THRESHOLD: Final = 0.7


def make_deviation_card(**changes: Any) -> ModelCard:
    """A card of pictures; parts of input and output by their name."""
    threshold = changes.pop("threshold", THRESHOLD)
    modalities = changes.pop("modalities", ("MR",))
    spec = changes.pop("spec", SPEC)
    values: dict[str, Any] = {
        "name": "brain",
        "version": "1.0",
        "task": ANOMALY_2D,
        "input": ModelInput(modalities, spec),
        "output": ModelOutput(name="residual", segments=(DEVIATION,), threshold=threshold),
        "intended_use": "Research use only.",
        "provenance": {"rounds": 3},
    }
    return ModelCard(**{**values, **changes})


def make_deviation_model(size: tuple[int, int] = SIZE, *, black: float = -2.0) -> ModelProto:
    """A model whose answer is how much lighter than black each pixel is."""
    nodes = [helper.make_node("Sub", ["image", "black"], ["residual"])]
    graph = helper.make_graph(
        nodes,
        "black",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *size])],
        [helper.make_tensor_value_info("residual", TensorProto.FLOAT, ["n", 1, *size])],
        [numpy_helper.from_array(np.array(black, dtype=np.float32), "black")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def make_deviation_onnx(**changes: Any) -> bytes:
    """The bytes of :func:`make_deviation_model`."""
    content: bytes = make_deviation_model(**changes).SerializeToString()
    return content
