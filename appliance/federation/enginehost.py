"""Run the engine's standing process, of a site or of the coordinator, in this very process.

Both are started as ``python -m appliance.federation.enginehost site|server ...`` by our supervisors. The
engine starts job processes of its own, each in its own session; this process ends them when it ends itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance.children import (
    descendants_of,
    die_with_parent,
    keep_freed_pieces,
    return_freed_memory_at_times,
    send_signal,
)
from appliance.federation import policy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

BEAT_EVERY_S: Final = 5.0
JOBS_END_WITHIN_S: Final = 2.0

# What the coordinator may ask of a site's standing process. Not here: shell commands, system information,
# log configuration, restart and shutdown. The engine lets the asking side decide whether rights are checked.
ALLOWED_REQUESTS: Final = frozenset(
    {
        "ClientStatusProcessor",
        "ScopeInfoProcessor",
        "AbortAppProcessor",
        "DeployProcessor",
        "DeleteRunNumberProcessor",
        "ClientInfoProcessor",
        "AbortTaskProcessor",
        "StartJobProcessor",
        "CheckResourceProcessor",
        "CancelResourceProcessor",
        "ReportResourcesProcessor",
        "ReportVersionProcessor",
        "NotifyJobStatusProcessor",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop or until the engine gives up."""
    arguments = _parse(argv)
    os.umask(0o077)
    keep_freed_pieces()
    if arguments.parent is not None:
        die_with_parent(signal.SIGTERM, arguments.parent)
    os.environ.update(
        {name: value for name, value in policy.ENGINE_VARIABLES.items() if name not in os.environ}
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if arguments.beat is not None:
        threading.Thread(target=_beat, args=(arguments.beat,), name="beat", daemon=True).start()
    return_freed_memory_at_times()
    run = _run_site if arguments.role == "site" else _run_server
    code = run(arguments.workspace, arguments.name)
    end_jobs()
    return code


def command(role: str, workspace: Path, name: str) -> list[str]:
    """Return the command line of an engine process, for supervisors."""
    module = "appliance.federation.enginehost"
    return [sys.executable, "-m", module, role, "--workspace", str(workspace), "--name", name]


def end_jobs() -> None:
    """End the engine's job processes below this one: politely, then not."""
    deadline = time.monotonic() + JOBS_END_WITHIN_S
    for pid in descendants_of(os.getpid()):
        send_signal(pid, signal.SIGTERM)
    while (
        left := [pid for pid in descendants_of(os.getpid()) if _lives(pid)]
    ) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        send_signal(pid, signal.SIGKILL)


def restrict_requests() -> None:
    """Take away from the coordinator what it has no business asking for."""
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors  # noqa: PLC0415

    ClientRequestProcessors.request_processors[:] = [
        processor
        for processor in ClientRequestProcessors.request_processors
        if type(processor).__name__ in ALLOWED_REQUESTS
    ]


def _run_site(workspace: Path, name: str) -> int:
    from nvflare.fuel.f3.mpm import MainProcessMonitor  # noqa: PLC0415 - signals first
    from nvflare.private.fed.app.client import client_train  # noqa: PLC0415

    restrict_requests()
    options = ["secure_train=true", f"uid={name}", f"org={policy.ORGANIZATION}", "config_folder=config"]
    arguments = argparse.Namespace(
        workspace=str(workspace), fed_client="fed_client.json", set=options, local_rank=0
    )
    return _code(MainProcessMonitor.run(main_func=client_train.main, run_dir=str(workspace), args=arguments))


def _run_server(workspace: Path, name: str) -> int:
    from nvflare.fuel.f3.mpm import MainProcessMonitor  # noqa: PLC0415 - signals first
    from nvflare.private.fed.app.server import server_train  # noqa: PLC0415

    from appliance.federation import door, failures  # noqa: PLC0415 - a site's process loads no database

    del name
    failures.install()
    door.install(Path(os.environ[policy.ROOT_VARIABLE]), Path(os.environ[policy.ENROLMENT_VARIABLE]))
    options = ["secure_train=true", f"org={policy.ORGANIZATION}", "config_folder=config"]
    arguments = argparse.Namespace(workspace=str(workspace), fed_server="fed_server.json", set=options)
    return _code(MainProcessMonitor.run(main_func=server_train.main, run_dir=str(workspace), args=arguments))


def _code(value: Any) -> int:
    """Return an exit code: an engine process that ends by itself has failed, unless it says otherwise."""
    return value if isinstance(value, int) else 1


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    end_jobs()
    os._exit(0)


def _lives(pid: int) -> bool:
    """Whether a process is there and more than an entry that nobody has collected (proc(5), stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _beat(path: Path) -> None:
    """Leave signs of life in the form of :mod:`appliance.health`."""
    from appliance import owners  # noqa: PLC0415 - only a site's process beats

    pid = os.getpid()
    started = owners.started(pid)
    while True:
        content = {"at": time.time(), "pid": pid, "started": started, "detail": {}}
        temporary = path.with_name(f".{path.stem}.{pid}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)
        time.sleep(BEAT_EVERY_S)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="appliance.federation.enginehost")
    parser.add_argument("role", choices=("site", "server"))
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--beat", type=Path, help="file to leave signs of life in")
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
