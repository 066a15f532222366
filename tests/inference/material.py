"""Models, cards and radiographs that tests make themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from inference.card import Finding, ModelCard, ModelInput, ModelOutput
from inference.preprocessing import PreprocessingSpec
from inference.results.context import Answer, ResultContext

if TYPE_CHECKING:
    from collections.abc import Sequence

EDGE = 32
PNEUMONIA = Finding("233604007", "SCT", "Pneumonia", "pneumonia", 0.5)
EFFUSION = Finding("60046008", "SCT", "Pleural effusion", "effusion", 0.3)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def make_card(**changes: Any) -> ModelCard:
    """A card; ``spec``, ``modalities``, ``sop_classes``, ``findings`` go where they belong."""
    spec = changes.pop("spec", PreprocessingSpec(rows=EDGE, columns=EDGE))
    modalities = changes.pop("modalities", ("CR", "DX", "MG"))
    sop_classes = changes.pop("sop_classes", ())
    output = ModelOutput(changes.pop("findings", (PNEUMONIA,)), activation=changes.pop("activation", "none"))
    values: dict[str, Any] = {
        "name": "chest",
        "version": "1.0",
        "input": ModelInput(modalities, spec, sop_classes),
        "output": output,
        "intended_use": "Research use only.",
        "provenance": {"rounds": 3},
    }
    return ModelCard(**{**values, **changes})


def make_model(
    findings: int = 1, gain: float = 0.02, bias: float = 0.0, *, sigmoid: bool = True
) -> ModelProto:
    """A tiny classifier: the brighter the picture, the more probable."""
    weights = numpy_helper.from_array(np.full((EDGE * EDGE, findings), gain, dtype=np.float32), "weights")
    biases = numpy_helper.from_array(np.full(findings, bias, dtype=np.float32), "biases")
    last = "logit" if sigmoid else "probability"
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "biases"], [last]),
    ]
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["logit"], ["probability"]))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, EDGE, EDGE])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", findings])],
        [weights, biases],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def make_endless_model() -> ModelProto:
    """A classifier that adds to its answer for days before it gives it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["goes_on"]),
            helper.make_node("Cos", ["so_far"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so_far", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    model = make_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**40, dtype=np.int64), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=bool), "yes"))
    model.graph.node[-1].output[0] = "first"
    model.graph.node.append(helper.make_node("Loop", ["turns", "yes", "first"], ["probability"], body=body))
    return model


def make_onnx(**changes: Any) -> bytes:
    """The bytes of :func:`make_model`."""
    content: bytes = make_model(**changes).SerializeToString()
    return content


def radiograph(rows: int = 60, columns: int = 48) -> npt.NDArray[np.uint16]:
    """A smooth 12-bit picture with a bright spot, the same every time."""
    y, x = np.mgrid[0:rows, 0:columns]
    field = 900 + 1200 * np.sin(y / rows * np.pi) * np.sin(x / columns * np.pi)
    spot = 1500 * np.exp(-(((y - rows * 0.6) / 6) ** 2 + ((x - columns * 0.35) / 6) ** 2))
    picture: npt.NDArray[np.uint16] = np.clip(field + spot, 0, 4095).astype(np.uint16)
    return picture


def make_instance(pixels: npt.NDArray[Any] | None = None, **changes: Any) -> Dataset:
    """A Digital X-Ray instance with file meta information; ``changes`` are attributes, None removes one."""
    picture = radiograph() if pixels is None else pixels
    ds = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": DX,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "Modality": "DX",
        "PatientName": "Meadow^Clara^^Dr",
        "PatientID": "P-1071",
        "IssuerOfPatientID": "WEST",
        "PatientBirthDate": "19610305",
        "PatientSex": "F",
        "StudyDate": "20240117",
        "StudyTime": "101500",
        "StudyID": "77",
        "AccessionNumber": "A-99",
        "ReferringPhysicianName": "Ward^B",
        "Rows": picture.shape[0],
        "Columns": picture.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": picture.astype("<u2").tobytes(),
    }
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = UID(str(ds.get("SOPClassUID", DX)))
    ds.file_meta.MediaStorageSOPInstanceUID = UID(str(ds.get("SOPInstanceUID", "1.2")))
    return ds


def make_context(sources: Sequence[Dataset] | None = None, **changes: Any) -> ResultContext:
    """The context of a result; ``probabilities`` is one tuple for each source."""
    given = [make_instance()] if sources is None else list(sources)
    probabilities = changes.pop("probabilities", [(0.873,)] * len(given))
    values: dict[str, Any] = {
        "answers": tuple(Answer(ds, tuple(row)) for ds, row in zip(given, probabilities, strict=True)),
        "card": make_card(),
        "package_sha256": "ab" * 32,
        "revision_id": "0" * 32,
        "made_at": datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        "software_version": "0.1.0",
    }
    return ResultContext(**{**values, **changes})
