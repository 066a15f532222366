"""Further processes of the same kind as this one, which starts them, watches them and ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from appliance import health, logs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.processes.base import Process

STOP_WITHIN_S: Final = 3.0
ENDED: Final = "sibling.ended"

_LOG = logs.logger(__name__)


class Siblings:
    """Processes of one module beside its first one.

    Parameters
    ----------
    module : str
        Their module under ``appliance.processes``, which is the name of their signs of life, too.
    process : Process
        The first one: this process.
    count : int
        How many there are in all.
    """

    def __init__(self, module: str, process: Process, count: int) -> None:
        self._module = module
        self._process = process
        self._children: dict[int, subprocess.Popen[bytes] | None] = dict.fromkeys(range(1, count))

    def look(self) -> None:
        """Start those that do not run."""
        for number, child in self._children.items():
            if child is not None and child.poll() is None:
                continue
            if child is not None:
                _LOG.error(ENDED, number=number, code=child.returncode)
            self._children[number] = subprocess.Popen(self._command(number))

    def _command(self, number: int) -> Sequence[str]:
        config, parent = str(self._process.config), str(os.getpid())
        module = f"appliance.processes.{self._module}"
        return [sys.executable, "-m", module, "--config", config, "--parent", parent, "--number", str(number)]

    def add_to(self, detail: dict[str, Any]) -> dict[str, Any]:
        """Add what living siblings count to what this process counts."""
        total = dict(detail)
        for number in self._children:
            beat = health.last_beat(self._process.settings, f"{self._module}_{number}")
            if beat is not None and not beat.gone:
                for key, value in beat.detail.items():
                    total[key] = total.get(key, 0) + value
        return total

    def tell_to_stop(self) -> None:
        """Ask all of them to end."""
        for child in self._children.values():
            if child is not None:
                child.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait until all have ended that were told to, as long as this one has; then end them by force."""
        deadline = time.monotonic() + STOP_WITHIN_S
        for child in self._children.values():
            if child is None:
                continue
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
