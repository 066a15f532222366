"""Child processes of this package: its modules, run where they see nothing of the product's settings."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

_OURS: Final = {
    "OMP_NUM_THREADS": "1",
    # glibc's (mallopt(3)): it would rise, and weights that a runtime frees as it loads would stay.
    "MALLOC_MMAP_THRESHOLD_": "131072",
}


def start(module: str, stdout: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Run a module in a session of its own; requests go to its standard input."""
    # The product's own settings may hold passwords of databases; a stranger's model shall not see them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        env=environment | _OURS,
        cwd=Path(__file__).resolve().parents[1],
        start_new_session=True,
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
