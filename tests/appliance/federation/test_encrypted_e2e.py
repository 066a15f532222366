"""A real federation whose coordinator reads no update and no model: three nodes, TLS, CKKS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance import node
from appliance.federation import coordinator, envelope, members, sitekeys
from tests.appliance.federation.ring import SITES, Member, Ring, cloister, running_ring
from tests.appliance.federation.test_federation_e2e import checkpoint_of
from tests.appliance.federation.test_many_sites_e2e import dataset_of
from trainer.compression import Compression
from trainer.encryption import ENCRYPTED, Encryption
from trainer.encryption.model import first_of, is_encrypted, is_whole
from trainer.local_round import use_threads
from trainer.privacy.promise import Promise
from trainer.simulation import simulate
from trainer.weights_io import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.federation.progress import RoundProgress, RunProgress
    from trainer.encryption.ckks import Key
    from trainer.federation.plan import Plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring")) as running:
        yield running


def recipients(ring: Ring) -> Encryption:
    """Return the encryption that the command fills in where a plan file names nobody."""
    engine = coordinator.open_book(ring.federation).engine
    found = members.members(engine)
    engine.dispose()
    return Encryption({one.name: str(one.signing_key) for one in found})


def key_of(member: Member, plan: Plan) -> tuple[Key, bytes]:
    """Return the key that a site took, and its secret."""
    zone = node.open_research(member.settings)
    path = zone.root / "federation" / "keys" / f"{plan.sha256}.json"
    secret = envelope.read(path.read_text(), plan).open(zone.keys.signing)
    key = sitekeys.key_of(zone, plan)
    zone.engine.dispose()
    return key, secret


def stored(ring: Ring, plan: Plan, one: RoundProgress) -> dict[str, Any]:
    return load(checkpoint_of(ring.federation.runs / plan.run_id, one))


def check_sums(ring: Ring, plan: Plan, view: RunProgress, key: Key) -> int:
    """Decrypt each round's step and the updates that sites still keep: it is their weighted mean.

    Returns
    -------
    int
        How many rounds could be recomputed.
    """
    recomputed, before = 0, load(ring.federation.runs / plan.run_id / "round-00000.safetensors")
    for one in view.rounds:
        after, accepted = stored(ring, plan, one), [site for site in one.sites if site.accepted]
        updates = {site.site: kept_update(ring.members[site.site], plan, one.number) for site in accepted}
        total = sum(site.samples for site in accepted)
        if all(updates.values()):
            for name in next(iter(updates.values())):
                step = key.decrypt(after[name]) - (key.decrypt(before[name]) if name in before else 0.0)
                means = [fresh(key, updates[site.site][name]) * (site.samples / total) for site in accepted]
                np.testing.assert_allclose(step, sum(means), atol=1e-6)
                assert is_whole(name) or np.abs(step).max() > 1e-5
            recomputed += 1
        before = after
    return recomputed


def fresh(key: Key, ciphertext: Any) -> Any:
    return key.decrypt(key.weighted_sum([ciphertext], [1.0], None))


def kept_update(member: Member, plan: Plan, number: int) -> dict[str, Any]:
    [row] = [row for row in member.rounds(plan.run_id) if (row.number, row.kind) == (number, "train")]
    return {} if row.output_path is None else load(member.settings.zone_root("research") / row.output_path)


def check_that_the_coordinator_has_no_key(ring: Ring, plan: Plan, secret: bytes) -> None:
    """Neither the secret nor a readable trained model lies anywhere below the coordinator's folder."""
    piece = secret[len(secret) // 2 :][:48]
    # To close a database's file drops all locks of this process on it, and who maps it then may get SIGBUS.
    ring.book.dispose()
    for path in ring.federation.root.rglob("*"):
        if path.is_file():
            assert piece not in path.read_bytes(), path.name
    for path in (ring.federation.runs / plan.run_id).glob("round-0000[1-9]*.safetensors"):
        arrays = load(path)
        assert is_encrypted(arrays)
        first = load(ring.federation.runs / plan.run_id / "round-00000.safetensors")
        for name, array in first_of(arrays).items():
            np.testing.assert_array_equal(array, first[name])


def test_sites_come_to_the_simulators_model_and_the_coordinator_reads_nothing(
    ring: Ring, tmp_path: Path
) -> None:
    plan = ring.submit(total_rounds=3, min_sites=3, encryption=recipients(ring))
    ring.approve(plan)

    view = ring.until_over(plan, 240.0)

    assert view.state == "done", view.reason
    keys = {name: key_of(member, plan) for name, member in ring.members.items()}
    [secret] = {secret for _, secret in keys.values()}
    check_that_the_coordinator_has_no_key(ring, plan, secret)
    key = keys["north"][0]
    assert check_sums(ring, plan, view, key) == 3
    found = sitekeys.readable(key, plan, stored(ring, plan, view.rounds[-1]), 3)
    use_threads(ring.members["north"].settings.training.threads)
    simulated = simulate(
        plan.task,
        {name: dataset_of(ring, name, plan.task, tmp_path) for name in SITES},
        rounds=3,
        seed=plan.seed,
    )
    for name, array in simulated.weights.items():
        np.testing.assert_allclose(found[name], array, atol=1e-3, err_msg=name)
    for member in ring.members.values():
        [final] = [row for row in member.rounds(plan.run_id) if row.kind == "finalize"]
        assert final.state == "done"
        assert member.client.verify_ledger().ok


def test_encryption_noise_turns_a_site_that_drops_out_and_a_killed_coordinator_go_together(
    ring: Ring,
) -> None:
    promise = Promise("dp-sgd", 1.0, 1.5, epsilon=50.0, delta=1e-5, sampling_rate=0.5)
    for member in ring.members.values():
        cloister("budget", "set", "60", "--config", member.config)
    plan = ring.submit(
        total_rounds=5,
        min_sites=2,
        straggler_wait_s=3.0,
        privacy=promise,
        compression=Compression("turns", {"count": 2}),
        encryption=recipients(ring),
    )
    ring.approve(plan)
    west = ring.members["west"]
    ring.until_round(plan, 1)
    west.program.kill()
    ring.until_round(plan, 2)
    ring.coordinator.kill()
    ring.coordinator.start()
    west.program.start()

    view = ring.until_over(plan, 300.0)

    assert view.state == "done", view.reason
    assert [one.number for one in view.rounds] == [1, 2, 3, 4, 5]
    key, secret = key_of(ring.members["north"], plan)
    check_that_the_coordinator_has_no_key(ring, plan, secret)
    assert check_sums(ring, plan, view, key) >= 2
    sitekeys.readable(key, plan, stored(ring, plan, view.rounds[-1]), 5)
    for name, member in ring.members.items():
        check_receipts(member, name, plan, view)


def check_receipts(member: Member, name: str, plan: Plan, view: RunProgress) -> None:
    """What each site says that left is what arrived, and all of it is ciphertext."""
    bodies = [row.body for row in member.receipts(plan.run_id) if row.body["kind"] == "train"]
    left = {body["number"]: body["update_sha256"] for body in bodies}
    assert len(left) == len(bodies)
    for body in bodies:
        assert body["privacy"]["noise_source"] == "secure"
        assert 0.0 < body["update_norm"] <= plan.max_update_norm
        for one in body["tensors"]:
            assert one["name"].startswith(ENCRYPTED)
            assert one["dtype"] == "uint8"
    for one in view.rounds:
        for site in one.sites:
            assert site.site != name or not site.accepted or left[one.number] == site.update_sha256
    spent = json.loads(cloister("budget", "list", "--json", "--config", member.config))
    assert spent["rounds"] >= len(left)
    assert member.client.verify_ledger().ok
