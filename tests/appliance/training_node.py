"""A research zone with de-identified pictures, labels, an approved plan and rounds to work on."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from appliance.db.base import new_id, now
from appliance.db.engine import writing
from appliance.db.research import Label, Protocol, ProtocolState, ResearchInstance, Round, Subject
from appliance.node import ResearchZone, create_node, open_research
from appliance.settings import load_settings
from tests.blank_node import template
from tests.trainer.samples import small_task, write_cases
from trainer.federation.plan import Plan, Strategy
from trainer.networks import initial_weights
from trainer.weights_io import save

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.task import TaskSpec
    from trainer.weights_io import Weights

CONFIG = """
name = "test-node"
data_root = "data"
[training]
child_idle_s = 5
round_lease_s = 20
[federation]
site = "site-1"
minimum_cohort = 2
[web]
enabled = false
"""


@dataclass(frozen=True)
class TrainingNode:
    """A zone and the plan that was approved there."""

    zone: ResearchZone
    config: Path
    plan: Plan
    protocol_id: str

    def add_round(
        self, kind: str = "train", number: int = 1, *, weights: Weights | None = None, **changes: Any
    ) -> str:
        """Insert a round on a model, the untrained one without another; return its row id."""
        path = self.zone.root / "federation" / "models" / "model.safetensors"
        digest = save(path, weights or initial_weights(self.plan.task))
        values: dict[str, Any] = {
            "run_id": self.plan.run_id,
            "number": number,
            "kind": kind,
            "site": "site-1",
            "plan_sha256": self.plan.sha256,
            "global_model_sha256": digest,
            "protocol_id": self.protocol_id,
            "input_path": str(path.relative_to(self.zone.root)),
            "max_attempts": 4,
            **changes,
        }
        with writing(self.zone.engine) as session:
            row = Round(id=new_id(), **values)
            session.add(row)
            return row.id


def make_plan(task: TaskSpec, **changes: Any) -> Plan:
    plan = Plan(
        run_id="run-1",
        name="blobs",
        task=task,
        strategy=Strategy("fedprox", {"mu": 0.01}),
        total_rounds=2,
        min_sites=1,
        minimum_cohort=2,
        expires_at=now() + timedelta(days=1),
        round_timeout_s=600.0,
        approval_wait_s=0.0,
        seed=0,  # as the tasks of these tests: the first model is the one that it gives
    )
    return replace(plan, **changes)


def make_training_node(
    folder: Path, *, count: int = 24, task: TaskSpec | None = None, **changes: Any
) -> TrainingNode:
    """Create a node whose research zone holds ``count`` labelled pictures and an approved protocol."""
    shutil.copytree(template(CONFIG).name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
    config = folder / "cloister.toml"
    settings = load_settings(config)
    create_node(settings)
    zone = open_research(settings)
    plan = make_plan(task or small_task(), **changes)
    add_cases(zone, count)
    with writing(zone.engine) as session:
        protocol = Protocol(
            id=new_id(),
            plan_sha256=plan.sha256,
            run_id=plan.run_id,
            name=plan.name,
            plan=plan.to_json(),
            state=ProtocolState.APPROVED,
            expires_at=plan.expires_at,
        )
        session.add(protocol)
    return TrainingNode(zone, config, plan, protocol.id)


def add_cases(zone: ResearchZone, count: int, seed: int = 0) -> list[str]:
    """File pictures of as many subjects, with labels; return the pseudonyms."""
    folder = zone.root / "instances"
    folder.mkdir(exist_ok=True)
    cases = write_cases(folder, count, seed)
    with writing(zone.engine) as session:
        for number, case in enumerate(cases):
            subject = Subject(id=new_id(), pseudonym=case.pseudonym)
            session.add(subject)
            session.flush()
            session.add(
                ResearchInstance(
                    subject_id=subject.id,
                    study_instance_uid=f"2.25.{seed}{number}",
                    series_instance_uid="2.25.1",
                    sop_instance_uid=f"2.25.{hashlib.sha256(case.path.name.encode()).hexdigest()[:8]}"[:64],
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
                    modality="CR",
                    path=str(case.path.relative_to(zone.root)),
                    size_bytes=case.path.stat().st_size,
                    sha256=case.sha256,
                    crossing_id=new_id(),
                )
            )
            session.add(Label(pseudonym=case.pseudonym, name="blob", value=case.label, source="csv"))
    return [case.pseudonym for case in cases]
