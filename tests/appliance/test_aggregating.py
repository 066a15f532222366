from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select

from appliance import aggregating, training
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import ResearchLedgerEntry, Round
from appliance.federation.site import Asked, Decision, SiteService
from appliance.work import claimed
from tests.appliance.training_node import TrainingNode, make_training_node
from trainer.federation import swarming
from trainer.federation.plan import Strategy
from trainer.local_round import use_threads
from trainer.networks import initial_weights
from trainer.strategies import Contribution, get
from trainer.weights_io import load, save, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

use_threads(1)


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    """A site that trained its part of a swarm's first round, and whose update left."""
    made = make_training_node(tmp_path, strategy=Strategy("swarm", {}))
    worked(made, made.add_round())
    return made


def worked(node: TrainingNode, round_id: str) -> Round:
    """Do what the Celery task does; return the row."""
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def update_of(node: TrainingNode) -> tuple[Round, dict[str, NDArray[Any]]]:
    with reading(node.zone.engine) as session:
        row = session.scalars(select(Round).where(Round.kind == "train")).one()
    assert row.output_path is not None
    return row, load(node.zone.root / row.output_path)


def round_to_aggregate(node: TrainingNode, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Insert a round of these arrays; return its row id."""
    path = node.zone.root / "federation" / "models" / "bundle.safetensors"
    digest = save(path, arrays)
    relative = str(path.relative_to(node.zone.root))
    return node.add_round(kind="aggregate", global_model_sha256=digest, input_path=relative)


def contributions(node: TrainingNode) -> list[Contribution]:
    row, update = update_of(node)
    other = {name: np.asarray(array * 2, array.dtype) for name, array in update.items()}
    return [Contribution("site-1", update, row.samples), Contribution("site-2", other, 30)]


def released(node: TrainingNode) -> None:
    with writing(node.zone.engine) as session:
        session.scalars(select(Round).where(Round.kind == "train")).one().receipt_id = "r"


def test_the_worker_of_the_drawn_site_makes_the_next_model_without_any_data(node: TrainingNode) -> None:
    released(node)
    sent = contributions(node)
    start = initial_weights(node.plan.task)

    row = worked(node, round_to_aggregate(node, swarming.bundle(start, sent)))

    assert (row.state, row.reason) == (WorkState.DONE, None)
    assert row.output_path is not None
    found = load(node.zone.root / row.output_path)
    expected, _ = get("fedavg").aggregate(start, sent, {}, {})
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    assert row.output_sha256 == sha256(node.zone.root / row.output_path)
    assert (row.dataset_version_id, row.samples, row.metrics) == (None, 0, {})
    with reading(node.zone.engine) as session:
        kinds = list(session.scalars(select(ResearchLedgerEntry.kind)))
    assert kinds.count(aggregating.ROUND_AGGREGATED) == 1


@pytest.mark.parametrize(
    "case", ["not-released", "other-model", "changed-update", "without-ours", "no-round"]
)
def test_what_is_not_the_round_in_which_this_site_trained_is_not_aggregated(
    node: TrainingNode, case: str
) -> None:
    if case != "not-released":
        released(node)
    start, sent = initial_weights(node.plan.task), contributions(node)
    if case == "other-model":
        start = initial_weights(node.plan.task, 99)
    if case == "changed-update":
        sent[0] = Contribution("site-1", sent[1].delta, sent[0].samples)
    arrays = swarming.bundle(start, sent[1:] if case == "without-ours" else sent)
    if case == "no-round":
        arrays["more"] = np.zeros(1)

    row = worked(node, round_to_aggregate(node, arrays))

    assert row.state == WorkState.DEAD
    assert row.output_path is None


def asked(node: TrainingNode) -> Decision:
    return SiteService(node.zone).begin(Asked(node.plan.sha256, "aggregate", 1, "ab" * 32))[0]


def test_a_site_aggregates_for_plans_alone_that_say_so(tmp_path: Path) -> None:
    node = make_training_node(tmp_path, strategy=Strategy("fedavg", {}))
    assert (asked(node).standing, asked(node).code) == ("refused", "unknown_kind")


def test_a_round_is_aggregated_a_few_times_at_most(node: TrainingNode) -> None:
    assert asked(node).standing == "wanted"
    for i in range(8):
        node.add_round(kind="aggregate", global_model_sha256=f"{i}" * 64)
    assert asked(node).code == "other_model"
