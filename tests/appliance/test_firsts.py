"""What a site takes for a later round's model: by what the sites signed of the rounds between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance import sitestate
from appliance.consortium import block as blocks
from appliance.consortium import chronicle
from appliance.consortium.chronicle import Entry
from appliance.consortium.offers import Countersignature
from appliance.consortium.replica import Replica
from appliance.db.base import WorkState
from appliance.db.engine import reading, writing
from appliance.db.research import Round
from appliance.training import run_round
from appliance.work import claimed
from tests.appliance.consortium.scene import Scene, begin
from tests.appliance.training_node import TrainingNode, make_training_node
from trainer.compression import Compression
from trainer.federation.aggregation import fingerprint
from trainer.federation.plan import Strategy
from trainer.first_model import first_model
from trainer.local_round import use_threads
from trainer.weights_io import save

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.weights_io import Weights

use_threads(1)

OTHERS = ("south", "west")


class History:
    """A run at a site: the ledger's rounds, and those that the site trained in."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.node: TrainingNode = make_training_node(folder, **{"total_rounds": 9, **changes})
        plan = self.node.plan
        self.models = [first_model(plan.task, plan.strategy.name, plan.seed)]
        keys = {name: Ed25519PrivateKey.generate() for name in OTHERS}
        keys["site-1"] = self.node.zone.keys.signing
        run = (plan.sha256, fingerprint(self.models[0]))
        self.scene: Scene = begin(folder / "coordinator", None, keys, run)
        self.told = 0
        self.tell()

    def tell(self) -> None:
        """Bring the ledger to the site."""
        assert isinstance(
            Replica(self.node.zone).receive(self.scene.offer(max(1, self.told))), Countersignature
        )
        self.told = self.scene.chronicle.chain().size

    def finish(self, distance: float, norms: tuple[float | None, ...]) -> None:
        """Finish a round of the other sites that moved the model so far."""
        plan, number, before = self.node.plan, len(self.models), self.models[-1]
        self.models.append(moved(before, distance))
        old, new = (fingerprint(one) for one in self.models[-2:])
        given = tuple(
            self.scene.contribution(site, number, old, plan=plan.sha256, norm=norm)
            for site, norm in zip(OTHERS, norms, strict=False)
        )
        entry = Entry(blocks.ROUND, plan.sha256, number, old, new, given)
        with writing(self.scene.chronicle.engine) as session:
            chronicle.append(session, self.scene.chronicle.key, entry)
        self.tell()

    def trained(self) -> None:
        """Note that the site trained on the newest model."""
        row_id = self._row(self.models[-1])
        with writing(self.node.zone.engine) as session:
            row = session.get_one(Round, row_id)
            row.state, row.output_sha256 = WorkState.DONE, "0" * 64
            if self.node.plan.compression is not None:
                sitestate.save(self.node.zone.root, row, row.output_sha256, {})

    def ask(self, model: Weights | None = None) -> tuple[str, str]:
        """Have the next round trained; return the state of its row and why."""
        row_id = self._row(model or self.models[-1])
        with claimed(self.node.zone.engine, Round, row_id, "test", 20.0) as claim:
            assert claim is not None
            run_round(self.node.zone, claim)
        with reading(self.node.zone.engine) as session:
            row = session.get_one(Round, row_id)
        return row.state, row.reason or ""

    def _row(self, model: Weights) -> str:
        root = self.node.zone.root
        path = root / "federation" / "models" / f"{fingerprint(model)}.safetensors"
        digest = save(path, model)
        relative = str(path.relative_to(root))
        number = len(self.models)
        return self.node.add_round(number=number, global_model_sha256=digest, input_path=relative)


def moved(model: Weights, distance: float) -> Weights:
    """Move one array of a model by a distance."""
    array = model["conv1.weight"]
    step = np.full_like(array, distance / array.size**0.5)
    return {**model, "conv1.weight": array + step}


@pytest.mark.parametrize(("distance", "state"), [(1.4, WorkState.DONE), (3.0, WorkState.DEAD)])
def test_the_second_rounds_model_lies_within_what_the_sites_signed_of_the_first(
    tmp_path: Path, distance: float, state: WorkState
) -> None:
    """Far below the plan's bound of 100, with which crafted weights at a distance of 73 would pass."""
    history = History(tmp_path)
    assert history.node.plan.max_update_norm == 100.0
    history.trained()
    history.finish(distance, (1.5, 0.7))

    found, reason = history.ask()

    assert found == state
    assert ("made of the model of round 1" in reason) == (state == WorkState.DEAD)


