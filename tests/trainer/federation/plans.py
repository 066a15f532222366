"""Plans for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.trainer.samples import small_task
from trainer.federation.plan import Plan, Strategy

EXPIRY = datetime(2100, 1, 1, tzinfo=UTC)


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "name": "Blobs, three hospitals",
        "task": small_task(),
        "strategy": Strategy("fedavg", {}),
        "total_rounds": 3,
        "min_sites": 2,
        "minimum_cohort": 5,
        "expires_at": EXPIRY,
        "round_timeout_s": 60.0,
        "approval_wait_s": 10.0,
        "seed": 1,
        **changes,
    }
    return Plan(**values)
