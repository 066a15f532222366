"""A real federation whose sites keep models of their own: three nodes with TLS and workers, and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance import node, sitestate
from appliance.db.engine import reading
from appliance.db.research import Round
from appliance.federation import coordinator, relaying
from tests.appliance.federation.ring import SITES, Ring, running_ring, until
from tests.appliance.federation.test_federation_e2e import checkpoint_of, counted_sites
from tests.appliance.federation.test_many_sites_e2e import approve, dataset_of
from tests.further import FURTHER
from trainer.federation.aggregation import fingerprint
from trainer.federation.peering import MAIL
from trainer.federation.peering import record as records
from trainer.federation.peering.kept import read_kept
from trainer.federation.peering.letters import read_mail
from trainer.federation.peering.site import Post, settled
from trainer.federation.plan import Strategy
from trainer.local_round import use_threads
from trainer.peers import PEERS, blend
from trainer.simulation import simulate
from trainer.weights_io import load, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.db.research import Receipt
    from appliance.federation.progress import RunProgress
    from trainer.federation.peering.record import Record
    from trainer.federation.plan import Plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring")) as running:
        yield running


def run_with_faults(ring: Ring, plan: Plan) -> RunProgress:
    """Kill a site in a round and the coordinator between rounds; both come back."""
    approve(ring, plan)
    ring.until_round(plan, 2)
    west = ring.members["west"]
    west.program.kill()
    killed_in = ring.view(plan).finished_rounds + 1
    ring.until_round(plan, killed_in + 1)
    west.program.start()
    until(lambda: ring.view(plan).finished_rounds >= killed_in + 2, 90, "another round")
    ring.coordinator.kill()
    ring.coordinator.start()
    view = ring.until_over(plan, 300)
    assert view.state == "done", view.reason
    assert view.engine_jobs >= 2
    return view


def recorded(ring: Ring, plan: Plan, view: RunProgress) -> list[Record]:
    """Return the record of each round, from the start on."""
    folder = ring.federation.runs / plan.run_id
    start = fingerprint(load(folder / "round-00000.safetensors"))
    return [records.Record(start), *(records.read(load(checkpoint_of(folder, one))) for one in view.rounds)]


def took_part(before: Record, after: Record, trained: set[str], *, pulls: bool) -> set[str]:
    """Return who trained in a round, and whose models the drawn site fetched."""
    if not pulls or before.versions == {}:
        return trained
    [drawn] = trained
    return trained | {
        other
        for (site, other), version in after.known.items()
        if site == drawn and version > before.known.get((drawn, other), 0)
    }


def own_model(ring: Ring, plan: Plan, site: str) -> dict[str, Any]:
    """Return what a site makes its package of, from what lies there and what the coordinator has for it."""
    book = coordinator.open_book(ring.federation)
    relay = relaying.of_run(plan, book, plan.run_id)
    assert relay is not None
    parcel = relay.parcel(book.checkpoint(plan.run_id), site)
    mail = {name: array for name, array in parcel.items() if name.startswith(MAIL)}
    record = records.read({name: array for name, array in parcel.items() if name not in mail})
    book.engine.dispose()
    protocol = ring.members[site].rounds(plan.run_id)[0].protocol_id
    row = Round(protocol_id=protocol, kind="finalize", number=plan.total_rounds)
    zone = node.open_research(ring.members[site].settings)
    with reading(zone.engine) as session:
        kept = read_kept(sitestate.load(session, zone.root, row))
    zone.engine.dispose()
    return dict(settled(Post(plan, site, record), kept, read_mail(mail)).weights)


def check_equal(ring: Ring, plan: Plan, view: RunProgress, folder: Path) -> list[set[str]]:
    """Compare the sites' models with a simulation that has the same absences; return who was there.

    Of a simulation there is the models' mean, number by number, and each site's figures of its own.
    """
    found = recorded(ring, plan, view)
    rule = PEERS[plan.strategy.name]
    there = [
        took_part(
            found[one.number - 1],
            found[one.number],
            counted_sites(view, one.number),
            pulls=rule.rounds(2, 2) > 2,
        )
        for one in view.rounds
    ]
    use_threads(ring.members["north"].settings.training.threads)
    simulated = simulate(
        plan.task,
        {name: dataset_of(ring, name, plan.task, folder) for name in SITES},
        rounds=plan.total_rounds,
        strategy=plan.strategy.name,
        parameters=plan.strategy.parameters,
        seed=plan.seed,
        away={number: set(SITES) - names for number, names in enumerate(there, start=1)},
    )
    assert [set(one.sites) for one in simulated.rounds] == [
        counted_sites(view, one.number) for one in view.rounds
    ]
    models = [own_model(ring, plan, name) for name in sorted(SITES)]
    samples = [found[-1].samples[name] if rule.weighs_samples else 1 for name in sorted(SITES)]
    mean = blend(models[0], models, [count / sum(samples) for count in samples])
    for name, array in simulated.weights.items():
        np.testing.assert_array_equal(mean[name], array, err_msg=name)
    assert len(view.final) >= plan.min_sites
    for one in view.final:
        assert one.metrics == simulated.final[one.site].to_json()
    return there


def receipts_of(ring: Ring, plan: Plan, kind: str) -> dict[str, list[Receipt]]:
    return {
        name: [one for one in member.receipts(plan.run_id) if one.body["kind"] == kind]
        for name, member in ring.members.items()
    }


def check_ledgers(ring: Ring) -> None:
    for member in ring.members.values():
        assert all(one.genuine for one in member.client.receipts())
        assert member.client.verify_ledger().ok


@FURTHER
def test_neighbours_average_as_in_a_simulation_whoever_dies(ring: Ring, tmp_path: Path) -> None:
    strategy = Strategy("dfedavgm", {"local_learning_rate": 0.05})
    plan = ring.submit(total_rounds=7, min_sites=2, straggler_wait_s=60.0, strategy=strategy)

    view = run_with_faults(ring, plan)

    there = check_equal(ring, plan, view, tmp_path)
    assert there[0] == set(SITES)
    missed = [number for number, names in enumerate(there) if "west" not in names]
    assert missed
    assert any("west" in names for names in there[missed[0] :])
    whole = len(to_bytes(load(ring.federation.runs / plan.run_id / "round-00000.safetensors")))
    for name, rows in receipts_of(ring, plan, "train").items():
        for row in rows:
            assert set(row.body["recipients"]) == set(SITES) - {name}
            assert row.body["size_bytes"] < 0.8 * whole  # a small model's file is half names
    check_ledgers(ring)


def test_a_drawn_site_fetches_what_is_newer_as_in_a_simulation_whoever_dies(
    ring: Ring, tmp_path: Path
) -> None:
    plan = ring.submit(
        total_rounds=10, min_sites=2, straggler_wait_s=60.0, strategy=Strategy("braintorrent", {})
    )

    view = run_with_faults(ring, plan)

    there = check_equal(ring, plan, view, tmp_path)
    missed = [number for number, names in enumerate(there) if "west" not in names]
    assert missed
    assert any("west" in names for names in there[missed[0] :])
    drawn = {one.number: {site.site for site in one.sites} for one in view.rounds}
    for name, rows in receipts_of(ring, plan, "send").items():
        for row in rows:
            [to] = row.body["recipients"]
            assert to != name
            assert to in drawn[row.body["number"]]  # be it that it died then and was passed over
    for rows in receipts_of(ring, plan, "train").values():
        assert all(one["name"].startswith("peer:") for row in rows for one in row.body["tensors"])
    check_ledgers(ring)
