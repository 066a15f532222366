"""Run one of the engine's job processes, of a site or of the coordinator, in this very process.

Started as ``python -m appliance.federation.jobhost site|server ...`` by the engine's standing process (see
:mod:`appliance.federation.launchers`), with the engine's own options after the role. It is the engine's job
process without what makes the next job wait for no reason.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance.children import keep_freed_pieces

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

MODULE: Final = "appliance.federation.jobhost"
SITE: Final = "site"
SERVER: Final = "server"
# The engine's three seconds are for "pending activities"; a job process has drained its messages by then.
SHUTDOWN_GRACE_S: Final = 0.1
PARENT_CHECK_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job to its end; return the engine's exit code."""
    role, *options = sys.argv[1:] if argv is None else argv
    keep_freed_pieces()
    from nvflare.fuel.f3.mpm import MainProcessMonitor  # noqa: PLC0415 - the launchers need the names alone

    from appliance.federation import arraystream  # noqa: PLC0415 - heavy

    arraystream.register()
    job = _job(role)
    job.monitor_parent_process = _watch_parent
    sys.argv = [sys.argv[0], *options]  # the engine's parser reads them there
    arguments = job.parse_arguments()
    run_dir = str(Path(arguments.workspace) / arguments.job_id)
    code = MainProcessMonitor.run(
        main_func=job.main, run_dir=run_dir, shutdown_grace_time=SHUTDOWN_GRACE_S, args=arguments
    )
    return int(code or 0)


def _job(role: str) -> Any:
    if role == SITE:
        from nvflare.private.fed.app.client import worker_process  # noqa: PLC0415 - of this role alone

        return worker_process
    if role == SERVER:
        from nvflare.private.fed.app.server import runner_process  # noqa: PLC0415 - of this role alone

        _leave_torch_alone()
        outlive_messages()
        return runner_process
    raise SystemExit(f"{MODULE}: expected {SITE} or {SERVER} as the first argument")


def _watch_parent(runner: Any, parent_pid: int, stopping: threading.Event) -> None:
    """End the job when the standing process ends; the engine's own look sleeps on when the job is over."""
    while os.getppid() == parent_pid and not stopping.wait(PARENT_CHECK_S):
        pass
    runner.stop()


def _leave_torch_alone() -> None:
    """Stop the engine from loading torch at the end of every job, for tensors that never came."""
    from nvflare.apis.impl.wf_comm_server import WFCommServer  # noqa: PLC0415 - heavy

    engine_drops = WFCommServer._cleanup_inflight_tensor_downloads  # noqa: SLF001 - there is no other way

    def drop(communicator: Any, fl_ctx: Any) -> None:
        if "torch" in sys.modules:
            engine_drops(communicator, fl_ctx)

    WFCommServer._cleanup_inflight_tensor_downloads = drop  # noqa: SLF001


def outlive_messages() -> None:
    """Let no message end the coordinator's job: the engine would, for an update that it cannot decode.

    Any site could end it so, again and again. What sent such a message is told, and counts as silent.
    """
    from nvflare.fuel.f3.cellnet import cell  # noqa: PLC0415 - heavy

    def never(info: Any) -> bool:
        del info
        return False

    cell._is_server_job_cell = never  # noqa: SLF001 - there is no other way


if __name__ == "__main__":
    sys.exit(main())
