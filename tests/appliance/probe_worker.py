"""A node's Celery worker whose work is a probe.

Run ``python -m tests.appliance.probe_worker NAME --config PATH``. All is the product's but the function
that does the work: it writes down that it began, waits for the file ``hold`` to go away, writes down that it
ended, and finishes. A number in ``hold`` lets so many pieces of work pass first.
"""

from __future__ import annotations

import os
import sys
import time
import types
from importlib import import_module
from typing import TYPE_CHECKING

from appliance.tasks import runner

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone, ResearchZone
    from appliance.work import Claim


def probe(zone: ClinicalZone | ResearchZone, claim: Claim) -> None:
    """Leave traces in the zone's root."""
    log = zone.root / "probe.log"
    with log.open("a") as file:
        file.write(f"began {claim.row_id} {os.getpid()}\n")
    while _is_held(zone.root / "hold", log):
        time.sleep(0.02)
    with log.open("a") as file:
        file.write(f"ended {claim.row_id} {os.getpid()}\n")
    claim.finish()


def _is_held(hold: Path, log: Path) -> bool:
    try:
        let_pass = int(hold.read_text() or 0)
    except FileNotFoundError:
        return False
    return log.read_text().count("ended ") >= let_pass


def main() -> int:
    """Run the worker of the given name."""
    for module, function in (*runner.CLINICAL_WORK.values(), ("appliance.training", "run_round")):
        stand_in = types.ModuleType(module)
        setattr(stand_in, function, probe)
        sys.modules[module] = stand_in
    name, *rest = sys.argv[1:]
    code: int = import_module(f"appliance.processes.{name}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
