"""A real federation whose rounds are aggregated by its sites, three nodes with TLS and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.appliance.federation.ring import SITES, Ring, running_ring, until
from tests.appliance.federation.test_federation_e2e import check_arithmetic, counted_sites
from tests.further import FURTHER
from trainer.compression import Compression
from trainer.federation.plan import Strategy
from trainer.strategies.swarm import leader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.federation.progress import RunProgress

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring")) as running:
        yield running


def leaders(view: RunProgress) -> list[str]:
    """Return who aggregated, round by round."""
    return [site.site for one in view.rounds for site in one.sites if site.metrics.get("led")]


def test_the_drawn_site_s_worker_aggregates_and_what_it_sent_is_the_model(ring: Ring) -> None:
    plan = ring.submit(
        total_rounds=4, min_sites=3, strategy=Strategy("swarm", {}), compression=Compression("int8")
    )
    ring.approve(plan)

    view = ring.until_over(plan)

    assert view.state == "done", view.reason
    drawn = [leader(number, SITES, plan.seed) for number in range(1, 5)]
    assert leaders(view) == drawn
    check_arithmetic(ring, plan)
    for one, site in zip(view.rounds, drawn, strict=True):
        assert counted_sites(view, one.number) == set(SITES)
        rows = {
            name: [
                row
                for row in member.rounds(plan.run_id)
                if (row.number, row.kind) == (one.number, "aggregate")
            ]
            for name, member in ring.members.items()
        }
        assert [name for name, found in rows.items() if found] == [site]
        assert [row.output_sha256 for row in rows[site]] == [one.model_sha256]
        bodies = [row.body for row in ring.members[site].receipts(plan.run_id)]
        [receipt] = [body for body in bodies if (body["kind"], body["number"]) == ("aggregate", one.number)]
        assert receipt["update_sha256"] == one.model_sha256
    for member in ring.members.values():
        assert all(one.genuine for one in member.client.receipts())
        assert member.client.verify_ledger().ok


@FURTHER
def test_a_site_that_dies_is_passed_over_and_the_others_go_on_aggregating(ring: Ring) -> None:
    plan = ring.submit(
        total_rounds=6,
        min_sites=2,
        straggler_wait_s=3.0,
        round_timeout_s=60.0,
        strategy=Strategy("swarm", {}),
    )
    ring.approve(plan)
    ring.until_round(plan, 1)
    west = ring.members["west"]
    west.program.kill()
    killed_in = ring.view(plan).finished_rounds + 1

    view = ring.until_over(plan, 240)

    assert view.state == "done", view.reason
    assert "west" not in leaders(view)[killed_in:]
    assert len(leaders(view)) == 6
    check_arithmetic(ring, plan)
    west.program.start()
    until(lambda: west.program.process is not None, 10, "west is back")
