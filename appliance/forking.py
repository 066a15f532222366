"""Start a node's processes by forking the supervisor, which has the libraries that all of them use loaded.

Each process then has the memory of its own libraries only, and starts in a fraction of the time. A process
can be started by itself as well: ``python -m appliance.processes.NAME --config PATH``.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from appliance import children

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# What most processes import anyway. Nothing of these opens a file, a socket or a thread.
SHARED: Final = (
    "appliance.health",
    "appliance.node",
    "appliance.processes.base",
    "appliance.processes._celery",
    "appliance.work",
    "sqlalchemy.dialects.sqlite",
    "redis",
)
SHARED_BY_WORKERS: Final = ("appliance.worker", "appliance.tasks.runner", "celery.apps.worker")
# NumPy's library would share out sums of a mebibyte among all processors, which others use.
LEAN: Final[Mapping[str, str]] = MappingProxyType({"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"})
_INHERITED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def preload() -> None:
    """Import what the processes share, and keep the garbage collector from touching it."""
    for name, value in LEAN.items():
        os.environ.setdefault(name, value)
    import_module("appliance.processes._celery").stop_workers_by_cold_shutdown()
    for name in (*SHARED, *SHARED_BY_WORKERS):
        import_module(name)
    gc.collect()
    gc.freeze()


def forker(config: Path) -> Callable[[str], int]:
    """Return the function that starts the process of a name and returns its number."""
    arguments = ["--config", str(config.resolve()), "--parent", str(os.getpid())]

    def start(name: str) -> int:
        module = f"appliance.processes.{name}"

        def main() -> int:
            code: int = import_module(module).main(arguments)
            return code

        return fork(main, name)

    return start


def fork(main: Callable[[], int], name: str) -> int:
    """Run ``main`` in a child that leads its own process group and has none of our files or handlers.

    Signals wait while the child is not ready for them, so that none is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INHERITED)
    pid = os.fork()
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 1
    try:
        _become_own_process(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = main()
    finally:  # the child must never return into the supervisor's own code
        os._exit(_exit_code(sys.exc_info()[1], code))
    raise AssertionError("unreachable")


def _exit_code(error: BaseException | None, code: int) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    return code


def _become_own_process(name: str) -> None:
    signal.set_wakeup_fd(-1)
    for number in _INHERITED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a caller that hangs up must not end a server
    os.setpgid(0, 0)
    os.closerange(3, max(os.sysconf("SC_OPEN_MAX"), 4096))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    children.set_name(name)


def run_in_child(action: Callable[[], None], name: str) -> int:
    """Run an action in a forked child and return its exit code: what it imports and opens is gone with it."""

    def main() -> int:
        action()
        return 0

    return os.waitstatus_to_exitcode(os.waitpid(fork(main, name), 0)[1])
