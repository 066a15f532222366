"""One site whose job process fails ends nothing for the others.

The engine's server ends a job for everybody when one site reports that its process failed, or merely could
not start. Here that site alone counts as gone from the job; only the report of the last one left ends it.
A site whose standing process came back has none of its job processes left: it counts as gone at once, and
nobody waits until its silence is long enough to tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance import logs

if TYPE_CHECKING:
    from collections.abc import Callable

SITE_FAILED = "federation.site_job_failed"
SITE_RETURNED = "federation.site_returned"

_LOG = logs.logger(__name__)


def install() -> None:
    """Change the engine's server in this process."""
    from nvflare.private.fed.server.fed_server import FederatedServer  # noqa: PLC0415 - heavy

    FederatedServer.process_job_failure = _bearing(FederatedServer.process_job_failure)
    FederatedServer.register_client = _noticing(FederatedServer.register_client)


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


def _noticing(register: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    from nvflare.private.defs import CellMessageHeaderKeys, ClientType  # noqa: PLC0415

    def notice(server: Any, request: Any) -> Any:
        site = str(request.get_header(CellMessageHeaderKeys.CLIENT_NAME))
        runner = server.engine.job_runner
        left = runner.get_client_outcome_jobs(site)
        answer = register(server, request)
        admitted = isinstance(answer.payload, dict) and answer.payload.get(CellMessageHeaderKeys.TOKEN)
        if not admitted or request.get_header(CellMessageHeaderKeys.CLIENT_TYPE) != ClientType.REGULAR:
            return answer
        for job_id in sorted(left):
            _LOG.warning(SITE_RETURNED, site=site, job_id=job_id)
            runner.resolve_client_outcome(job_id, site)
            server.engine.notify_dead_job(job_id, site, "its standing process came back without it")
        return answer

    return notice


def _others_work(server: Any, job_id: str, site: str) -> bool:
    names = {client.name for client in server.client_manager.clients.values()} - {site}
    return any(server.engine.job_runner.is_client_outcome_pending(job_id, name) for name in names)
