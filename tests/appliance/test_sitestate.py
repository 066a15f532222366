"""What FedBN, SCAFFOLD and Ditto keep at a site: over rounds, restarts and to the final model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from appliance import datasets, training
from appliance.db.base import WorkState, new_id
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, ProtocolState, Round
from appliance.federation.site import SiteService
from appliance.work import claimed
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.trainer.samples import small_task
from trainer import strategies
from trainer.federation.plan import Plan, Strategy
from trainer.local_round import local_round, use_threads
from trainer.networks import initial_weights, with_weights
from trainer.simulation import round_seed
from trainer.task import LocalSpec, NetworkSpec
from trainer.weights_io import from_bytes, load, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

use_threads(1)
TASK = small_task(
    network=NetworkSpec("resnet", {"features": [4, 4, 8, 8], "groups": 2, "norm": "batch"}),
    local=LocalSpec(batch_size=8, local_steps=3),
)
STATEFUL = ("fedbn", "scaffold", "ditto", "domain-adaptation")


def make(folder: Path, strategy: str) -> TrainingNode:
    """Return a node at which a plan with this strategy is approved."""
    node = make_training_node(folder, task=TASK)
    plan = Plan.from_json(
        {
            **node.plan.to_json(),
            "run_id": "run-own",
            "strategy": {"name": strategy, "parameters": {}},
        }
    )
    assert plan.strategy == Strategy(strategy, {})
    with writing(node.zone.engine) as session:
        protocol = Protocol(
            id=new_id(),
            plan_sha256=plan.sha256,
            run_id=plan.run_id,
            name=plan.name,
            plan=plan.to_json(),
            state=ProtocolState.APPROVED,
            expires_at=plan.expires_at,
        )
        session.add(protocol)
    return TrainingNode(node.zone, node.config, plan, protocol.id)


def work(node: TrainingNode, kind: str, number: int) -> Round:
    """Do a round on the prepared initial model; return its row."""
    path = node.zone.root / "federation" / "models" / "prepared.safetensors"
    weights = strategies.get(node.plan.strategy.name).prepared(initial_weights(node.plan.task))
    digest = save(path, weights)
    round_id = node.add_round(
        kind, number, global_model_sha256=digest, input_path=str(path.relative_to(node.zone.root))
    )
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def states(node: TrainingNode) -> list[Path]:
    return sorted((node.zone.root / "federation" / "own").glob("*"))


@pytest.mark.parametrize("strategy", STATEFUL)
def test_rounds_at_a_site_are_those_of_the_simulation(tmp_path: Path, strategy: str) -> None:
    node = make(tmp_path, strategy)
    weights = strategies.get(strategy).prepared(initial_weights(TASK))
    dataset = datasets.build(node.zone, TASK).dataset
    own = None
    for number in (1, 2, 3):
        row = work(node, "train", number)
        update = local_round(
            TASK,
            weights,
            dataset,
            strategy=strategy,
            own=own,
            max_norm=node.plan.max_update_norm,
            seed=round_seed(node.plan.seed, "site-1", number),
        )
        own = update.own

        assert (row.state, row.reason) == (WorkState.DONE, None)
        assert row.output_path is not None
        sent = from_bytes((node.zone.root / row.output_path).read_bytes())
        assert all(np.array_equal(sent[name], update.delta[name]) for name in weights)
    assert len(states(node)) == 2  # of the last round, and of the one before


@pytest.mark.parametrize("strategy", STATEFUL)
def test_every_site_gets_its_final_package(tmp_path: Path, strategy: str) -> None:
    node = make(tmp_path, strategy)
    work(node, "train", 2)

    row = work(node, "finalize", 2)

    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert (node.zone.settings.crossing_in / "packages" / "run-own.zip").is_file()


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["lost", "changed"],
)
def test_a_run_does_not_go_on_as_if_nothing_had_been_kept(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    node = make(tmp_path, "scaffold")
    work(node, "train", 1)
    [path] = states(node)

    spoil(path)

    row = work(node, "train", 2)
    assert row.state == WorkState.DEAD
    assert "round 1" in str(row.reason)


def test_the_receipt_shows_that_batch_normalisation_stayed(tmp_path: Path) -> None:
    node = make(tmp_path, "fedbn")
    row = work(node, "train", 1)

    leaving, signed = SiteService(node.zone).release(row.id)

    assert leaving.path is not None
    network = with_weights(TASK, initial_weights(TASK))
    layers = [name for name, one in network.named_modules() if isinstance(one, torch.nn.BatchNorm2d)]
    left = {one["name"] for one in signed.body["tensors"]}
    assert layers
    assert left == set(load(leaving.path))
    assert not [name for name in left if name.rpartition(".")[0] in layers]


def test_a_site_that_never_trained_gets_no_model_from_fedbn(tmp_path: Path) -> None:
    row = work(make(tmp_path, "fedbn"), "finalize", 2)
    assert row.state == WorkState.DEAD
    assert "trained no round" in str(row.reason)
