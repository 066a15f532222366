"""An ONNX file that is written weight by weight is the message that would hold them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from trainer import onnx_file
from trainer.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES = st.sampled_from(["<f4", ">f4", "<f8", "<i8", "|u1"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40)


def model_of(weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """Return a model with weights as inputs, each of which goes into an output of its own."""
    kinds = {
        name: helper.np_dtype_to_tensor_dtype(array.dtype.newbyteorder("="))
        for name, array in weights.items()
    }
    inputs = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1])]
    inputs += [
        helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in weights.items()
    ]
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name in weights]
    outputs = [helper.make_tensor_value_info(f"{name} out", kinds[name], None) for name in weights]
    graph = helper.make_graph(nodes, "plain", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="test")


@given(st.lists(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)), max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_the_graph_with_its_weights(
    tmp_path_factory: pytest.TempPathFactory, given_arrays: list[NDArray[Any]], turned: bool
) -> None:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    weights = {f"w{i}": array.T if turned else array for i, array in enumerate(given_arrays)}
    model = model_of(weights)
    onnx_file.write(path, model, {**weights, "unused": np.zeros(3)})
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    del expected.graph.input[1:]
    for name, array in weights.items():
        native = np.array(array, array.dtype.newbyteorder("="))
        expected.graph.initializer.append(numpy_helper.from_array(native, name))
    found = onnx.load(path)
    assert found == expected
    assert len(model.graph.input) == 1 + len(weights)
    assert path.stat().st_size == found.ByteSize()
    first = path.read_bytes()
    onnx_file.write(path, model, weights)
    assert path.read_bytes() == first


def test_a_model_beyond_what_protobuf_takes_is_refused_before_it_is_written(tmp_path: Path) -> None:
    wide = np.broadcast_to(np.float32(0), (2**29 - 1,))
    with pytest.raises(ExportError, match="less than 2 GiB"):
        onnx_file.write(tmp_path / "model.onnx", model_of({"wide": wide}), {"wide": wide})
    assert list(tmp_path.iterdir()) == []
