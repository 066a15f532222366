"""A real federation of two nodes that learns to segment: TLS, Celery workers, receipts, the consortium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance import node
from inference.package import package_sha256
from tests.appliance.federation.ring import running_ring
from tests.appliance.masked_zone import MASKED_TASK, file_masked
from tests.trainer import masked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def test_two_sites_learn_masks_and_package_the_final_model(tmp_path: Path) -> None:
    with running_ring(tmp_path, ("north", "south")) as ring:
        for seed, member in enumerate(ring.members.values()):
            zone = node.open_research(member.settings)
            folder = zone.root / "instances" / "masked"
            for number in range(8):
                masked.write(folder, f"{member.name}-{number}", masked.draw(100 * seed + number))
            file_masked(zone, folder)
            zone.engine.dispose()
        plan = ring.submit(task=MASKED_TASK, total_rounds=2, min_sites=2)
        ring.approve(plan)

        view = ring.until_over(plan, 300.0)

        assert view.state == "done", view.reason
        assert {one.site for one in view.final if one.accepted} == {"north", "south"}
        for one in (*view.rounds[-1].sites, *view.final):
            assert (
                one.metrics["dice"]["low"] <= one.metrics["dice"]["estimate"] <= one.metrics["dice"]["high"]
            )
            assert set(one.metrics["segments"]) == {"HIP-ANT", "HIP-POST"}
        for member in ring.members.values():
            bodies = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
            assert [body["number"] for body in bodies] == [1, 2]
            assert all("dice" in body["metric_names"] for body in bodies)
            [candidate] = member.client.candidates()
            assert candidate.run_id == plan.run_id
            assert set(candidate.metrics["segments"]) == {"HIP-ANT", "HIP-POST"}
            packages = member.settings.crossing_in / "packages"
            assert {path.name for path in packages.iterdir()} == {f"{plan.run_id}.zip", f"{plan.run_id}.json"}
            assert package_sha256(packages / f"{plan.run_id}.zip") == candidate.package_sha256
            assert member.client.verify_ledger().ok
