"""Queue ``clinical``: the door out, delivery, reports to peers."""

from __future__ import annotations

from appliance import broker
from appliance.tasks.runner import run_job
from appliance.worker import clinical_app, task


@task(clinical_app, broker.DEIDENTIFY_STUDY)
def deidentify_study(job_id: str) -> None:
    """De-identify a study revision and hand it to the research zone."""
    run_job(job_id, broker.CLINICAL_QUEUE)


@task(clinical_app, broker.DELIVER_RESULT)
def deliver_result(job_id: str) -> None:
    """Send a result to its destination."""
    run_job(job_id, broker.CLINICAL_QUEUE)


@task(clinical_app, broker.REPORT_COMMITMENT)
def report_commitment(job_id: str) -> None:
    """Tell a peer what of its instances is committed."""
    run_job(job_id, broker.CLINICAL_QUEUE)


@task(clinical_app, broker.ERASE_FILES)
def erase_files(job_id: str) -> None:
    """Remove the files of a study whose rows are deleted."""
    run_job(job_id, broker.CLINICAL_QUEUE)


@task(clinical_app, broker.REVIEW_INSTANCE)
def review_instance(job_id: str) -> None:
    """Show a person what would leave if an instance were released as they draft it."""
    run_job(job_id, broker.CLINICAL_QUEUE)