def test_a_site_that_was_away_counts_the_rounds_between(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.trained()
    for _ in range(3):
        history.finish(0.5, (0.5, 0.4))
    near = history.models[-1]

    found, reason = history.ask(moved(near, 1.0))

    assert found == WorkState.DEAD
    assert "made of the model of round 1" in reason
    assert history.ask(near) == (WorkState.DONE, "")


def test_a_site_that_comes_late_counts_from_the_first_model(tmp_path: Path) -> None:
    history = History(tmp_path)
    for _ in range(2):
        history.finish(0.5, (0.5, 0.5))

    found, reason = history.ask(moved(history.models[-1], 1.0))

    assert found == WorkState.DEAD
    assert "seed's first model" in reason
    assert history.ask()[0] == WorkState.DONE


def test_a_site_that_states_no_norm_is_bounded_by_the_plan(tmp_path: Path) -> None:
    history = History(tmp_path, max_update_norm=4.0)
    history.trained()
    history.finish(3.9, (0.5, None))

    assert history.ask()[0] == WorkState.DONE
    assert history.ask(moved(history.models[0], 4.2))[0] == WorkState.DEAD


def test_a_model_that_the_ledger_does_not_name_is_none_to_count_from(tmp_path: Path) -> None:
    """As after the coordinator's ledger was taken up anew from an older backup."""
    history = History(tmp_path)
    honest = history.models[0]
    history.models[0] = moved(honest, 50.0)
    history.trained()
    history.models[0] = honest
    history.finish(0.5, (0.5, 0.5))

    assert history.ask()[0] == WorkState.DONE


def test_a_round_to_which_nobody_contributed_moves_nothing(tmp_path: Path) -> None:
    """A coordinator appends blocks alone; contributions it cannot make up."""
    history = History(tmp_path)
    history.trained()
    history.finish(0.5, ())

    found, reason = history.ask()

    assert found == WorkState.DEAD
    assert "UnfitModelError" in reason


def test_momentum_of_rounds_before_counts(tmp_path: Path) -> None:
    """Two long rounds, then a short one that the first two still carry."""
    history = History(tmp_path, strategy=Strategy("fedavgm", {"beta1": 0.9}))
    for distance, norm in ((1.0, 1.0), (1.9, 1.0)):
        history.trained()
        history.finish(distance, (norm, norm))
    history.trained()
    history.finish(1.7, (0.1, 0.1))

    assert history.ask(moved(history.models[-2], 2.5))[0] == WorkState.DEAD
    assert history.ask()[0] == WorkState.DONE


@pytest.mark.parametrize("text", ["int8:both_ways", "top-k:both_ways"])
def test_what_packed_steps_left_out_comes_later(tmp_path: Path, text: str) -> None:
    """A long round, then one that moved nothing by itself: what is still to come of the first."""
    packing = Compression.parse(text)
    history = History(tmp_path, compression=packing)
    history.trained()
    history.finish(1.4, (1.5, 0.7))
    history.trained()
    history.finish(0.0, (0.001, 0.001))
    waiting = 0.2 if packing.name == "int8" else 1.4

    found, reason = history.ask(moved(history.models[-2], waiting + 1.2))

    assert found == WorkState.DEAD
    assert "made of the model of round 2" in reason
    assert history.ask(moved(history.models[-2], 0.7 * waiting))[0] == WorkState.DONE


def test_a_site_that_was_away_counts_what_was_packed_between(tmp_path: Path) -> None:
    history = History(tmp_path, compression=Compression.parse("int8:both_ways"))
    history.trained()
    for _ in range(3):
        history.finish(0.5, (0.5, 0.4))

    assert history.ask(moved(history.models[-1], 0.8))[0] == WorkState.DEAD
    assert history.ask()[0] == WorkState.DONE


def test_the_norm_is_stated_coarsely_and_never_too_low() -> None:
    for norm in (0.0, 1e-7, 0.0123, 1.0, 3.3, 99.99, 1e5):
        stated = blocks.stated_norm(norm)
        assert stated is not None
        assert norm <= stated / 1000 <= max(norm * 2**0.25 + 0.001, 0.001)
    assert blocks.stated_norm(float("inf")) is None
    assert blocks.stated_norm(float("nan")) is None
    assert len({blocks.stated_norm(1 + i / 1000) for i in range(100)}) <= 2


def test_a_statement_without_a_norm_reads_as_before(tmp_path: Path) -> None:
    scene = begin(tmp_path)
    said = scene.contribution("south", 1, "a" * 64).statement
    assert said is not None
    text = blocks.canonical(said)

    assert "norm" not in text
    assert "norm" in blocks.canonical(replace(said, norm=3))
    scene.round(1)
    assert '"norm"' not in scene.blocks[-1].body
    assert blocks.canonical(blocks.read_block(scene.blocks[-1].body)) == scene.blocks[-1].body
