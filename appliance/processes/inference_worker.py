"""Celery worker of the queue ``clinical.inference``; only its child loads models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from appliance.processes import base

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop."""
    return base.run("inference_worker", _body, argv)


def _body(process: base.Process) -> None:
    from appliance import broker, node, worker  # noqa: PLC0415 - signals and logs first

    worker.run_worker(
        worker.clinical_app,
        process,
        url=node.redis_url(process.settings, "clinical"),
        queue=broker.INFERENCE_QUEUE,
        idle_s=None,
    )


if __name__ == "__main__":
    sys.exit(main())
