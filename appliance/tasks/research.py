"""Queue ``research``: local rounds."""

from __future__ import annotations

from appliance import broker
from appliance.tasks.runner import run_round
from appliance.worker import research_app, task


@task(research_app, broker.RUN_LOCAL_ROUND)
def run_local_round(round_id: str) -> None:
    """Train, or evaluate and export, as the round's row says."""
    run_round(round_id, "appliance.training", "run_round")
