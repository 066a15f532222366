"""From a federation's final model to a signed package and report in the crossing to the clinical zone."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import crossing, durable
from appliance.children import return_freed_memory
from appliance.db.base import new_id
from appliance.db.research import CandidateModel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Session

    from appliance.datasets import Built
    from appliance.node import ResearchZone
    from appliance.training import Work
    from trainer.export import Exported

PARITY_SAMPLES: Final = 64


def export(
    zone: ResearchZone,
    work: Work,
    built: Built,
    metrics: dict[str, Any],
    computing: AbstractContextManager[None],
) -> Exported:
    """Write ``crossing/to_clinical/packages/<run>.zip`` and its evaluation report ``<run>.json``.

    The report stands there before the package, which the clinical zone looks for. Written twice, both are the
    same bytes. Nothing crosses when ``computing``, in which the package is made, raises.
    """
    from inference.evaluation import sign_report  # noqa: PLC0415
    from inference.package import pack  # noqa: PLC0415
    from trainer.datasets import Samples  # noqa: PLC0415
    from trainer.export import export_package, model_card  # noqa: PLC0415 - torch loads here

    facts, version = provenance(work, built), f"{work.plan.run_id[:52]}-r{work.plan.total_rounds}"
    held_out = built.dataset.validation if len(built.dataset.validation) else built.dataset.train
    real = Samples(held_out.x[:PARITY_SAMPLES], held_out.y[:PARITY_SAMPLES])
    spool = zone.settings.crossing_in / "packages"
    crossing.make_folders(spool)
    folder = Path(tempfile.mkdtemp(prefix="package-", dir=_scratch(zone)))
    try:
        with computing:
            exported = export_package(
                work.plan.task,
                work.weights,
                real,
                folder,
                card=model_card(work.plan.task, version, facts, metrics),
                signing_key=zone.keys.signing,
                give_back=return_freed_memory,
            )
        report = sign_report(
            exported.package_sha256,
            metrics,
            {**facts, **_parity(work, exported)},
            zone.keys.signing,
        )
        durable.write_whole(spool / f"{work.plan.run_id}.json", report, crossing.FILE_MODE)
        pack(folder, spool / f"{work.plan.run_id}.zip")
    finally:
        shutil.rmtree(folder)
    return exported


def _parity(work: Work, exported: Exported) -> dict[str, float]:
    """Say how far the served model strays; of one that marks something also at how many of its voxels."""
    found = {"parity_max_abs": exported.parity_max_abs}
    if work.plan.task.finding is None:
        found["parity_voxels"] = exported.parity_voxels
    return found


def provenance(work: Work, built: Built) -> dict[str, Any]:
    """Return where a model comes from and what it was measured on: hashes and counts, nothing of a person.

    Where a part of the model is this site's alone, and the rest is the run's, ``this_site_s_own`` names it.
    """
    from trainer.site_rules import site_rule  # noqa: PLC0415 - torch loads here

    federation = {
        "run_id": work.plan.run_id,
        "rounds": work.plan.total_rounds,
        "strategy": work.plan.strategy.name,
        "plan_sha256": work.plan.sha256,
        "task_sha256": work.plan.task.sha256,
        "global_model_sha256": work.row.global_model_sha256,
    }
    own = site_rule(work.plan.strategy.name).own_part
    return {
        "federation": {**federation, "this_site_s_own": own} if own else federation,
        "site": work.row.site,
        "dataset_sha256": built.dataset.content_sha256,
        "dataset_counts": built.dataset.counts,
    }


def record(session: Session, work: Work, exported: Exported, metrics: dict[str, Any]) -> CandidateModel:
    """Return the run's candidate row with these figures; a run has one."""
    statement = select(CandidateModel).where(CandidateModel.run_id == work.plan.run_id)
    candidate = session.scalar(statement)
    if candidate is None:
        candidate = CandidateModel(id=new_id(), run_id=work.plan.run_id, round_id=work.row.id)
        session.add(candidate)
    candidate.round_id = work.row.id
    candidate.package_sha256 = exported.package_sha256
    candidate.parity_max_abs = exported.parity_max_abs
    candidate.metrics = metrics
    return candidate


def _scratch(zone: ResearchZone) -> Path:
    folder = zone.root / "federation" / "exports"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
