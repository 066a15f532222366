"""A component of the engine's server: jobs that ran when the server last died are marked as ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent

if TYPE_CHECKING:
    from nvflare.apis.fl_context import FLContext


class AbandonedJobs(FLComponent):  # type: ignore[misc]
    """Marks a killed server's jobs, which otherwise stay "running" for ever; our book goes on regardless."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Sweep once, when the server has started and runs nothing yet."""
        if event_type == EventType.SYSTEM_START:
            fl_ctx.get_engine().job_runner.update_abnormal_finished_jobs([], fl_ctx)
