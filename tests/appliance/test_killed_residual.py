"""What compression leaves for the next round is the same, number by number, whenever a worker is killed."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from appliance import sitestate, training
from appliance.db.base import WorkState, now
from appliance.db.engine import reading
from appliance.db.research import Round
from appliance.node import open_research
from appliance.settings import load_settings
from appliance.work import Claim, claimed, reconcile
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.further import cases
from trainer import local_round, weights_io
from trainer.compression import Compression
from trainer.compression.spec import RESIDUAL
from trainer.local_round import use_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.node import ResearchZone

use_threads(1)
ROUNDS = 3
KILLED_IN = 2
PLACES: dict[str, tuple[Any, str]] = {
    "the update is made": (local_round, "local_round"),
    "the update is written": (weights_io, "save"),
    "what stays is written": (sitestate, "save"),
    "the row is all but done": (Claim, "finish"),
}


@pytest.fixture(
    scope="module", params=cases(["top-k:share=0.05", "int8", "top-k:both_ways"], ["top-k:both_ways"])
)
def compression(request: pytest.FixtureRequest) -> Compression:
    return Compression.parse(request.param)


@pytest.fixture(scope="module")
def first(compression: Compression, tmp_path_factory: pytest.TempPathFactory) -> TrainingNode:
    """Make a node that stays as it is: how cases are parted is a node's own."""
    node = make_training_node(tmp_path_factory.mktemp("first"), compression=compression, total_rounds=ROUNDS)
    node.zone.engine.dispose()
    return node


@pytest.fixture(scope="module")
def undisturbed(first: TrainingNode, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    node = copied(first, tmp_path_factory.mktemp("undisturbed") / "node")
    return [trained(node, number) for number in range(1, ROUNDS + 1)]


def copied(first: TrainingNode, folder: Path) -> TrainingNode:
    shutil.copytree(first.config.parent, folder, ignore=shutil.ignore_patterns("run"))
    config = folder / first.config.name
    return replace(first, zone=open_research(load_settings(config)), config=config)


def trained(
    node: TrainingNode, number: int, around: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    round_id = node.add_round(number=number)
    around(round_id)
    work(node.zone, round_id)
    with reading(node.zone.engine) as session:
        row = session.get_one(Round, round_id)
        assert (row.state, row.reason) == (WorkState.DONE, None)
        assert row.output_path is not None
        probe = Round(protocol_id=row.protocol_id, number=number + 1, kind="train")
        left = sitestate.load(session, node.zone.root, probe)
    return {
        **weights_io.load(node.zone.root / row.output_path),
        **{f"left:{key}": value for key, value in left.items()},
    }


def work(zone: ResearchZone, round_id: str) -> None:
    with claimed(zone.engine, Round, round_id, "test", 20.0) as claim:
        assert claim is not None
        training.run_round(zone, claim)


def kill_in(node: TrainingNode, round_id: str, place: str) -> None:
    """Work on a round in a process that is killed as soon as it has been there."""
    pid = os.fork()
    if pid == 0:
        try:
            holder, name = PLACES[place]
            genuine = getattr(holder, name)

            def last(*arguments: Any, **options: Any) -> Any:
                genuine(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(holder, name, last)
            work(open_research(load_settings(node.config)), round_id)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("place", PLACES)
def test_a_site_killed_in_a_round_goes_on_with_the_same_numbers(
    first: TrainingNode, undisturbed: list[dict[str, Any]], tmp_path: Path, place: str
) -> None:
    node = copied(first, tmp_path / "node")

    def killed(round_id: str) -> None:
        kill_in(node, round_id, place)
        with reading(node.zone.engine) as session:
            assert session.get_one(Round, round_id).state == WorkState.RUNNING
        assert reconcile(node.zone.engine, Round, node.zone.wake, now()).requeued == 1

    for number, expected in enumerate(undisturbed, start=1):
        found = trained(node, number, killed if number == KILLED_IN else lambda _: None)
        assert sorted(found) == sorted(expected)
        for name, array in expected.items():
            assert np.array_equal(found[name], array), (number, name)
        assert any(name.startswith(f"left:{RESIDUAL}") and np.any(array) for name, array in found.items())
