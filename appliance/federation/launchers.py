"""What starts the engine's job processes: the engine's own launchers, with our module as the program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

from appliance.federation import jobhost

if TYPE_CHECKING:
    from nvflare.apis.fl_context import FLContext


class SiteJobs(ClientProcessJobLauncher):  # type: ignore[misc]
    """Starts a site's job process."""

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        """Return the command line."""
        _name_program(fl_ctx, jobhost.SITE)
        return str(super().get_command(job_meta, fl_ctx))


class ServerJobs(ServerProcessJobLauncher):  # type: ignore[misc]
    """Starts the coordinator's job process."""

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        """Return the command line."""
        _name_program(fl_ctx, jobhost.SERVER)
        return str(super().get_command(job_meta, fl_ctx))


def _name_program(fl_ctx: FLContext, role: str) -> None:
    arguments = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    if arguments:
        arguments[JobProcessArgs.EXE_MODULE] = ("-m", f"{jobhost.MODULE} {role}")
