"""The model card, ``model.json``: what a model takes and answers, what it is for, where it comes from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from inference.deviations import Threshold, read_threshold
from inference.errors import PackageError, PreprocessingError
from inference.fields import check_code, check_text, is_number, read_list, read_mapping, read_object
from inference.preprocessing import PreprocessingSpec
from inference.segments import (
    MAX_VOXELS,
    Segment,
    VolumeSpec,
    check_segments,
    read_segments,
    read_volume_spec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = "cloister-model/1"
SEGMENTS_FORMAT: Final = "cloister-model/2"  # what marks segments; a reader of the first alone refuses it
RESIDUAL_FORMAT: Final = "cloister-model/3"  # what marks where a picture differs from what was learnt
CLASSIFICATION: Final = "classification-2d"
SEGMENTATION_2D: Final = "segmentation-2d"
SEGMENTATION_3D: Final = "segmentation-3d"
ANOMALY_2D: Final = "anomaly-2d"
TASKS: Final = (CLASSIFICATION, SEGMENTATION_2D, SEGMENTATION_3D, ANOMALY_2D)
ACTIVATIONS: Final = ("none", "sigmoid")
MAX_CARD_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Finding:
    """A coded finding that the model gives a probability for (PS3.3 section 8: code, scheme, meaning)."""

    code: str
    scheme: str
    meaning: str
    label: str  # the label name that it was trained on
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_code(self.code, self.scheme, self.meaning, "finding")
        check_text(self.label, "finding.label", 64)
        if not is_number(self.threshold) or not 0 <= self.threshold <= 1:
            raise PackageError("card", "finding.threshold: expected 0 to 1")


@dataclass(frozen=True)
class ModelInput:
    """What the model takes: one float32 tensor (n, 1, *size) made by ``preprocessing``.

    With ``volume`` a whole series is one input, else each instance is.
    """

    modalities: tuple[str, ...]
    preprocessing: PreprocessingSpec
    sop_classes: tuple[str, ...] = ()  # empty: any picture of these modalities
    name: str = "image"
    volume: VolumeSpec | None = None

    def __post_init__(self) -> None:
        if not self.modalities:
            raise PackageError("card", "input.modalities: expected at least one")
        for modality in self.modalities:
            check_text(modality, "input.modalities", 16)
        for uid in self.sop_classes:
            check_text(uid, "input.sop_classes", 64)
        check_text(self.name, "input.name", 64)
        if self.volume is not None and self.preprocessing.intensity != "percentile":
            raise PackageError("card", "input.preprocessing.intensity: expected percentile for a volume")

    @property
    def size(self) -> tuple[int, ...]:
        """(rows, columns), or (slices, rows, columns) of a volume."""
        plane = (self.preprocessing.rows, self.preprocessing.columns)
        return plane if self.volume is None else (self.volume.slices, *plane)


@dataclass(frozen=True)
class ModelOutput:
    """What the model answers: float32 (n, findings), or (n, 1 + segments, *size) of a segmenting one.

    ``activation`` is applied after the model: ``none`` to probabilities, ``sigmoid`` to logits of findings.
    Of segments the first plane is what is none of them; probabilities of a voxel sum to 1. With a
    ``threshold`` the answer is (n, 1, *size), how far each pixel is from what the model makes of it, 0 or
    more; the one segment is where that is above the threshold.
    """

    findings: tuple[Finding, ...] = ()
    name: str = "probability"
    activation: str = "none"
    segments: tuple[Segment, ...] = ()
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        if self.segments:
            check_segments(self.segments)
        if self.threshold is not None and len(self.segments) != 1:
            raise PackageError("card", "output.segments: expected one beside a threshold")
        if self.findings if self.segments else not 1 <= len(self.findings) <= 32:
            raise PackageError("card", "output.findings: expected 1 to 32, none beside segments")
        check_text(self.name, "output.name", 64)
        if self.activation not in ACTIVATIONS or (self.segments and self.activation != "none"):
            raise PackageError("card", f"output.activation: expected {' or '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class ModelCard:
    """The content of ``model.json``."""

    name: str
    version: str
    input: ModelInput
    output: ModelOutput
    intended_use: str
    task: str = CLASSIFICATION
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self.name, "name", 64)
        check_text(self.version, "version", 64)
        check_text(self.intended_use, "intended_use", 1024)
        if self.task not in TASKS:
            raise PackageError("card", f"task: expected {' or '.join(TASKS)}")
        if bool(self.output.segments) != self.segmenting:
            raise PackageError("card", "output: expected segments of a segmentation, findings of no other")
        if (self.input.volume is not None) != (self.task == SEGMENTATION_3D):
            raise PackageError("card", f"input.volume: expected one of {SEGMENTATION_3D}, of no other task")
        if (self.output.threshold is not None) != (self.task == ANOMALY_2D):
            raise PackageError("card", f"output.threshold: expected one of {ANOMALY_2D}, of no other task")
        if self.segmenting and math.prod(self.input.size) > MAX_VOXELS:
            raise PackageError("card", f"input: expected at most {MAX_VOXELS} voxels")

    @property
    def segmenting(self) -> bool:
        """Whether the model marks segments."""
        return self.task != CLASSIFICATION

    @property
    def threshold(self) -> Threshold | None:
        """From where on a difference is marked; None of models of anything but anomalies."""
        return self.output.threshold

    @property
    def format(self) -> str:
        """By which of the formats the card is written."""
        if self.threshold is not None:
            return RESIDUAL_FORMAT
        return SEGMENTS_FORMAT if self.segmenting else FORMAT

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Shape of the answer to one input."""
        if not self.segmenting:
            return (len(self.output.findings),)
        if self.threshold is not None:
            return (1, *self.input.size)
        return (1 + len(self.output.segments), *self.input.size)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :meth:`from_json` reads back."""
        source: dict[str, Any] = {
            "name": self.input.name,
            "modalities": list(self.input.modalities),
            "sop_classes": list(self.input.sop_classes),
            "preprocessing": self.input.preprocessing.to_json(),
        }
        answer: dict[str, Any] = {"name": self.output.name}
        if self.segmenting:
            source["volume"] = None if self.input.volume is None else self.input.volume.to_json()
            answer["segments"] = [segment.to_json() for segment in self.output.segments]
            if self.threshold is not None:
                answer["threshold"] = self.threshold.to_json()
        else:
            answer["activation"] = self.output.activation
            answer["findings"] = [vars(finding) for finding in self.output.findings]
        return {
            "format": self.format,
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "input": source,
            "output": answer,
            "intended_use": self.intended_use,
            "provenance": dict(self.provenance),
            "metrics": dict(self.metrics),
        }

    def to_bytes(self) -> bytes:
        """Return ``model.json``: sorted, so that equal cards are equal bytes."""
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    @classmethod
    def from_json(cls, value: object) -> ModelCard:
        """Read a JSON object; unknown or missing fields and wrong types are refused.

        Raises
        ------
        PackageError
            ``card``, naming the field.
        """
        top = read_object(value, "card", _CARD_FIELDS)
        if not isinstance(top["format"], str) or top["format"] not in _OUTPUT_FIELDS:
            raise PackageError("card", f"format: expected {' or '.join(_OUTPUT_FIELDS)}")
        return cls(
            name=top["name"],
            version=top["version"],
            task=top["task"],
            input=_read_input(top["input"], segmenting=top["format"] != FORMAT),
            output=_read_output(top["output"], top["format"]),
            intended_use=top["intended_use"],
            provenance=read_mapping(top["provenance"], "provenance"),
            metrics=read_mapping(top["metrics"], "metrics"),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> ModelCard:
        """Read ``model.json``.

        Raises
        ------
        PackageError
            ``card``.
        """
        if len(content) > MAX_CARD_BYTES:
            raise PackageError("card", f"model.json: expected at most {MAX_CARD_BYTES} bytes")
        try:
            value = json.loads(
                content.decode(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates
            )
        except (ValueError, RecursionError) as error:
            raise PackageError("card", "model.json: not strict JSON") from error
        return cls.from_json(value)


_CARD_FIELDS: Final = frozenset(
    {"format", "name", "version", "task", "input", "output", "intended_use", "provenance", "metrics"}
)
_INPUT_FIELDS: Final = frozenset({"name", "modalities", "sop_classes", "preprocessing"})
_OUTPUT_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    FORMAT: frozenset({"name", "activation", "findings"}),
    SEGMENTS_FORMAT: frozenset({"name", "segments"}),
    RESIDUAL_FORMAT: frozenset({"name", "segments", "threshold"}),
}
_FINDING_FIELDS: Final = frozenset({"code", "scheme", "meaning", "label", "threshold"})


def _read_input(value: object, *, segmenting: bool) -> ModelInput:
    source = read_object(value, "input", _INPUT_FIELDS | {"volume"} if segmenting else _INPUT_FIELDS)
    try:
        preprocessing = PreprocessingSpec.from_json(source["preprocessing"])
    except PreprocessingError as error:
        raise PackageError("card", error.message) from error
    return ModelInput(
        modalities=tuple(read_list(source["modalities"], "input.modalities")),
        preprocessing=preprocessing,
        sop_classes=tuple(read_list(source["sop_classes"], "input.sop_classes")),
        name=source["name"],
        volume=read_volume_spec(source["volume"]) if segmenting else None,
    )


def _read_output(value: object, written_as: str) -> ModelOutput:
    answer = read_object(value, "output", _OUTPUT_FIELDS[written_as])
    if written_as != FORMAT:
        threshold = read_threshold(answer["threshold"]) if written_as == RESIDUAL_FORMAT else None
        return ModelOutput(
            name=answer["name"], segments=read_segments(answer["segments"]), threshold=threshold
        )
    findings = [
        Finding(**read_object(item, "finding", _FINDING_FIELDS))
        for item in read_list(answer["findings"], "output.findings")
    ]
    return ModelOutput(tuple(findings), answer["name"], answer["activation"])


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a field stands twice")
    return value
