"""An engine job of a run: configuration alone, no code, no weights, no plan; the book holds those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from appliance.federation import policy
from appliance.federation.provision import write_json

if TYPE_CHECKING:
    from pathlib import Path

REQUEST_INTERVAL_S: Final = 0.2
RESEND_SHARE: Final = 0.25  # of a round's time: what was lost on the wire is asked for or sent again then
RESEND_AFTER_S: Final = 60.0  # and not sooner
SYNC_TIMEOUT_S: Final = 15.0  # the engine's 2 s shut out whoever has a slow link
SYNC_FOR_S: Final = 120.0


def build(folder: Path, run_id: str, min_sites: int, round_timeout_s: float = 1200.0) -> Path:
    """Write the job's folder and return it.

    Parameters
    ----------
    folder : Path
        Where to write; its name is the job's name.
    min_sites : int
        With fewer sites the engine does not start the job.
    round_timeout_s : float
        The plan's; a site waits for an answer of the coordinator for a share of it.
    """
    write_json(folder / "meta.json", meta(folder.name, min_sites))
    config = folder / "app" / "config"
    write_json(config / "config_fed_server.json", server_config(run_id))
    write_json(config / "config_fed_client.json", site_config(round_timeout_s))
    return folder


def meta(name: str, min_sites: int) -> dict[str, Any]:
    """Return the job's ``meta.json``: everyone who is there takes part."""
    return {
        "name": name,
        "resource_spec": {},
        "deploy_map": {"app": ["@ALL"]},
        "min_clients": min_sites,
        "mandatory_clients": [],
    }


def server_config(run_id: str) -> dict[str, Any]:
    """Return ``config_fed_server.json``."""
    return {
        "format_version": 2,
        "server": {
            "heart_beat_timeout": policy.SITE_HEARTBEAT_TIMEOUT_S,
            "task_request_interval": REQUEST_INTERVAL_S,
        },
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
        "workflows": [{"id": "run", "path": policy.CONTROLLER_CLASS, "args": {"run_id": run_id}}],
    }


def site_config(round_timeout_s: float = 1200.0) -> dict[str, Any]:
    """Return ``config_fed_client.json``."""
    resend_after_s = max(RESEND_AFTER_S, RESEND_SHARE * round_timeout_s)
    return {
        "format_version": 2,
        "runner_sync_timeout": SYNC_TIMEOUT_S,
        "max_runner_sync_timeout": SYNC_FOR_S,
        "task_check_timeout": SYNC_TIMEOUT_S,
        "get_task_timeout": resend_after_s,
        "submit_task_result_timeout": resend_after_s,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
        "executors": [
            {"tasks": list(policy.TASKS), "executor": {"path": policy.EXECUTOR_CLASS, "args": {}}},
        ],
    }
