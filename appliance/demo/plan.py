"""The demonstration's federation plan, as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from appliance.db.base import now
from inference.preprocessing import PreprocessingSpec
from trainer.federation.plan import Plan, Strategy
from trainer.task import Finding, LocalSpec, NetworkSpec, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS: Final = 10
LOCAL: Final = LocalSpec(
    optimizer="adamw",
    learning_rate=2e-3,
    batch_size=32,
    local_steps=36,
    shift_fraction=0.04,
    gain_fraction=0.1,
)
FINDING: Final = Finding("52988006", "SCT", "Lesion")


@dataclass(frozen=True)
class Wanted:
    """What is to be learned."""

    label: str
    modalities: tuple[str, ...]
    seed: int
    minimum_cohort: int
    rounds: int = ROUNDS


def task(wanted: Wanted) -> TaskSpec:
    """Return the task: a small network on 64 x 64 inputs."""
    return TaskSpec(
        name="chest-finding",
        label=wanted.label,
        modalities=wanted.modalities,
        preprocessing=PreprocessingSpec(rows=64, columns=64),
        finding=FINDING,
        network=NetworkSpec("resnet"),
        local=LOCAL,
        validation_fraction=0.42,
        seed=wanted.seed,
    )


def plan(wanted: Wanted, run_id: str, sites: Sequence[str]) -> Plan:
    """Return the plan: all sites in every round."""
    return Plan(
        run_id=run_id,
        name="Chest finding, three hospitals",
        task=task(wanted),
        strategy=Strategy("fedavg", {}),
        total_rounds=wanted.rounds,
        min_sites=len(sites),
        minimum_cohort=wanted.minimum_cohort,
        expires_at=now() + timedelta(hours=6),
        round_timeout_s=120,
        approval_wait_s=120,
        seed=wanted.seed,
    )
