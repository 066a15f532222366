"""What the research zone tells the panel and the command line: frozen values without any pseudonym."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping

V = TypeVar("V")
BETWEEN_PEERS: Final = frozenset({"braintorrent", "dfedavgm"})
"""Strategies whose sites keep models of their own: ``trainer.peers.OWN_MODELS``, without its libraries."""


@dataclass(frozen=True)
class LabelCount:
    """How often a label says yes and no."""

    name: str
    positive: int
    negative: int


@dataclass(frozen=True)
class Summary:
    """The research zone at a glance."""

    site: str
    federation_enabled: bool
    subjects: int
    opted_out: int
    instances: int
    labels: tuple[LabelCount, ...]
    protocols_pending: int
    rounds_done: int
    rounds_open: int
    rounds_dead: int
    candidates: int
    last_import_at: datetime | None
    certificate_ends_at: datetime | None = None  # with which this site connects; None before it joined


@dataclass(frozen=True)
class DifferenceView:
    """One field of a plan that differs from an earlier one's."""

    field: str
    words: str
    old: Any
    new: Any
    grade: str  # asks_more, other, asks_less


@dataclass(frozen=True)
class ComparisonView:
    """What is new in a plan against the last one that was approved here; worst first."""

    protocol_id: str
    name: str
    plan_sha256: str
    approved_at: datetime
    rule: str  # same_run, same_task: why it was compared with this one
    differences: tuple[DifferenceView, ...]


@dataclass(frozen=True)
class PreflightView:
    """A preflight; ``report`` is empty while it waits or runs, or where it failed with a reason."""

    state: str
    reason: str | None
    progress: dict[str, Any]
    asked_at: datetime
    made_at: datetime | None
    report: dict[str, Any]


@dataclass(frozen=True)
class ProtocolView:
    """A plan that asks to run here, with what a person needs to decide."""

    id: str
    run_id: str
    name: str
    plan_sha256: str
    state: str  # pending, approved, suspended, refused
    reason: str | None
    expires_at: datetime | None
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime
    label: str
    modalities: tuple[str, ...]
    network: str
    strategy: str
    total_rounds: int
    min_sites: int
    minimum_cohort: int  # the greater of the plan's and the site's own
    max_update_norm: float
    max_samples_per_site: int
    cohort: int  # subjects here that the plan could use now
    ethics_number: str
    max_hours: float | None
    hours: float  # that this site has computed for the run
    comparison: ComparisonView | None
    preflight: PreflightView | None  # the newest, of whatever state
    shown_sha256: str  # of plan and comparison: what an approval must name
    plan: dict[str, Any]


@dataclass(frozen=True)
class RoundView:
    """A local round; ``metrics`` are those of the model before training, on this site's held-out cases."""

    id: str
    run_id: str
    number: int
    kind: str  # train, finalize
    state: str
    reason: str | None
    samples: int
    metrics: dict[str, Any]
    train_seconds: float | None
    cases: dict[str, Any]  # instances: eligible, used, skipped by reason
    progress: dict[str, Any]
    attempts: int
    max_attempts: int
    receipt_id: str | None
    dataset_version_id: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class RunView:
    """A run as this site sees it: its protocol's standing and its rounds, oldest first."""

    run_id: str
    name: str
    plan_sha256: str
    protocol_id: str
    protocol_state: str
    strategy: str
    total_rounds: int
    finished_rounds: int
    last_activity_at: datetime
    rounds: tuple[RoundView, ...]


@dataclass(frozen=True)
class ReceiptView:
    """What left the building in one round; ``genuine`` tells whether body and signature belong together."""

    id: str
    round_id: str
    run_id: str
    number: int
    kind: str
    size_bytes: int
    samples: int
    body: dict[str, Any]
    body_sha256: str
    signature: str
    genuine: bool
    created_at: datetime


@dataclass(frozen=True)
class DatasetView:
    """A dataset version: hash and counts, no instance."""

    id: str
    content_sha256: str
    label_name: str
    counts: dict[str, Any]
    skipped: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class CandidateView:
    """A model package exported here."""

    id: str
    run_id: str
    package_sha256: str | None
    parity_max_abs: float | None
    metrics: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class JobView:
    """A piece of work of the research zone; ``table`` is ``round`` or ``job``."""

    id: str
    table: str
    kind: str
    subject_id: str
    state: str
    reason: str | None
    attempts: int
    max_attempts: int
    progress: dict[str, Any]
    next_try_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class BudgetView:
    """What privacy may cost everybody here, at ``delta``; epsilon is None while staff have set none."""

    epsilon: float | None
    delta: float | None
    spent: float
    left: float
    rounds: int
    set_by: str


@dataclass(frozen=True)
class LedgerRow:
    """One entry of the research zone's ledger."""

    sequence: int
    at: str
    kind: str
    actor: str
    subject_id: str | None
    body: dict[str, Any]
    entry_hash: str


@dataclass(frozen=True)
class LedgerProblem:
    """What is wrong at one place of the ledger."""

    sequence: int
    code: str
    message: str


@dataclass(frozen=True)
class ConsortiumPart:
    """A site's part in a round of the consortium; ``dataset_sha256`` is empty where no data was used."""

    site: str
    accepted: bool
    samples: int
    dataset_sha256: str


@dataclass(frozen=True)
class ConsortiumBlockView:
    """A block of the consortium's ledger."""

    sequence: int
    at: str
    kind: str  # members, run, round, final, share
    run: str
    round: int
    model_sha256: str
    block_hash: str
    contributions: tuple[ConsortiumPart, ...]
    members: tuple[str, ...]
    countersigned_by: tuple[str, ...]
    share: str  # who gave how much to whom, and which step this is; empty in other blocks


@dataclass(frozen=True)
class ConsortiumFindingView:
    """What was found wrong with the consortium's ledger."""

    id: str
    code: str
    sequence: int
    message: str
    found_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None


@dataclass(frozen=True)
class ConsortiumView:
    """A site's replica of the consortium's ledger: its size, the newest blocks, all findings."""

    size: int
    root: str
    countersigned_at: datetime | None
    blocks: tuple[ConsortiumBlockView, ...]
    findings: tuple[ConsortiumFindingView, ...]


@dataclass(frozen=True)
class ShareView:
    """De-identified studies that went to another site, or came from one.

    ``pending``: a step that the coordinator does not know yet. ``no_longer_here``: of what this site gave,
    how many instances are gone from it, or of people who opted out. ``folder``: where received files lie.
    """

    id: str
    manifest_sha256: str
    giver: str
    receiver: str
    given: bool  # by this site
    step: str
    pending: str | None
    studies: int
    subjects: int
    instances: int
    ethics_number: str
    purpose: str
    folder: str | None
    no_longer_here: int
    decided_by: str
    at: datetime


@dataclass(frozen=True)
class LedgerReport:
    """Outcome of a check of the ledger."""

    ok: bool
    entries: int
    head_sequence: int
    head_hash: str
    anchored_sequence: int
    problems: tuple[LedgerProblem, ...]


def encode(value: Any) -> Any:
    """Return a view as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: type[V], content: Mapping[str, Any]) -> V:
    """Read a view that :func:`encode` wrote."""
    hints = get_type_hints(kind)
    return kind(**{name: _read(hint, content[name]) for name, hint in hints.items()})


def _read(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    arguments = get_args(hint)
    if get_origin(hint) is UnionType or type(hint) is UnionType:
        return _read(arguments[0], value)
    if get_origin(hint) is tuple:
        return tuple(_read(arguments[0], item) for item in value)
    if hint is datetime:
        return datetime.fromisoformat(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value)
    return value
