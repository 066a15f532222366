"""What every exported graph has to be, whatever it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from pathlib import Path


def checked_source(folder: Path, answer: str) -> Any:
    """Return the one input of a model with one answer of this name, and operators of the standard alone."""
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == [""]
    (source,), (found,) = model.graph.input, model.graph.output
    assert (source.name, source.type.tensor_type.shape.dim[0].dim_param) == ("image", "n")
    assert found.name == answer
    return source
