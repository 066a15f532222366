"""Celery worker of the queue ``clinical.fetch``: a large study on its way holds up nobody else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from appliance.processes import base
from appliance.processes._celery import stop_workers_by_cold_shutdown

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("fetch_worker", _body, argv)


def _body(process: base.Process) -> None:
    stop_workers_by_cold_shutdown()
    from appliance import broker, node, worker  # noqa: PLC0415 - after the line above

    url = node.redis_url(process.settings, "clinical")
    worker.run_worker(worker.clinical_app, process, url=url, queue=broker.FETCH_QUEUE)


if __name__ == "__main__":
    sys.exit(main())
