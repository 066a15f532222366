"""What a site with a model of its own takes from peers: by what the sites signed of the rounds between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select

from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.chronicle import Entry
from appliance.consortium.offers import Countersignature
from appliance.consortium.replica import Replica
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import ResearchLedgerEntry
from appliance.federation import refusals
from tests.appliance.consortium.scene import begin
from tests.appliance.test_peering import OTHER, SITE, Scene, first_round, store, worked
from tests.appliance.training_node import make_training_node
from trainer.federation.aggregation import fingerprint
from trainer.federation.peering.letters import Mail
from trainer.federation.peering.record import Record
from trainer.federation.plan import Strategy
from trainer.local_round import use_threads
from trainer.networks import initial_weights
from trainer.strategies.base import update_norm
from trainer.weights_io import difference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.appliance.training_node import TrainingNode
    from trainer.weights_io import Weights

use_threads(1)
every_rule = pytest.mark.parametrize("name", ["dfedavgm", "braintorrent"])
INITIAL = "ab" * 32


def tell(scene: Scene, folder: Path, norm: float) -> None:
    """Bring the ledger to the site, with the first round and the norm that the other site signed."""
    node = scene.node
    plan, start = node.plan.sha256, scene.record.start
    keys = {SITE: node.zone.keys.signing, OTHER: Ed25519PrivateKey.generate()}
    told = begin(folder, None, keys, (plan, start))
    given = (told.contribution(OTHER, 1, start, plan=plan, norm=norm),)
    entry = Entry(blocks.ROUND, plan, 1, start, fingerprint(scene.record.arrays()), given)
    with writing(told.chronicle.engine) as session:
        chronicle.append(session, told.chronicle.key, entry)
    assert isinstance(Replica(node.zone).receive(told.offer()), Countersignature)
    told.chronicle.engine.dispose()


def refused(node: TrainingNode) -> int:
    """Return how many refusals the site recorded."""
    kind = ResearchLedgerEntry.kind == refusals.ORDER_REFUSED
    with reading(node.zone.engine) as session:
        return session.scalar(select(func.count()).where(kind)) or 0


def norm_of(scene: Scene) -> float:
    return update_norm(difference(scene.other, initial_weights(scene.node.plan.task)))


def crafted(node: TrainingNode) -> Weights:
    weights = initial_weights(node.plan.task)
    return {**weights, "conv1.weight": weights["conv1.weight"] * np.float32(1.01)}


@every_rule
@pytest.mark.parametrize(("stated", "state"), [(1.0, WorkState.DONE), (0.2, WorkState.DEAD)])
def test_a_peer_s_model_lies_within_what_the_sites_signed(
    tmp_path: Path, name: str, stated: float, state: WorkState
) -> None:
    """Far below the plan's bound of 100. Alone the other's model is five times as far as it signed."""
    scene = first_round(tmp_path, name, 0.05)
    assert scene.node.plan.max_update_norm == 100.0
    tell(scene, tmp_path / "coordinator", stated * norm_of(scene))

    row = worked(scene.node, scene.add(scene.record, mail=scene.mail))

    assert row.state == state
    assert ("made of its seed's first model" in (row.reason or "")) == (state == WorkState.DEAD)
    assert refused(scene.node) == (state == WorkState.DEAD)


@every_rule
@pytest.mark.parametrize(("moved", "state"), [(0.01, WorkState.DONE), (0.2, WorkState.DEAD)])
def test_without_a_word_of_the_ledger_the_plan_bounds_each_round(
    tmp_path: Path, name: str, moved: float, state: WorkState
) -> None:
    scene = first_round(tmp_path, name, moved, max_update_norm=1.0)

    assert worked(scene.node, scene.add(scene.record, mail=scene.mail)).state == state
    assert refused(scene.node) == (state == WorkState.DEAD)


@every_rule
@pytest.mark.parametrize(("moved", "state"), [(0.01, WorkState.DONE), (0.2, WorkState.DEAD)])
def test_a_run_from_an_earlier_model_is_bounded_from_the_site_s_second_round_on(
    tmp_path: Path, name: str, moved: float, state: WorkState
) -> None:
    scene = first_round(tmp_path, name, moved, max_update_norm=1.0, initial_sha256=INITIAL)

    row = worked(scene.node, scene.add(scene.record, mail=scene.mail))

    assert row.state == state
    assert ("made of this site's earlier model" in (row.reason or "")) == (state == WorkState.DEAD)


@every_rule
def test_the_first_round_is_on_the_model_that_the_seed_gives(tmp_path: Path, name: str) -> None:
    node = make_training_node(tmp_path, strategy=Strategy(name, {}))
    store(node, Mail((SITE, OTHER)), "train", 1)

    row = worked(node, node.add_round(weights=crafted(node)))

    assert (row.state, row.output_path) == (WorkState.DEAD, None)
    assert "seed" in (row.reason or "")
    assert refused(node) == 1


@every_rule
@pytest.mark.parametrize("honest", [True, False])
def test_who_comes_late_begins_with_it_too(tmp_path: Path, name: str, honest: bool) -> None:
    """It comes by mail then, and the record that names it is the coordinator's."""
    node = make_training_node(tmp_path, strategy=Strategy(name, {}), total_rounds=4)
    start = initial_weights(node.plan.task) if honest else crafted(node)
    record = Record(fingerprint(start), {OTHER: 1}, {OTHER: 9}, {(OTHER, 1): "ab" * 32})
    late = Scene(node, record, {}, {})

    row = worked(node, late.add(record, mail=Mail((SITE, OTHER), {}, start)))

    assert row.state == (WorkState.DONE if honest else WorkState.DEAD), row.reason
    assert refused(node) == (not honest)
