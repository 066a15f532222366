"""What each process may import before it has work: the memory of a node depends on it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = frozenset({"torch", "monai", "onnxruntime", "highdicom", "nvflare", "nicegui"})
WORKER = HEAVY | {"pynetdicom", "fastapi", "uvicorn", "alembic", "numpy", "pydicom", "onnx"}

BUDGETS = {
    "appliance.cli": (HEAVY | {"celery", "sqlalchemy", "numpy", "pydicom"}, 700),
    "appliance.research_client": (WORKER | {"celery", "sqlalchemy", "structlog"}, 300),
    "appliance.worker": (WORKER, 900),
    "appliance.tasks.clinical": (WORKER, 1300),
    "appliance.tasks.inference": (WORKER, 1300),
    "appliance.tasks.research": (WORKER, 1300),
    "appliance.processes.base": (WORKER | {"celery"}, 1200),
    "appliance.processes.clinical_redis": (WORKER | {"celery"}, 1200),
    "appliance.processes.scp": (HEAVY | {"celery", "fastapi", "alembic"}, 2000),
    "appliance.processes.indexer": (HEAVY | {"fastapi", "alembic"}, 2000),
    "appliance.research_api": (HEAVY | {"alembic", "pydicom"}, 1100),
    "appliance.processes.research_agent": (HEAVY | {"alembic"}, 2000),
    "appliance.processes.web": (HEAVY - {"nicegui"}, 2500),
    "appliance.processes.federation_site": (HEAVY, 2000),
    "appliance.supervisor": (WORKER | {"celery"}, 1200),
    "trainer": (HEAVY | {"numpy"}, 400),
    "trainer.task": (HEAVY, 1200),
    "trainer.local_round": (HEAVY - {"torch"} | {"scipy"}, 1600),
    "trainer.export": (HEAVY - {"torch"}, 2000),
    "trainer.federation": (HEAVY, 1200),
    "inference": (HEAVY, 400),
    "anonymizer": (HEAVY, 400),
    "dicom_node": (HEAVY, 400),
}


def imported(statement: str) -> set[str]:
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", sorted(BUDGETS))
def test_importing_stays_within_its_budget(module: str) -> None:
    forbidden, count = BUDGETS[module]
    found = imported(f"import {module}")
    assert sorted(forbidden & found) == []
    assert len(found) <= count


def test_the_command_line_with_all_its_commands_imports_nothing_heavy() -> None:
    found = imported("from appliance import cli; cli.build()")
    assert sorted(found & (HEAVY | {"celery", "sqlalchemy"})) == []


def test_what_processes_are_forked_from_holds_nothing_heavy_and_no_thread() -> None:
    found = imported(
        "from appliance import forking; forking.preload()\n"
        "import threading; assert threading.active_count() == 1"
    )
    assert sorted(found & (HEAVY | {"numpy", "alembic", "fastapi", "pydicom"})) == []
    assert {"celery", "sqlalchemy", "appliance.worker", "appliance.tasks.runner"} <= found
