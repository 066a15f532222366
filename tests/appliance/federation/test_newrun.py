from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance.federation import newrun, provision
from appliance.federation.errors import CoordinatorError
from tests.trainer.federation.plans import make_plan

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_that_needs_more_sites_than_there_are_is_not_written_down(tmp_path: Path) -> None:
    root = tmp_path / "coordinator"
    provision.create(root)
    path = tmp_path / "plan.json"
    path.write_text(make_plan(min_sites=3).dumps())

    with pytest.raises(CoordinatorError, match="min_sites"):
        newrun.add(root, path)
