"""A federation plan: everything that a run will do, as data. A person at each site approves its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from trainer.compression import Compression, CompressionError
from trainer.encryption import Encryption, EncryptionError
from trainer.errors import TrainerError
from trainer.federation.combining import check_together
from trainer.federation.errors import PlanError
from trainer.peers import OWN_MODELS
from trainer.privacy.promise import PrivacyError, Promise
from trainer.task import TaskSpec

T = TypeVar("T")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
MAX_TITLE: Final = 64
MAX_ROUNDS: Final = 10_000
MAX_SITES: Final = 1_000
MAX_SECONDS: Final = 30 * 24 * 3600.0
MIN_NORM: Final = 1e-6
MAX_NORM: Final = 1e6
MAX_SAMPLES: Final = 10_000_000
MIN_HOURS: Final = 0.01
MAX_HOURS: Final = 10_000.0


@dataclass(frozen=True)
class Strategy:
    """Name of an aggregation strategy (``trainer.strategies``) and its parameters."""

    name: str
    parameters: Mapping[str, float]

    def __post_init__(self) -> None:
        """Take whole numbers as floats, as reading JSON does: the hash must not depend on who wrote them."""
        floats = {name: _as_float(value) for name, value in self.parameters.items()}
        object.__setattr__(self, "parameters", floats)


@dataclass(frozen=True)
class Bounds:
    """How far one site may move the global model in one round: norm of its update, weight in the mean."""

    update_norm: float
    samples: int


@dataclass(frozen=True)
class Plan:
    """What a run is.

    Attributes
    ----------
    run_id : str
        The run's identity at the coordinator and at every site.
    name : str
        A title for people.
    minimum_cohort : int
        Fewest labelled subjects that a site must hold to take part; a site may ask for more.
    round_timeout_s : float
        Longest time that one round waits for a site that makes no progress.
    straggler_wait_s : float
        How long a round goes on waiting for the other sites once ``min_sites`` have answered.
    approval_wait_s : float
        How long sites wait for a person's approval before they refuse.
    max_update_norm : float
        Largest L2 norm of an update over all floating-point tensors: sites scale theirs down to it, the
        coordinator refuses a larger one.
    max_samples_per_site : int
        Most samples that count as a site's weight in the mean, however many it claims.
    ethics_number : str
        Under which number an ethics committee approved the study; empty where the plan names none.
    max_hours : float, optional
        Most hours that one site computes for this run, all its rounds together; None sets no limit.
    privacy : Promise, optional
        How every update is protected, and what the whole run may cost here; None protects nothing.
    compression : Compression, optional
        How every update is made small before it leaves; None sends it as it is.
    encryption : Encryption, optional
        Which sites alone can read updates and models; None lets the coordinator read them.
    initial_sha256 : str
        Of the finished model that the run starts from; empty where it starts from an untrained network.
    """

    run_id: str
    name: str
    task: TaskSpec
    strategy: Strategy
    total_rounds: int
    min_sites: int
    minimum_cohort: int
    expires_at: datetime
    round_timeout_s: float
    approval_wait_s: float
    seed: int
    straggler_wait_s: float = 60.0
    max_update_norm: float = 100.0
    max_samples_per_site: int = 100_000
    ethics_number: str = ""
    max_hours: float | None = None
    privacy: Promise | None = None
    compression: Compression | None = None
    encryption: Encryption | None = None
    initial_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no run can have, wherever the plan was made."""
        _check_name("run_id", self.run_id)
        _check_title("name", self.name)
        _check_range("total_rounds", self.total_rounds, 1, MAX_ROUNDS)
        _check_range("min_sites", self.min_sites, 1, MAX_SITES)
        _check_range("minimum_cohort", self.minimum_cohort, 1, 1_000_000)
        _check_range("seed", self.seed, 0, 2**32 - 1)
        _check_range("round_timeout_s", self.round_timeout_s, 1.0, MAX_SECONDS)
        _check_range("approval_wait_s", self.approval_wait_s, 0.0, MAX_SECONDS)
        _check_range("straggler_wait_s", self.straggler_wait_s, 0.0, MAX_SECONDS)
        _check_range("max_update_norm", self.max_update_norm, MIN_NORM, MAX_NORM)
        _check_range("max_samples_per_site", self.max_samples_per_site, 1, MAX_SAMPLES)
        if self.ethics_number:
            _check_title("ethics_number", self.ethics_number)
        if self.initial_sha256 and not _SHA256.fullmatch(self.initial_sha256):
            raise PlanError("initial_sha256: expected 64 lower-case hexadecimal digits")
        if self.max_hours is not None:
            _check_range("max_hours", self.max_hours, MIN_HOURS, MAX_HOURS)
            object.__setattr__(self, "max_hours", float(self.max_hours))
        if self.expires_at.tzinfo is None:
            raise PlanError("expires_at: expected a moment with a time zone")
        check_together(self)
        for name in _FLOATS:
            object.__setattr__(self, name, float(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :meth:`from_json` reads them back unchanged.

        What is not set is left out, so that a plan of an earlier version keeps its hash and its approval.
        """
        unset = {"ethics_number": "", "max_hours": None, "initial_sha256": ""}
        given = {name: getattr(self, name) for name in unset}
        optional = {name: value for name, value in given.items() if value != unset[name]}
        if self.privacy is not None:
            optional["privacy"] = self.privacy.to_json()
        for name in ("compression", "encryption"):
            if getattr(self, name) is not None:
                optional[name] = getattr(self, name).to_json()
        return {
            **optional,
            "run_id": self.run_id,
            "name": self.name,
            "task": self.task.to_json(),
            "strategy": {"name": self.strategy.name, "parameters": dict(self.strategy.parameters)},
            "total_rounds": self.total_rounds,
            "min_sites": self.min_sites,
            "minimum_cohort": self.minimum_cohort,
            "expires_at": self.expires_at.astimezone(UTC).isoformat(),
            "round_timeout_s": self.round_timeout_s,
            "approval_wait_s": self.approval_wait_s,
            "straggler_wait_s": self.straggler_wait_s,
            "max_update_norm": self.max_update_norm,
            "max_samples_per_site": self.max_samples_per_site,
            "seed": self.seed,
        }

    @property
    def bounds(self) -> Bounds:
        """What one site may do in one round."""
        return Bounds(self.max_update_norm, self.max_samples_per_site)

    @property
    def own_models(self) -> bool:
        """Whether each site keeps a model of its own, and nobody holds a global one."""
        return self.strategy.name in OWN_MODELS

    @property
    def turns(self) -> int:
        """In how many parts the numbers of an update take turns; 1 sends all of them every round."""
        return 1 if self.compression is None else self.compression.turns

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON form: what a person approves."""
        return content_sha256(self.to_json())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Read plain JSON values.

        Raises
        ------
        PlanError
            Naming the first wrong, missing or unknown field.
        """
        unknown = set(content) - set(_FIELDS)
        if unknown:
            raise PlanError(f"{min(unknown)[:40]}: unknown field")
        values: dict[str, Any] = {}
        for name, read in _FIELDS.items():
            if name not in content:
                if name in _OPTIONAL:
                    continue
                raise PlanError(f"{name}: missing")
            values[name] = read(name, content[name])
        return cls(**values)

    def dumps(self) -> str:
        """Return canonical JSON: the same plan always gives the same text."""
        return canonical(self.to_json())

    @classmethod
    def loads(cls, text: str) -> Plan:
        """Read JSON text; raises PlanError."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise PlanError("plan: not JSON") from error
        if not isinstance(content, dict):
            raise PlanError("plan: expected a JSON object")
        return cls.from_json(content)


def canonical(content: Mapping[str, Any]) -> str:
    """Return JSON content in its canonical form: sorted keys, no spaces, ASCII.

    Raises
    ------
    PlanError
        If the content holds what JSON has no place for (infinity, NaN, objects).
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PlanError("plan: expected JSON values only") from error


def content_sha256(content: Mapping[str, Any]) -> str:
    """Hash JSON content in its canonical form."""
    return hashlib.sha256(canonical(content).encode("ascii")).hexdigest()


def default_expiry(now: datetime, days: float = 30) -> datetime:
    """Return the moment at which a plan made now stops being valid."""
    return now + timedelta(days=days)


def _as_float(value: float) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_name(field: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise PlanError(f"{field}: expected 1 to 64 letters, digits, dots, hyphens or underscores")


def _check_title(field: str, value: str) -> None:
    if not 0 < len(value) <= MAX_TITLE or not value.isprintable() or value != value.strip():
        raise PlanError(f"{field}: expected 1 to {MAX_TITLE} printable characters")


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise PlanError(f"{field}: expected {low} to {high}")


def _typed(kind: type[T]) -> Callable[[str, Any], T]:
    def read(field: str, value: Any) -> T:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PlanError(f"{field}: expected {kind.__name__}")
        return value

    return read


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{field}: expected a number")
    return float(value)


def _moment(field: str, value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise PlanError(f"{field}: expected an ISO 8601 moment") from error
    if moment.tzinfo is None:
        raise PlanError(f"{field}: expected a moment with a time zone")
    return moment.astimezone(UTC)


def _task(field: str, value: Any) -> TaskSpec:
    if not isinstance(value, Mapping):
        raise PlanError(f"{field}: expected an object")
    try:
        return TaskSpec.from_json(value)
    except TrainerError as error:
        raise PlanError(f"{field}: {error}") from error


def _promise(field: str, value: Any) -> Promise:
    try:
        return Promise.from_json(value)
    except PrivacyError as error:
        raise PlanError(f"{field}: {error}") from error


def _compression(field: str, value: Any) -> Compression:
    del field  # the message names it
    try:
        return Compression.from_json(value)
    except CompressionError as error:
        raise PlanError(str(error)) from error


def _encryption(field: str, value: Any) -> Encryption:
    del field  # the message names it
    try:
        return Encryption.from_json(value)
    except EncryptionError as error:
        raise PlanError(str(error)) from error


def _strategy(field: str, value: Any) -> Strategy:
    if not isinstance(value, Mapping) or set(value) != {"name", "parameters"}:
        raise PlanError(f"{field}: expected an object with name and parameters")
    parameters = value["parameters"]
    if not isinstance(value["name"], str) or not isinstance(parameters, Mapping):
        raise PlanError(f"{field}: expected a name and an object of parameters")
    return Strategy(
        value["name"], {str(key): _number(f"{field}.{key}", item) for key, item in parameters.items()}
    )


_FLOATS: Final = ("round_timeout_s", "approval_wait_s", "straggler_wait_s", "max_update_norm")
_OPTIONAL: Final = frozenset(
    {
        "straggler_wait_s",
        "max_update_norm",
        "max_samples_per_site",
        "ethics_number",
        "max_hours",
        "privacy",
        "compression",
        "encryption",
        "initial_sha256",
    }
)
_FIELDS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "run_id": _typed(str),
    "name": _typed(str),
    "task": _task,
    "strategy": _strategy,
    "total_rounds": _typed(int),
    "min_sites": _typed(int),
    "minimum_cohort": _typed(int),
    "expires_at": _moment,
    "round_timeout_s": _number,
    "approval_wait_s": _number,
    "straggler_wait_s": _number,
    "max_update_norm": _number,
    "max_samples_per_site": _typed(int),
    "seed": _typed(int),
    "ethics_number": _typed(str),
    "max_hours": _number,
    "privacy": _promise,
    "compression": _compression,
    "encryption": _encryption,
    "initial_sha256": _typed(str),
}
