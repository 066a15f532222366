"""What Celery reads from the environment when it is first imported."""

from __future__ import annotations

import os


def stop_workers_by_cold_shutdown() -> None:
    """Let SIGTERM end a worker soon, whatever its task does; call this before Celery is imported.

    Celery's usual answer waits for the task, for hours if need be. The row of a task that is cut off is taken
    over at once, because its owner is seen to be dead.
    """
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
