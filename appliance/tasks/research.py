"""Queue ``research``: local rounds, and preflights."""

from __future__ import annotations

from appliance import broker
from appliance.tasks.runner import run_research_job, run_round
from appliance.worker import research_app, task


@task(research_app, broker.RUN_LOCAL_ROUND)
def run_local_round(round_id: str) -> None:
    """Train, or evaluate and export, as the round's row says."""
    run_round(round_id, "appliance.training", "run_round")


@task(research_app, broker.RUN_PREFLIGHT)
def run_preflight(job_id: str) -> None:
    """Look at the local cohort as a protocol's task would use it."""
    run_research_job(job_id, "appliance.preflight", "run")
