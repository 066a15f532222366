from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import health, research_client
from appliance.crossing import LABELS, LabelItem, write_bundle
from appliance.db.base import WorkState, new_id, now
from appliance.db.engine import reading, writing
from appliance.db.research import Label, Round
from tests.appliance.servers import RedisServer, end_group, wait_until
from tests.appliance.training_node import TrainingNode, make_training_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Iterator[TrainingNode]:
    node = make_training_node(tmp_path, count=4)
    redis = RedisServer(node.zone.settings, "research")
    redis.start()
    yield node
    redis.kill()


def start_agent(node: TrainingNode) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "appliance.processes.research_agent", "--config", str(node.config)]
    return subprocess.Popen(argv, start_new_session=True)


@pytest.fixture
def agent(node: TrainingNode) -> Iterator[subprocess.Popen[bytes]]:
    process = start_agent(node)
    yield process
    end_group(process)


def ask(node: TrainingNode) -> research_client.ResearchClient:
    return research_client.connect(node.zone.settings)


def labels(node: TrainingNode) -> int:
    with reading(node.zone.engine) as session:
        return len(session.scalars(select(Label).where(Label.name == "crossed")).all())


@pytest.mark.e2e
def test_the_agent_imports_requeues_and_answers_and_ends_at_once(
    node: TrainingNode, agent: subprocess.Popen[bytes]
) -> None:
    settings = node.zone.settings
    bundle_id = new_id()
    item = LabelItem("A" * 26, "", "crossed", 1, "csv")
    write_bundle(settings, bundle_id, LABELS, "default", [item])
    wait_until(lambda: labels(node) == 1, 40, "the bundle is imported")
    wait_until((settings.crossing_in / "acks" / bundle_id).exists, 60, "and acknowledged")

    round_id = node.add_round()
    with writing(node.zone.engine) as session:  # as a worker that was killed leaves it
        row = session.get_one(Round, round_id)
        row.state, row.attempts = WorkState.RUNNING, 1
        row.lease_owner, row.lease_until = "worker@elsewhere:1:1:0", now()
    wait_until(lambda: state_of(node, round_id) == WorkState.QUEUED, 60, "the round is taken back")

    wait_until(lambda: len(ask(node).protocols()) == 1, 60, "the service answers")
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.wait(5) == 0


def state_of(node: TrainingNode, round_id: str) -> str:
    with reading(node.zone.engine) as session:
        return session.get_one(Round, round_id).state


@pytest.mark.e2e
def test_a_refused_bundle_holds_up_neither_the_others_nor_the_agent(
    node: TrainingNode, agent: subprocess.Popen[bytes]
) -> None:
    settings = node.zone.settings
    bad, good = settings.crossing_out / ("0" * 32), "f" * 32
    bad.mkdir()
    (bad / "bundle.json").write_text("{")
    write_bundle(settings, good, LABELS, "default", [LabelItem("B" * 26, "", "crossed", 0, "csv")])
    wait_until(lambda: labels(node) == 1, 40, "the good bundle is imported")
    assert not (settings.crossing_in / "acks" / bad.name).exists()

    def refused() -> int:
        beat = health.last_beat(settings, "research_agent")
        return 0 if beat is None else beat.detail.get(health.REFUSED_BUNDLES, 0)

    wait_until(lambda: refused() == 1, 40, "staff see the refusal")
    assert agent.poll() is None


def test_importing_the_agent_loads_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys, appliance.processes.research_agent, appliance.research_api, appliance.importing;"
        "sys.exit(bool({'torch', 'monai', 'onnxruntime', 'nvflare', 'nicegui'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
