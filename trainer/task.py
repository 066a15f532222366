"""The task of a federation: what is learned, with which network, preprocessing and local training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from inference.errors import PreprocessingError
from inference.preprocessing import PreprocessingSpec
from trainer.anomaly.spec import AnomalySpec
from trainer.errors import TaskError
from trainer.segmentation.spec import SegmentationSpec

if TYPE_CHECKING:
    from pathlib import Path

OPTIMIZERS: Final = ("sgd", "adamw")
CLASSIFICATION: Final = "classification"
SEGMENTATION: Final = "segmentation"
ANOMALY: Final = "anomaly"
_OWN_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    CLASSIFICATION: frozenset({"finding", "threshold"}),
    SEGMENTATION: frozenset({"segmentation"}),
    ANOMALY: frozenset({"anomaly"}),
}
MAX_VOXELS: Final = 2**24  # a coordinator names the size, and every site's memory has to hold it
_MAX_TEXT: Final = 64


@dataclass(frozen=True)
class NetworkSpec:
    """A network of :mod:`trainer.networks` by name, with its parameters (plain JSON values)."""

    name: str = "resnet"
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(dict(self.parameters), sort_keys=True)))


@dataclass(frozen=True)
class LocalSpec:
    """How a site trains in one round.

    Parameters
    ----------
    optimizer : str
        ``sgd`` (momentum 0.9) or ``adamw``; its state starts anew in each round.
    learning_rate : float
        Above 0, at most 10.
    batch_size, local_steps : int
        Cases per step, steps per round; the same for every site, however many cases it holds.
    fedprox_mu : float
        Weight of the proximal term where the plan's strategy is FedProx and names no other.
    weight_decay : float
        Decoupled for ``adamw``.
    shift_fraction, gain_fraction : float
        Augmentation: random shift up to this share of the edge, random contrast gain 1 plus or minus this.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    batch_size: int = 16
    local_steps: int = 20
    fedprox_mu: float = 0.01
    weight_decay: float = 1e-4
    shift_fraction: float = 0.05
    gain_fraction: float = 0.1


