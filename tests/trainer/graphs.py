"""What every exported graph has to be, whatever it answers."""

from __future__ import annotations

from typing import Any

import onnx


def checked_source(content: bytes, answer: str) -> Any:
    """Return the one input of a graph with one answer of this name, and operators of the standard alone."""
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert [opset.domain for opset in model.opset_import] == [""]
    (source,), (found,) = model.graph.input, model.graph.output
    assert (source.name, source.type.tensor_type.shape.dim[0].dim_param) == ("image", "n")
    assert found.name == answer
    return source
