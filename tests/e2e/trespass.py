"""Try to reach into the other zone, and print what was reached; run as one zone's user.

Usage: trespass.py OTHER_ROOT NOT_OURS_TO_WRITE PID ...
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ("keys/signing.pem", "clinical.db", "research.db", "ledger.head")
SOCKETS = ("clinical_redis.sock", "research_redis.sock", "federation.sock")


def main(other: Path, spool: Path, pids: list[str]) -> None:
    """Try everything."""
    _try("list", lambda: list(other.iterdir()))
    for name in FILES:
        _try(name, (other / name).read_bytes)
    for name in SOCKETS:
        _try(name, lambda name=name: _connect(other / "run" / name))  # type: ignore[misc]
    _try("write the spool", lambda: (spool / "forged").write_bytes(b"x"))
    for pid in pids:
        _try(f"memory of {pid}", Path(f"/proc/{pid}/environ").read_bytes)
        _try(f"signal to {pid}", lambda pid=pid: os.kill(int(pid), 0))  # type: ignore[misc]


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def _try(what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except PermissionError:
        _say("refused", what)
    except OSError as error:
        _say("reached", f"{what} {type(error).__name__}")
    else:
        _say("reached", what)


def _say(outcome: str, what: str) -> None:
    sys.stdout.write(f"{outcome}: {what}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
