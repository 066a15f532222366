"""An ONNX file of a graph without weights, and of weights that are written one after the other.

PyTorch's exporter holds a model four times over: its tensors, all of them in one message, that message's
bytes, and Python's copy of those. Here weights go from where they lie to the file. It is what serialising the
whole message would make but for the order of its fields, which protobuf leaves free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from trainer.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES: Final = 2**31 - 1
"""What a protobuf message may measure."""
_LENGTH_DELIMITED: Final = 2  # protobuf's wire type of bytes and messages


def write(path: Path, model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]]) -> None:
    """Write a model; the same graph and weights give the same bytes.

    Parameters
    ----------
    path : Path
        Replaced when it exists.
    model : ModelProto
        Inputs of its graph that are among the weights become initializers.
    weights : Mapping
        What the graph has no input for is left out.

    Raises
    ------
    ExportError
        If the file would be larger than 2 GiB.
    """
    rest, graph = onnx.ModelProto(), onnx.GraphProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    graph.CopyFrom(model.graph)
    graph.ClearField("input")
    graph.input.extend(one for one in model.graph.input if one.name not in weights)
    inside = {one.name: weights[one.name] for one in model.graph.input if one.name in weights}
    heads = {name: _head(name, array) for name, array in inside.items()}
    plain = graph.SerializeToString(deterministic=True)
    graph_bytes = len(plain) + sum(len(heads[name]) + array.nbytes for name, array in inside.items())
    start = rest.SerializeToString(deterministic=True)
    start += _field(onnx.ModelProto.GRAPH_FIELD_NUMBER, graph_bytes)
    if len(start) + graph_bytes > MAX_BYTES:
        raise ExportError("the model does not fit in an ONNX file; expected less than 2 GiB")
    with path.open("wb") as file:
        file.write(start + plain)
        for name, array in inside.items():
            file.write(heads[name])
            lying = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            file.write(lying.reshape(-1).view(np.uint8).data)


def _head(name: str, array: NDArray[Any]) -> bytes:
    """Return what comes before an array's numbers, as a field of the graph."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype.newbyteorder("="))
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=kind)
    head: bytes = tensor.SerializeToString(deterministic=True)
    head += _field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, array.nbytes)
    return _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + array.nbytes) + head


def _field(number: int, size: int) -> bytes:
    """Return how a field of so many bytes begins."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
