"""Queue ``clinical.inference``: models on studies."""

from __future__ import annotations

from appliance import broker
from appliance.tasks.runner import run_job
from appliance.worker import clinical_app, task


@task(clinical_app, broker.INFER_STUDY)
def infer_study(job_id: str) -> None:
    """Run the models that fit a study revision."""
    run_job(job_id, broker.INFERENCE_QUEUE)
