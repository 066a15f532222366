"""Celery worker of the queue ``research``; its child, which loads torch, ends after idling."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from appliance.processes import base
from appliance.processes._celery import stop_workers_by_cold_shutdown

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("research_worker", _body, argv)


def _body(process: base.Process) -> None:
    stop_workers_by_cold_shutdown()
    from appliance import broker, node, worker  # noqa: PLC0415 - after the line above

    url = node.redis_url(process.settings, "research")
    idle_s = process.settings.training.child_idle_s
    worker.run_worker(worker.research_app, process, url=url, queue=broker.RESEARCH_QUEUE, idle_s=idle_s)


if __name__ == "__main__":
    sys.exit(main())
