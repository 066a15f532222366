"""The model card, ``model.json``: what a model takes and answers, what it is for, where it comes from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from inference.errors import PackageError, PreprocessingError
from inference.preprocessing import PreprocessingSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = "cloister-model/1"
TASKS: Final = ("classification-2d",)
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
        _text(self.code, "finding.code", 16)
        _text(self.scheme, "finding.scheme", 16)
        _text(self.meaning, "finding.meaning", 64)
        _text(self.label, "finding.label", 64)
        if not _is_number(self.threshold) or not 0 <= self.threshold <= 1:
            raise PackageError("card", "finding.threshold: expected 0 to 1")


@dataclass(frozen=True)
class ModelInput:
    """What the model takes: one float32 tensor (n, 1, rows, columns) made by ``preprocessing``."""

    modalities: tuple[str, ...]
    preprocessing: PreprocessingSpec
    sop_classes: tuple[str, ...] = ()  # empty: any picture of these modalities
    name: str = "image"

    def __post_init__(self) -> None:
        if not self.modalities:
            raise PackageError("card", "input.modalities: expected at least one")
        for modality in self.modalities:
            _text(modality, "input.modalities", 16)
        for uid in self.sop_classes:
            _text(uid, "input.sop_classes", 64)
        _text(self.name, "input.name", 64)


@dataclass(frozen=True)
class ModelOutput:
    """What the model answers: one float32 tensor (n, findings).

    ``activation`` is applied after the model: ``none`` to probabilities, ``sigmoid`` to logits.
    """

    findings: tuple[Finding, ...]
    name: str = "probability"
    activation: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= len(self.findings) <= 32:
            raise PackageError("card", "output.findings: expected 1 to 32")
        _text(self.name, "output.name", 64)
        if self.activation not in ACTIVATIONS:
            raise PackageError("card", f"output.activation: expected {' or '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class ModelCard:
    """The content of ``model.json``."""

    name: str
    version: str
    input: ModelInput
    output: ModelOutput
    intended_use: str
    task: str = "classification-2d"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _text(self.name, "name", 64)
        _text(self.version, "version", 64)
        _text(self.intended_use, "intended_use", 1024)
        if self.task not in TASKS:
            raise PackageError("card", f"task: expected {' or '.join(TASKS)}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that :meth:`from_json` reads back."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "input": {
                "name": self.input.name,
                "modalities": list(self.input.modalities),
                "sop_classes": list(self.input.sop_classes),
                "preprocessing": self.input.preprocessing.to_json(),
            },
            "output": {
                "name": self.output.name,
                "activation": self.output.activation,
                "findings": [vars(finding) for finding in self.output.findings],
            },
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
        top = _object(value, "card", _CARD_FIELDS)
        if top["format"] != FORMAT:
            raise PackageError("card", f"format: expected {FORMAT}")
        source = _object(top["input"], "input", _INPUT_FIELDS)
        answer = _object(top["output"], "output", _OUTPUT_FIELDS)
        try:
            preprocessing = PreprocessingSpec.from_json(source["preprocessing"])
        except PreprocessingError as error:
            raise PackageError("card", error.message) from error
        findings = [
            _object(item, "finding", _FINDING_FIELDS) for item in _list(answer["findings"], "output.findings")
        ]
        return cls(
            name=top["name"],
            version=top["version"],
            task=top["task"],
            input=ModelInput(
                modalities=tuple(_list(source["modalities"], "input.modalities")),
                preprocessing=preprocessing,
                sop_classes=tuple(_list(source["sop_classes"], "input.sop_classes")),
                name=source["name"],
            ),
            output=ModelOutput(
                tuple(Finding(**item) for item in findings), answer["name"], answer["activation"]
            ),
            intended_use=top["intended_use"],
            provenance=_mapping(top["provenance"], "provenance"),
            metrics=_mapping(top["metrics"], "metrics"),
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
_OUTPUT_FIELDS: Final = frozenset({"name", "activation", "findings"})
_FINDING_FIELDS: Final = frozenset({"code", "scheme", "meaning", "label", "threshold"})


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a field stands twice")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object, name: str, limit: int) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > limit or not value.isprintable():
        raise PackageError("card", f"{name}: expected 1 to {limit} printable characters")


def _object(value: object, name: str, wanted: frozenset[str]) -> dict[str, Any]:
    found = _mapping(value, name)
    if set(found) != wanted:
        odd = min(set(found) ^ wanted)
        raise PackageError(
            "card", f"{name}: field {odd[:40]!r} is {'missing' if odd in wanted else 'unknown'}"
        )
    return found


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PackageError("card", f"{name}: expected an object")
    return value


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > 64:
        raise PackageError("card", f"{name}: expected a list of at most 64")
    return value
