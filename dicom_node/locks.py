"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def locked(folder: Path, deadline: float) -> int | None:
    """Return the lock of a writer's folder; None when another process holds it until the deadline."""
    lock = os.open(folder.with_suffix(".lock"), os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.02)
        except OSError:
            os.close(lock)
            raise
        else:
            return lock
