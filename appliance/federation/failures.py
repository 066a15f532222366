"""One site whose job process fails ends nothing for the others.

The engine's server ends a job for everybody when one site reports that its process failed, or merely could
not start. Here that site alone counts as gone from the job; only the report of the last one left ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance import logs

if TYPE_CHECKING:
    from collections.abc import Callable

SITE_FAILED = "federation.site_job_failed"

_LOG = logs.logger(__name__)


def install() -> None:
    """Change the engine's server in this process."""
    from nvflare.private.fed.server.fed_server import FederatedServer  # noqa: PLC0415 - heavy

    FederatedServer.process_job_failure = _bearing(FederatedServer.process_job_failure)


def _bearing(judge: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey  # noqa: PLC0415

    def bear(server: Any, request: Any) -> Any:
        payload = request.payload
        site = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
        if not isinstance(payload, dict) or site is None or not payload.get(JobFailureMsgKey.CODE):
            return judge(server, request)
        job_id = str(payload.get(JobFailureMsgKey.JOB_ID))
        if not _others_work(server, job_id, site.name):
            return judge(server, request)
        _LOG.warning(SITE_FAILED, site=site.name, job_id=job_id, code=payload[JobFailureMsgKey.CODE])
        request.payload = {**payload, JobFailureMsgKey.CODE: None}  # the site's part is over, the job is not
        answer = judge(server, request)
        server.engine.notify_dead_job(job_id, site.name, "its job process ended")
        return answer

    return bear


def _others_work(server: Any, job_id: str, site: str) -> bool:
    names = {client.name for client in server.client_manager.clients.values()} - {site}
    return any(server.engine.job_runner.is_client_outcome_pending(job_id, name) for name in names)
