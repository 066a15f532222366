"""Policies of the engine, as data: what a site or a coordinator allows whoever talks to it.

A site writes its own policy when it joins; nobody else says what it allows.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROJECT: Final = "cloister"
ORGANIZATION: Final = "cloister"
ADMIN: Final = "coordinator@cloister.local"
ADMIN_ROLE: Final = "lead"
SCHEME: Final = "tcp"

TASK_ADMIT: Final = "admit"
TASK_TRAIN: Final = "train"
TASK_FINALIZE: Final = "finalize"
TASK_AGGREGATE: Final = "aggregate"
TASK_SEND: Final = "send"
TASK_LEDGER: Final = "ledger"
TOPIC_PROGRESS: Final = "cloister.progress"
TASKS: Final = (TASK_ADMIT, TASK_TRAIN, TASK_AGGREGATE, TASK_SEND, TASK_FINALIZE, TASK_LEDGER)

# Environment of the engine's processes: where its components find the rest of the appliance.
SOCKET_VARIABLE: Final = "CLOISTER_FEDERATION_SOCKET"
ROOT_VARIABLE: Final = "CLOISTER_COORDINATOR_ROOT"
ENROLMENT_VARIABLE: Final = "CLOISTER_ENROLMENT_SOCKET"

EXECUTOR_CLASS: Final = "appliance.federation.executor.SiteExecutor"
CONTROLLER_CLASS: Final = "appliance.federation.controller.RunWorkflow"
SWEEPER_CLASS: Final = "appliance.federation.sweeper.AbandonedJobs"
SITE_JOBS_CLASS: Final = "appliance.federation.launchers.SiteJobs"
SERVER_JOBS_CLASS: Final = "appliance.federation.launchers.ServerJobs"

# The engine reads these from the environment of its processes; seconds.
ENGINE_VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "15",  # 900: a job with a lost site stays "running" that long
        "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "10",
        "NVFLARE_JOB_HEARTBEAT_INTERVAL": "5",
        "NVFLARE_TASK_CHECK_INTERVAL": "2",
        "NVFLARE_END_RUN_READINESS_TIMEOUT": "5",
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's; what is summed is small and the processors are others', too
        # Arrays go back to the system, smaller blocks stay: else aggregation takes three times as long.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20),
    }
)
SITE_HEARTBEAT_TIMEOUT_S: Final = 30
JOB_OVER_CHECK_S: Final = 0.5  # 3: so late may a coordinator's job process notice that its work is done

# Nobody may send code, look at files or read logs; the coordinator may submit, abort and delete jobs.
_NOBODY: Final = "none"
_RIGHTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit_job": "any",
        "clone_job": _NOBODY,
        "manage_job": "any",
        "download_job": _NOBODY,
        "view": "any",
        "operate": _NOBODY,
        "shell_commands": _NOBODY,
        "byoc": _NOBODY,
        "server-predeployed-flwr": _NOBODY,
    }
)
AUTHORIZATION: Final[Mapping[str, Any]] = MappingProxyType(
    {"format_version": "1.0", "permissions": {ADMIN_ROLE: dict(_RIGHTS)}}
)

PRIVACY: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "scopes": [{"name": "cloister", "task_result_filters": [], "task_data_filters": []}],
        "default_scope": "cloister",
    }
)


def site_resources() -> dict[str, Any]:
    """Return the engine's ``resources.json`` of a site."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [EXECUTOR_CLASS],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            _component(
                "resource_manager",
                "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
            ),
            _component(
                "resource_consumer",
                "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
                {},
            ),
            _component(
                "process_launcher",
                SITE_JOBS_CLASS,
                {},
            ),
        ],
    }


def coordinator_resources(store: Path) -> dict[str, Any]:
    """Return the engine's ``resources.json`` of the coordinator; jobs and snapshots live below ``store``."""
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [CONTROLLER_CLASS],
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": 100,
                "heart_beat_timeout": SITE_HEARTBEAT_TIMEOUT_S,
                "check_engine_frequency": JOB_OVER_CHECK_S,
                "download_job_url": "http://download.server.com/",
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {"path": storage, "args": {"root_dir": str(store / "snapshots"), "uri_root": "/"}},
            },
        },
        "components": [
            _component(
                "job_scheduler",
                "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                {"max_jobs": 4, "min_schedule_interval": 1.0},
            ),
            _component(
                "job_manager",
                "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                {"uri_root": str(store / "jobs"), "job_store_id": "job_store"},
            ),
            {"id": "job_store", "path": storage},
            _component(
                "process_launcher",
                SERVER_JOBS_CLASS,
                {},
            ),
            _component("abandoned_jobs", SWEEPER_CLASS, {}),
        ],
    }


def log_config() -> dict[str, Any]:
    """Return the engine's logging: warnings to standard error, for the supervisor to collect; no files."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}
        },
        "loggers": {"root": {"level": "WARNING", "handlers": ["stderr"]}},
    }


def _component(name: str, path: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "path": path, "args": dict(args)}
