from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select, update

from appliance import datasets, heartbeat, training
from appliance.children import descendants_of
from appliance.db.base import WorkState, now
from appliance.db.engine import reading, writing
from appliance.db.research import (
    CandidateModel,
    Protocol,
    ProtocolState,
    ResearchLedgerEntry,
    Round,
    Subject,
)
from appliance.federation import refusals
from appliance.ledger import verify
from appliance.work import LeaseLostError, claimed, reconcile
from inference.evaluation import read_report
from inference.package import load_package
from tests.appliance.servers import RedisServer, end_group, wait_until
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.further import cases
from tests.trainer.samples import small_task
from trainer.local_round import evaluate, use_threads
from trainer.metrics import Metrics
from trainer.networks import initial_weights
from trainer.strategies import check_update
from trainer.task import LocalSpec
from trainer.weights_io import load, save, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

use_threads(1)


@pytest.fixture
def node(tmp_path: Path) -> TrainingNode:
    return make_training_node(tmp_path)


def deliver(node: TrainingNode, round_id: str) -> bool:
    """Do what the Celery task does; return whether there was anything to do."""
    with claimed(node.zone.engine, Round, round_id, "test", 20.0) as claim:
        if claim is None:
            return False
        training.run_round(node.zone, claim)
    return True


def row_of(node: TrainingNode, round_id: str) -> Round:
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id)


def ledger_kinds(node: TrainingNode, kind: str) -> int:
    with reading(node.zone.engine) as session:
        return len(session.scalars(select(ResearchLedgerEntry).where(ResearchLedgerEntry.kind == kind)).all())


def test_a_round_delivered_twice_gives_one_update(node: TrainingNode) -> None:
    round_id = node.add_round()
    assert deliver(node, round_id)
    row = row_of(node, round_id)
    assert (row.state, row.reason, row.attempts) == (WorkState.DONE, None, 1)
    assert row.output_path is not None
    path = node.zone.root / row.output_path
    assert sha256(path) == row.output_sha256
    check_update(initial_weights(node.plan.task), load(path))
    assert not deliver(node, round_id)
    again = row_of(node, round_id)
    assert (again.output_sha256, again.attempts) == (row.output_sha256, 1)
    assert ledger_kinds(node, training.ROUND_TRAINED) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert verify(node.zone.engine, node.zone.keys.signing.public_key()).ok


def test_a_round_s_row_says_what_was_trained_on_and_how_the_global_model_did(node: TrainingNode) -> None:
    round_id = node.add_round()
    deliver(node, round_id)
    row = row_of(node, round_id)
    assert row.dataset_version_id is not None
    assert 0 < row.samples < 24
    metrics = Metrics.from_json(row.metrics)
    assert metrics.samples == 24 - row.samples
    assert row.train_seconds is not None
    assert row.progress == {"stage": "train", "done": 8, "total": 8}
    json.dumps(row.metrics, allow_nan=False)


def test_an_interrupted_round_gives_the_same_update_when_it_is_done_again(node: TrainingNode) -> None:
    first, second = node.add_round(), node.add_round(run_id="run-1-again")
    deliver(node, first)
    deliver(node, second)
    assert row_of(node, first).output_sha256 == row_of(node, second).output_sha256


