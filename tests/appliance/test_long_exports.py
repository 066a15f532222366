"""An export that takes longer than its round's lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from appliance import training
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import CandidateModel, Protocol, ProtocolState, Round
from appliance.work import LeaseLostError, claimed, reconcile
from tests.appliance.training_node import TrainingNode, make_training_node
from trainer import export
from trainer.local_round import use_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

use_threads(1)


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    return make_training_node(tmp_path)


def row_of(node: TrainingNode, round_id: str) -> Round:
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def _set(node: TrainingNode, model: Any, **values: Any) -> None:
    with writing(node.zone.engine) as session:
        session.execute(update(model).values(**values))


@pytest.fixture
def slow_export(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Let an export outlast its round's lease; what is in the list is done meanwhile, again and again."""
    genuine, meanwhile = export.export_package, list["Callable[[], object]"]()

    def slow(*arguments: Any, **options: Any) -> Any:
        for _ in range(30):
            time.sleep(0.1)
            for one in meanwhile:
                one()
        return genuine(*arguments, **options)

    monkeypatch.setattr(export, "export_package", slow)
    return meanwhile


def finalized(node: TrainingNode) -> Round:
    round_id = node.add_round("finalize", 2)
    with claimed(node.zone.engine, Round, round_id, "test", 1.0) as claim:
        assert claim is not None
        training.run_round(node.zone, claim)
    return row_of(node, round_id)


def left_a_model(node: TrainingNode) -> list[object]:
    with reading(node.zone.engine) as session:
        rows = session.scalars(select(CandidateModel)).all()
    return [*rows, *(node.zone.settings.crossing_in / "packages").glob("*")]


def test_a_long_export_keeps_its_lease_and_its_time_is_booked(
    node: TrainingNode, slow_export: list[Callable[[], object]]
) -> None:
    taken_back: list[int] = []
    slow_export.append(
        lambda: taken_back.append(reconcile(node.zone.engine, Round, node.zone.wake, now()).requeued)
    )
    row = finalized(node)
    assert (row.state, row.attempts, sum(taken_back)) == (WorkState.DONE, 1, 0)
    assert len(taken_back) == 30
    assert row.progress == {"stage": "export", "done": 1, "total": 1}
    assert row.compute_seconds > 3.0
    assert len(left_a_model(node)) == 3


def test_a_pause_during_a_long_export_leaves_no_model(
    node: TrainingNode, slow_export: list[Callable[[], object]]
) -> None:
    slow_export.append(lambda: _set(node, Protocol, state=ProtocolState.PAUSED))
    row = finalized(node)
    assert (row.state, row.halted_by) == (WorkState.DEAD, "paused")
    assert left_a_model(node) == []


def test_who_lost_the_lease_in_a_long_export_names_no_model(
    node: TrainingNode, slow_export: list[Callable[[], object]]
) -> None:
    slow_export.append(lambda: _set(node, Round, lease_owner="other@elsewhere:1:1:0"))
    round_id = node.add_round("finalize", 2)
    with claimed(node.zone.engine, Round, round_id, "test", 1.0) as claim:
        assert claim is not None
        with pytest.raises(LeaseLostError):
            training.run_round(node.zone, claim)
    assert row_of(node, round_id).state == WorkState.RUNNING
    assert left_a_model(node) == []
