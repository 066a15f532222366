"""Queue ``clinical.fetch``: studies pulled from archives."""

from __future__ import annotations

from appliance import broker
from appliance.tasks.runner import run_job
from appliance.worker import clinical_app, task


@task(clinical_app, broker.FETCH_STUDIES)
def fetch_studies(job_id: str) -> None:
    """Ask an archive, or pull the next study of a fetch."""
    run_job(job_id, broker.FETCH_QUEUE)
