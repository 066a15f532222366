"""The model goes to work: approved by a person, used on the next study, its result read at a workstation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import models
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob, ModelState, ModelVersion
from appliance.db.research import CandidateModel
from appliance.demo.stages_intake import start_pacs
from appliance.demo.world import StageError, json_lines

if TYPE_CHECKING:
    from appliance.demo.cohorts import CohortStudy
    from appliance.demo.screen import Bars
    from appliance.demo.world import Deadline, Site, World

RESULT_SOP_CLASSES: Final = 2  # a structured report and a secondary capture
MAX_PARITY: Final = 1e-4


def approve(world: World, deadline: Deadline) -> dict[str, Any]:
    """Wait for each hospital's package of the global model and approve it, with a person's right."""
    pending = list(world.sites)

    def all_approved(bars: Bars) -> bool:
        for site in list(pending):
            if _approve(site):
                pending.remove(site)
                world.screen.say(f"  {site.title}: the model package passed the door and is approved.")
        bars.show("models approved", len(world.sites) - len(pending), len(world.sites))
        return not pending

    with world.screen.bars() as bars:
        world.until(deadline, "a model package at every hospital", lambda: all_approved(bars))
    parities = [
        value
        for site in world.sites
        for (value,) in site.rows("research", select(CandidateModel.parity_max_abs))
    ]
    if len(parities) != len(world.sites) or any(value is None or value > MAX_PARITY for value in parities):
        raise StageError(f"ONNX and torch differ by more than {MAX_PARITY}: {parities}")
    world.figures["onnx_parity_max_abs"] = max(parities)
    return {"onnx_parity_max_abs": world.figures["onnx_parity_max_abs"], "models_approved": len(world.sites)}


def _approve(site: Site) -> bool:
    states = site.rows("clinical", select(ModelVersion.id, ModelVersion.state, ModelVersion.reason))
    for model_version_id, state, reason in states:
        if state == ModelState.REFUSED:
            raise StageError(f"{site.title} refused the model package: {reason}")
        if state == ModelState.EVALUATED:
            zone = site.clinical()
            models.approve(zone, model_version_id, site.user_id, ModelState.ACTIVE)
            zone.engine.dispose()
            return True
    return False


def next_study(world: World, deadline: Deadline) -> dict[str, Any]:
    """Send the next patient's study; its results must reach the workstation."""
    site, study = world.sites[0], world.following
    if study is None or world.workstation is None:
        raise StageError("there is no next study, or no workstation")
    workstation = world.workstation
    started = time.monotonic()
    sender = start_pacs(world, site, "pacs-next", list(study.paths))

    def all_there(bars: Bars) -> bool:
        code = sender.process.poll()
        if code not in (None, 0):
            raise StageError(f"the PACS could not send the next study; its log is {sender.log}")
        dead = select(ClinicalJob.kind, ClinicalJob.reason).where(ClinicalJob.state == WorkState.DEAD)
        for kind, reason in site.rows("clinical", dead):
            raise StageError(f"a job of kind {kind} is dead: {reason}")
        results = json_lines(workstation)[1:]
        bars.show("results at the workstation", len(results), RESULT_SOP_CLASSES)
        return len({result["sop_class_uid"] for result in results}) >= RESULT_SOP_CLASSES

    with world.screen.bars() as bars:
        world.until(deadline, "report and capture at the workstation", lambda: all_there(bars))
    seconds = time.monotonic() - started
    results = json_lines(workstation)[1:]
    check_results(results, study)
    figures = world.figures
    figures["results_delivered"] = len(results)
    figures["result_sop_classes"] = sorted({result["sop_class_uid"] for result in results})
    figures["seconds_study_to_result"] = round(seconds, 2)
    figures["next_study_probability"] = next((p for r in results for p in r["probabilities"]), None)
    figures["next_study_label"] = study.label
    names = ("results_delivered", "result_sop_classes", "seconds_study_to_result", "next_study_probability")
    return {name: figures[name] for name in names}


def check_results(results: list[dict[str, Any]], study: CohortStudy) -> None:
    """Refuse results that a reader could not use or that belong to somebody else."""
    for result in results:
        if result["problem"]:
            raise StageError(f"the workstation cannot show a result: {result['problem']}")
        if (
            result["patient_id"] != study.patient_id
            or result["study_instance_uid"] != study.study_instance_uid
        ):
            raise StageError("a result carries another patient or study than was sent")
        if not result["referenced"]:
            raise StageError("a result refers to no instance")
    if not any(result["modality"] == "SR" and result["probabilities"] for result in results):
        raise StageError("there is no structured report with a probability")
