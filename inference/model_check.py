"""What an ONNX file must be before a runtime loads it: self-contained, plain operators, as its card says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from inference.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.card import ModelCard

DOMAINS: Final = ("", "ai.onnx")
_MAX_DEPTH: Final = 60


def check_model(content: bytes, card: ModelCard) -> None:
    """Refuse a model that reaches outside its file or is not what its card declares.

    Parameters
    ----------
    content : bytes
        The ONNX file.
    card : ModelCard
        Names input, output and their shapes.

    Raises
    ------
    PackageError
        ``model.parse``, ``model.external_data``, ``model.domain``, ``model.invalid``, ``model.input`` or
        ``model.output``.
    """
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, TypeError, RecursionError) as error:
        raise PackageError("model.parse", "model.onnx is not an ONNX file") from error
    for message in _messages(model, 0):
        _check_message(message)
    if model.functions or any(entry.domain not in DOMAINS for entry in model.opset_import):
        raise PackageError("model.domain", "only operators of the standard ONNX domain are accepted")
    _check_interface(model.graph, card)
    try:
        onnx.checker.check_model(model, full_check=False)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise PackageError("model.invalid", "the ONNX checker refuses the graph") from error


def _messages(message: Message, depth: int) -> Iterator[Message]:
    """Every message inside, sub-graphs and attributes included, so that nothing hides in a corner."""
    if depth > _MAX_DEPTH:
        raise PackageError("model.parse", "nested too deeply")
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        children = [value] if isinstance(value, Message) else value
        for child in children:
            yield from _messages(child, depth + 1)


def _check_message(message: Message) -> None:
    if isinstance(message, onnx.TensorProto) and (
        message.external_data or message.data_location != onnx.TensorProto.DEFAULT
    ):
        raise PackageError("model.external_data", "weights outside model.onnx are not accepted")
    if isinstance(message, onnx.NodeProto) and message.domain not in DOMAINS:
        raise PackageError("model.domain", "only operators of the standard ONNX domain are accepted")


def _check_interface(graph: Any, card: ModelCard) -> None:
    weights = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    inputs = [value for value in graph.input if value.name not in weights]
    size = card.input.size
    if [value.name for value in inputs] != [card.input.name]:
        raise PackageError("model.input", "the graph's inputs are not the one that the card declares")
    if not _is_tensor(inputs[0], (1, *size)):
        raise PackageError("model.input", f"expected float32 of shape {_shape((1, *size))}")
    if [value.name for value in graph.output] != [card.output.name]:
        raise PackageError("model.output", "the graph's outputs are not the one that the card declares")
    if not _is_tensor(graph.output[0], card.answer_shape):
        raise PackageError("model.output", f"expected float32 of shape {_shape(card.answer_shape)}")


def _shape(sizes: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, sizes))})"


def _is_tensor(value: Any, sizes: tuple[int, ...]) -> bool:
    """Whether it is a float32 tensor whose sizes after the first are these; the first must be free."""
    if value.type.WhichOneof("value") != "tensor_type":
        return False
    tensor = value.type.tensor_type
    dims = list(tensor.shape.dim)
    if (
        tensor.elem_type != onnx.TensorProto.FLOAT
        or len(dims) != len(sizes) + 1
        or dims[0].HasField("dim_value")
    ):
        return False
    return all(
        not dim.HasField("dim_value") or dim.dim_value == size
        for dim, size in zip(dims[1:], sizes, strict=True)
    )