@dataclass(frozen=True)
class Finding:
    """The coded finding whose probability the model gives (PS3.3 table 8.8-1)."""

    code: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class TaskSpec:
    """What is learned: one label of pictures, structures in pictures or volumes, or what is healthy.

    Parameters
    ----------
    name : str
        Letters, digits, hyphens, underscores.
    label : str
        Name of the label in the label files; of other kinds, of what masks show.
    modalities : tuple of str
        Which instances take part, by Modality (0008,0060).
    finding : Finding, optional
        What a classification calls; other kinds have none.
    validation_fraction : float
        Share of patients held out at each site, above 0 and below 1.
    seed : int
        Seeds the initial model and, with site and round, the local rounds.
    threshold : float
        Probability at and above which the finding is called.
    segmentation : SegmentationSpec, optional
        Makes the task a segmentation: dimensions, structures, and of volumes slices and spacing.
    anomaly : AnomalySpec, optional
        Makes the task one that learns from healthy pictures alone, and finds what is unlike them.
    """

    name: str
    label: str
    modalities: tuple[str, ...]
    preprocessing: PreprocessingSpec
    finding: Finding | None = None
    network: NetworkSpec = NetworkSpec()
    local: LocalSpec = LocalSpec()
    validation_fraction: float = 0.25
    seed: int = 0
    threshold: float = 0.5
    segmentation: SegmentationSpec | None = None
    anomaly: AnomalySpec | None = None

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise TaskError("task: " + "; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back."""
        content: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "label", "validation_fraction", "seed")
        }
        if self.segmentation is not None:
            content |= {"kind": SEGMENTATION, "segmentation": self.segmentation.to_json()}
        if self.anomaly is not None:
            content |= {"kind": ANOMALY, "anomaly": self.anomaly.to_json()}
        if self.finding is not None:  # without a kind, so that earlier tasks keep their hashes
            content |= {"finding": asdict(self.finding), "threshold": self.threshold}
        return {
            **content,
            "modalities": list(self.modalities),
            "preprocessing": self.preprocessing.to_json(),
            "network": {"name": self.network.name, "parameters": dict(self.network.parameters)},
            "local": asdict(self.local),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskSpec:
        """Read plain JSON values.

        Raises
        ------
        TaskError
            Naming the field that is missing, unknown or wrong.
        """
        try:
            values = dict(content)
            if not isinstance(values["modalities"], list):
                raise TaskError("task: modalities: expected a list")
            values["modalities"] = tuple(values["modalities"])
            values["preprocessing"] = PreprocessingSpec.from_json(values["preprocessing"])
            kind = _kind(values)
            if kind == SEGMENTATION:
                values["segmentation"] = SegmentationSpec.from_json(values["segmentation"])
            elif kind == ANOMALY:
                values["anomaly"] = AnomalySpec.from_json(values["anomaly"])
            else:
                values["finding"] = Finding(**values["finding"])
            for name, spec in (("network", NetworkSpec), ("local", LocalSpec)):
                if name in values:
                    values[name] = spec(**values[name])
            return cls(**values)
        except KeyError as error:
            raise TaskError(f"task: field {error.args[0]} is missing") from error
        except PreprocessingError as error:
            raise TaskError(f"task: {error.message}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise TaskError("task: a field is unknown, missing or of another type") from error

    @property
    def kind(self) -> str:
        """``classification``, ``segmentation`` or ``anomaly``."""
        if self.anomaly is not None:
            return ANOMALY
        return CLASSIFICATION if self.segmentation is None else SEGMENTATION

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the model's input: (rows, columns), or (slices, rows, columns) of volumes."""
        plane = (self.preprocessing.rows, self.preprocessing.columns)
        if self.segmentation is None or self.segmentation.spatial_dimensions == 2:
            return plane
        return (self.segmentation.slices, *plane)

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def read_task(path: Path) -> TaskSpec:
    """Read a task file; raises TaskError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path.name}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise TaskError(f"{path.name}: expected a JSON object")
    return TaskSpec.from_json(content)


def _problems(task: TaskSpec) -> list[str]:
    local = task.local
    checks = (
        (_is_name(task.name), "name: expected 1 to 64 letters, digits, hyphens or underscores"),
        (_is_name(task.label), "label: expected 1 to 64 letters, digits, hyphens or underscores"),
        (
            bool(task.modalities) and all(_is_name(m) for m in task.modalities),
            "modalities: expected at least one",
        ),
        (_within(task.validation_fraction, 0.01, 0.9), "validation_fraction: expected 0.01 to 0.9"),
        *_kind_checks(task),
        (_is_network(task.network), "network: expected a name and an object of parameters"),
        (_within(task.threshold, 0.0, 1.0), "threshold: expected 0 to 1"),
        (_whole(task.seed, 0, 2**31 - 1), "seed: expected a whole number from 0 to 2147483647"),
        (local.optimizer in OPTIMIZERS, f"local.optimizer: expected one of {', '.join(OPTIMIZERS)}"),
        (_within(local.learning_rate, 1e-8, 10.0), "local.learning_rate: expected 1e-8 to 10"),
        (_whole(local.batch_size, 1, 4096), "local.batch_size: expected 1 to 4096"),
        (_whole(local.local_steps, 1, 100_000), "local.local_steps: expected 1 to 100000"),
        (_within(local.fedprox_mu, 0.0, 100.0), "local.fedprox_mu: expected 0 to 100"),
        (_within(local.weight_decay, 0.0, 1.0), "local.weight_decay: expected 0 to 1"),
        (_within(local.shift_fraction, 0.0, 0.5), "local.shift_fraction: expected 0 to 0.5"),
        (_within(local.gain_fraction, 0.0, 0.9), "local.gain_fraction: expected 0 to 0.9"),
    )
    return [message for good, message in checks if not good]


def _kind(values: dict[str, Any]) -> str:
    """Take the kind out of a task's JSON values; fields of other kinds are refused."""
    kind = values.pop("kind", CLASSIFICATION)
    if kind not in tuple(_OWN_FIELDS):
        raise TaskError(f"task: kind: expected {', '.join(_OWN_FIELDS)}")
    foreign = frozenset().union(*_OWN_FIELDS.values()) - _OWN_FIELDS[kind]
    if foreign & values.keys():
        raise TaskError(f"task: {min(foreign & values.keys())}: expected none in a {kind} task")
    return str(kind)


def _kind_checks(task: TaskSpec) -> tuple[tuple[bool, str], ...]:
    if task.kind == CLASSIFICATION:
        message = "finding: expected code and scheme (16 characters), meaning (64)"
        return ((task.finding is not None and _is_finding(task.finding), message),)
    common = (
        (task.finding is None, f"finding: expected none in a {task.kind} task"),
        ("SEG" not in task.modalities, "modalities: expected those of pictures, without SEG"),
        (math.prod(task.size) <= MAX_VOXELS, f"size: expected at most {MAX_VOXELS} voxels"),
    )
    if task.segmentation is None:
        return common
    percentile = task.segmentation.spatial_dimensions == 2 or task.preprocessing.intensity == "percentile"
    return (
        *common,
        (task.anomaly is None, "anomaly: expected none in a segmentation task"),
        (percentile, "preprocessing.intensity: expected percentile for three dimensions"),
    )


def _is_name(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        return False
    return value.isascii() and all(character.isalnum() or character in "-_." for character in value)


def _is_finding(finding: Finding) -> bool:
    limits = ((finding.code, 16), (finding.scheme, 16), (finding.meaning, 64))
    return all(
        isinstance(text, str) and 0 < len(text) <= limit and text.isprintable() for text, limit in limits
    )


def _is_network(network: NetworkSpec) -> bool:
    return isinstance(network.name, str) and isinstance(network.parameters, Mapping)


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