def test_who_lost_the_lease_cannot_name_an_update(
    node: TrainingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker goes on without a heartbeat after its lease has run out and another has finished."""
    round_id, genuine = node.add_round(), datasets.build
    finished_by_other: list[Round] = []

    def slow_build(*arguments: Any) -> datasets.Built:
        if not finished_by_other:
            finished_by_other.append(row_of(node, round_id))
            foreign = "slow@elsewhere:1:1:0"  # nobody here can tell whether that process lives
            past = now() - timedelta(seconds=1)
            # attempts=0: the round was asked for again meanwhile, which starts counting anew.
            _set(node, Round, lease_owner=foreign, lease_until=past, attempts=0)
            assert deliver(node, round_id)
            finished_by_other[0] = row_of(node, round_id)
        return genuine(*arguments)

    monkeypatch.setattr(datasets, "build", slow_build)
    monkeypatch.setattr(heartbeat.Heartbeat, "__call__", lambda *_: None)
    with claimed(node.zone.engine, Round, round_id, "slow", 20.0) as claim:
        assert claim is not None
        with pytest.raises(LeaseLostError):
            training.run_round(node.zone, claim)
    row, other = row_of(node, round_id), finished_by_other[0]
    assert other.output_path is not None
    assert (row.state, row.output_path) == (WorkState.DONE, other.output_path)
    assert len(list((node.zone.root / "federation" / "updates").iterdir())) == 2
    assert sha256(node.zone.root / other.output_path) == row.output_sha256
    assert ledger_kinds(node, training.ROUND_TRAINED) == 1


def test_a_heartbeat_after_the_lease_was_lost_stops_the_work(node: TrainingNode) -> None:
    round_id = node.add_round()
    with claimed(node.zone.engine, Round, round_id, "slow", 20.0) as claim:
        assert claim is not None
        beat = heartbeat.Heartbeat(claim)
        beat("train", 1, 2)
        assert row_of(node, round_id).progress == {"stage": "train", "done": 1, "total": 2}
        _set(node, Round, lease_owner="other@elsewhere:1:1:0")
        beat("train", 1, 2)  # within a second of the last one: not looked at
        with pytest.raises(LeaseLostError):
            beat("train", 2, 2)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda node: _set(node, Protocol, state=ProtocolState.SUSPENDED), "suspended"),
        (lambda node: _set(node, Protocol, state=ProtocolState.PENDING), "not_approved"),
        (lambda node: _set(node, Protocol, state=ProtocolState.LEFT), "left"),
        (lambda node: _set(node, Protocol, expires_at=now()), "expired"),
        (lambda node: _set(node, Protocol, plan={**node.plan.to_json(), "seed": 8}), "plan"),
        (lambda node: _set(node, Round, global_model_sha256="0" * 64), "announced hash"),
        (lambda node: _set(node, Round, input_path="../clinical/keys/vault.key"), "outside"),
        (lambda node: _set(node, Round, input_path="federation/models/none"), "cannot be read"),
        (lambda node: _set(node, Round, kind="other"), "unknown kind"),
        (lambda node: _set(node, Subject, opted_out=True), "training case"),
    ],
)
def test_a_round_that_cannot_be_done_is_dead_with_its_reason(
    node: TrainingNode, spoil: Callable[[TrainingNode], None], reason: str
) -> None:
    round_id = node.add_round()
    spoil(node)
    assert deliver(node, round_id)
    row = row_of(node, round_id)
    assert row.state == WorkState.DEAD
    assert row.reason is not None
    assert reason in row.reason
    assert row.output_path is None
    assert ledger_kinds(node, training.ROUND_TRAINED) == 0


def _set(node: TrainingNode, model: Any, **values: Any) -> None:
    with writing(node.zone.engine) as session:
        session.execute(update(model).values(**values))


def test_finalize_leaves_a_signed_package_with_its_report_and_a_candidate(
    node: TrainingNode, tmp_path: Path
) -> None:
    round_id = node.add_round("finalize", 2)
    assert deliver(node, round_id)
    row = row_of(node, round_id)
    assert (row.state, row.reason) == (WorkState.DONE, None)
    spool = node.zone.settings.crossing_in / "packages"
    assert sorted(path.name for path in spool.iterdir()) == ["run-1.json", "run-1.zip"]
    signers = {"research": node.zone.keys.signing.public_key()}
    package = load_package(spool / "run-1.zip", tmp_path / "unpacked", signers)
    report = read_report((spool / "run-1.json").read_bytes(), package.sha256, signers)
    assert report["metrics"] == row.metrics
    assert package.card.provenance["federation"]["run_id"] == "run-1"
    assert package.card.version == "run-1-r2"
    with reading(node.zone.engine) as session:
        candidate = session.scalars(select(CandidateModel)).one()
    assert candidate.package_sha256 == package.sha256
    assert candidate.parity_max_abs is not None
    assert candidate.parity_max_abs < 1e-5
    assert list((node.zone.root / "federation" / "exports").iterdir()) == []


def test_finalize_done_again_writes_the_same_package_and_one_candidate(node: TrainingNode) -> None:
    first = node.add_round("finalize", 2)
    deliver(node, first)
    spool = node.zone.settings.crossing_in / "packages"
    before = {path.name: path.read_bytes() for path in spool.iterdir()}
    _set(node, Round, state=WorkState.QUEUED)
    deliver(node, first)
    assert {path.name: path.read_bytes() for path in spool.iterdir()} == before
    with reading(node.zone.engine) as session:
        assert len(session.scalars(select(CandidateModel)).all()) == 1


def test_finalize_measures_the_final_model_on_the_validation_part(node: TrainingNode) -> None:
    round_id = node.add_round("finalize", 2)
    deliver(node, round_id)
    built = datasets.build(node.zone, node.plan.task)
    expected = evaluate(node.plan.task, initial_weights(node.plan.task), built.dataset)
    assert Metrics.from_json(row_of(node, round_id).metrics) == expected


def test_importing_the_round_s_module_loads_no_torch() -> None:
    code = (
        "import sys, appliance.training, appliance.datasets, appliance.packaging;"
        "sys.exit(bool({'torch', 'monai', 'onnxruntime', 'nvflare'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def slow_node(tmp_path: Path) -> Iterator[TrainingNode]:
    """A node whose rounds take some seconds, with its embedded Redis."""
    task = small_task(local=LocalSpec(batch_size=16, local_steps=300))
    node = make_training_node(tmp_path, task=task)
    redis = RedisServer(node.zone.settings, "research")
    redis.start()
    yield node
    redis.kill()


@contextlib.contextmanager
def running_worker(node: TrainingNode) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "appliance.processes.research_worker", "--config", str(node.config)]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        yield process
    finally:
        end_group(process)


def training_goes_on(node: TrainingNode, round_id: str) -> bool:
    row = row_of(node, round_id)
    return row.state == WorkState.RUNNING and row.progress.get("stage") == "train"


@pytest.mark.e2e
@pytest.mark.parametrize("whole_worker", cases([True, False], [False], {True: "worker", False: "pool child"}))
def test_a_worker_killed_in_a_round_loses_nothing_and_the_round_counts_once(
    slow_node: TrainingNode, *, whole_worker: bool
) -> None:
    node = slow_node
    round_id = node.add_round()
    node.zone.wake(round_id)

    def done() -> bool:
        reconcile(node.zone.engine, Round, node.zone.wake, now())
        return row_of(node, round_id).state == WorkState.DONE

    with contextlib.ExitStack() as running:
        worker = running.enter_context(running_worker(node))
        wait_until(lambda: training_goes_on(node, round_id), 90, "the round is trained")
        if whole_worker:
            end_group(worker)
            running.enter_context(running_worker(node))
        else:
            (child,) = descendants_of(worker.pid)
            os.kill(child, signal.SIGKILL)
        wait_until(done, 120, "the round is done by another process")
    row = row_of(node, round_id)
    assert row.attempts == 2
    assert row.output_path is not None
    assert sha256(node.zone.root / row.output_path) == row.output_sha256
    assert ledger_kinds(node, training.ROUND_TRAINED) == 1


def test_a_global_model_with_other_tensors_is_refused_and_recorded_once(node: TrainingNode) -> None:
    path = node.zone.root / "federation" / "models" / "other.safetensors"
    digest = save(path, {**initial_weights(node.plan.task), "activations": np.zeros(4, np.float32)})
    changes = {"global_model_sha256": digest, "input_path": str(path.relative_to(node.zone.root))}
    for number in (1, 2):
        round_id = node.add_round(number=number)
        _set_row(node, round_id, **changes)
        deliver(node, round_id)
        row = row_of(node, round_id)
        assert (row.state, row.output_path) == (WorkState.DEAD, None)
    assert ledger_kinds(node, refusals.ORDER_REFUSED) == 1


def test_a_first_model_that_the_plan_s_seed_does_not_give_is_refused_and_recorded(node: TrainingNode) -> None:
    """Weights crafted to show a picture in the update have the network's names and shapes."""
    crafted = initial_weights(node.plan.task, node.plan.seed)
    crafted["conv1.weight"] = crafted["conv1.weight"] * np.float32(1.01)
    path = node.zone.root / "federation" / "models" / "crafted.safetensors"
    round_id = node.add_round()
    _set_row(
        node,
        round_id,
        global_model_sha256=save(path, crafted),
        input_path=str(path.relative_to(node.zone.root)),
    )
    deliver(node, round_id)
    row = row_of(node, round_id)
    assert (row.state, row.output_path) == (WorkState.DEAD, None)
    assert "seed" in (row.reason or "")
    assert ledger_kinds(node, refusals.ORDER_REFUSED) == 1


def test_the_first_model_is_drawn_once_and_goes_when_the_run_is_over(node: TrainingNode) -> None:
    folder = node.zone.root / "federation" / "firsts"

    deliver(node, node.add_round())
    [drawn] = folder.iterdir()
    before = drawn.stat()
    deliver(node, node.add_round(number=2))
    after = drawn.stat()
    deliver(node, node.add_round("finalize", 2))

    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(folder.iterdir()) == []


def _set_row(node: TrainingNode, round_id: str, **values: Any) -> None:
    with writing(node.zone.engine) as session:
        session.execute(update(Round).where(Round.id == round_id).values(**values))
