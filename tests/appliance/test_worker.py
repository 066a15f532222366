from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from appliance import broker, health, ledger, node, work
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, Round
from appliance.worker import Liveness
from tests.appliance.servers import PostgreSQL, RedisServer, end_group, running_tcp_redis, wait_until
from tests.further import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings

pytestmark = pytest.mark.e2e

Start = "Callable[[str], subprocess.Popen[bytes]]"


@pytest.fixture
def config(node_settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "cloister.toml"
    path.write_text(f'data_root = "{node_settings.data_root}"\n[training]\nchild_idle_s = 0.5\n')
    return path


@pytest.fixture
def start(config: Path, node_settings: Settings) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> subprocess.Popen[bytes]:
        (node.run_dir(node_settings) / "health" / f"{name}.json").unlink(missing_ok=True)
        program = ["tests.appliance.probe_worker", name]
        if not name.endswith("_worker"):
            program = [f"appliance.processes.{name}"]
        argv = [sys.executable, "-m", *program, "--config", str(config)]
        process = subprocess.Popen(argv, process_group=0)
        running.append(process)
        wait_until(lambda: health.last_beat(node_settings, name) is not None, 60, f"{name} is ready")
        return process

    yield begin
    for process in running:
        end_group(process)


def add_job(zone: node.ClinicalZone, key: str, kind: str = "deidentify", priority: int = 5) -> str:
    with writing(zone.engine) as session:
        job_id = work.enqueue(session, ClinicalJob, kind, "a" * 32, key, priority=priority)
    assert job_id is not None
    return job_id


def add_round(zone: node.ResearchZone, number: int) -> str:
    with writing(zone.engine) as session:
        protocol = Protocol(plan_sha256=f"{number:064x}", run_id="r", name="n", plan={})
        session.add(protocol)
        session.flush()
        row = Round(
            run_id="r",
            number=number,
            kind="train",
            site="a",
            plan_sha256=protocol.plan_sha256,
            global_model_sha256="d" * 64,
            protocol_id=protocol.id,
            input_path="x",
        )
        session.add(row)
        session.flush()
        return row.id


def job(zone: node.ClinicalZone, job_id: str) -> ClinicalJob:
    with reading(zone.engine) as session:
        found = session.get(ClinicalJob, job_id)
    assert found is not None
    return found


def round_state(zone: node.ResearchZone, round_id: str) -> str:
    with reading(zone.engine) as session:
        found = session.get(Round, round_id)
    assert found is not None
    return found.state


def traces(zone: node.ClinicalZone | node.ResearchZone, word: str) -> list[tuple[str, int]]:
    path = zone.root / "probe.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row_id, int(pid)) for found, row_id, pid in map(str.split, lines) if found == word]


def test_every_kind_of_job_reaches_its_worker_once_though_delivered_twice(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    start("clinical_worker")
    start("fetch_worker")
    start("inference_worker")
    ids = {kind: add_job(clinical_zone, kind, kind) for kind in broker.CLINICAL_KINDS}
    for kind, job_id in ids.items():
        clinical_zone.wake(kind, job_id)
        clinical_zone.wake(kind, job_id)
    wait_until(
        lambda: all(job(clinical_zone, i).state == WorkState.DONE for i in ids.values()), what="all done"
    )
    wait_until(lambda: backlog(clinical_zone) == 0, what="every message is taken")
    assert sorted(row_id for row_id, _ in traces(clinical_zone, "began")) == sorted(ids.values())


def test_an_urgent_job_overtakes_those_whose_messages_came_earlier(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    start("clinical_worker")
    (clinical_zone.root / "hold").touch()
    ids = [add_job(clinical_zone, f"k{number}") for number in range(4)]
    clinical_zone.wake("deidentify", ids[0])
    wait_until(lambda: len(traces(clinical_zone, "began")) == 1, 60, "one is at work")
    for job_id in ids[1:]:
        clinical_zone.wake("deidentify", job_id)
    urgent = add_job(clinical_zone, "urgent", "deliver", priority=0)
    clinical_zone.wake("deliver", urgent)
    (clinical_zone.root / "hold").unlink()
    wait_until(
        lambda: all(job(clinical_zone, i).state == WorkState.DONE for i in [*ids, urgent]), 60, "all are done"
    )
    began = [row_id for row_id, _ in traces(clinical_zone, "began")]
    assert began[:2] == [ids[0], urgent]
    assert sorted(began) == sorted([*ids, urgent])


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    cases(
        [signal.SIGKILL, signal.SIGSTOP],
        [signal.SIGKILL],
        {signal.SIGKILL: "gone", signal.SIGSTOP: "answers-nothing"},
    ),
)
def test_a_worker_in_mid_round_outlives_a_broker_that_is_away(
    research_zone: node.ResearchZone,
    research_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
    how: signal.Signals,
) -> None:
    def beat() -> health.Beat:
        found = health.last_beat(research_zone.settings, "research_worker")
        assert found is not None
        return found

    start("research_worker")
    (research_zone.root / "hold").touch()
    round_id = add_round(research_zone, 1)
    research_zone.wake(round_id)
    wait_until(lambda: bool(traces(research_zone, "began")), 60, "the round began")
    assert research_redis.process is not None
    os.kill(research_redis.process.pid, how)
    away_since, pid = time.time(), beat().pid
    wait_until(lambda: beat().at > away_since + 30, 120, "it still gives signs of life")
    if how == signal.SIGSTOP:
        os.kill(research_redis.process.pid, signal.SIGCONT)
    else:
        research_redis.kill()
        research_redis.start()
    (research_zone.root / "hold").unlink()
    wait_until(lambda: round_state(research_zone, round_id) == WorkState.DONE, 60, "the round is done")
    second = add_round(research_zone, 2)

    def done() -> bool:
        research_zone.wake(second)
        return round_state(research_zone, second) == WorkState.DONE

    wait_until(done, 120, "the next round is done, once the worker has found the broker again")
    assert len(traces(research_zone, "began")) == 2
    assert beat().pid == pid


@pytest.mark.slow
def test_redis_killed_and_restarted_in_the_middle_costs_no_job_and_doubles_none(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    start("clinical_worker")
    start("indexer")
    hold = clinical_zone.root / "hold"
    hold.write_text("5")
    ids = [add_job(clinical_zone, f"before {number}") for number in range(20)]
    for job_id in ids:
        clinical_zone.wake("deidentify", job_id)
    wait_until(lambda: len(traces(clinical_zone, "began")) == 6, 60, "five are done and one is held")
    clinical_redis.kill()
    for number in range(5):
        ids.append(add_job(clinical_zone, f"meanwhile {number}"))
        assert not clinical_zone.wake("deidentify", ids[-1])
    clinical_redis.start()
    hold.unlink()
    wait_until(
        lambda: all(job(clinical_zone, job_id).state == WorkState.DONE for job_id in ids), 180, "all are done"
    )
    assert sorted(row_id for row_id, _ in traces(clinical_zone, "began")) == sorted(ids)
    assert sorted(row_id for row_id, _ in traces(clinical_zone, "ended")) == sorted(ids)


def test_signs_of_life_end_when_the_main_loop_stands_still() -> None:
    beats: list[float] = []
    liveness = Liveness(lambda: beats.append(time.monotonic()), silent_s=0.3, every_s=0.01)
    liveness.start()
    liveness.progress()
    wait_until(lambda: len(beats) > 3, what="signs of life")
    wait_until(lambda: time.monotonic() > beats[-1] + 1, what="they end")
    count = len(beats)
    liveness.progress()
    wait_until(lambda: len(beats) > count, what="they come again")


def backlog(zone: node.ClinicalZone) -> int | None:
    url = node.redis_url(zone.settings, "clinical")
    return broker.backlog(url, (broker.CLINICAL_QUEUE, broker.INFERENCE_QUEUE))


@pytest.mark.postgres
def test_a_node_on_postgresql_and_a_redis_by_url_works_the_same(
    make_node: Callable[..., Settings], postgresql: PostgreSQL, tmp_path: Path
) -> None:
    with running_tcp_redis(tmp_path) as redis_url:
        stores = {"database_url": postgresql.new_database(), "redis_url": redis_url}
        settings = make_node("remote", clinical=stores)
        config = tmp_path / "remote.toml"
        section = "\n".join(f'{name} = "{value}"' for name, value in stores.items())
        config.write_text(f'data_root = "{settings.data_root}"\n[clinical]\n{section}\n')
        zone = node.open_clinical(settings)
        argv = [
            sys.executable,
            "-m",
            "tests.appliance.probe_worker",
            "clinical_worker",
            "--config",
            str(config),
        ]
        worker = subprocess.Popen(argv, process_group=0)
        try:
            wait_until(lambda: health.last_beat(settings, "clinical_worker") is not None, 60, "ready")
            (zone.root / "hold").touch()
            job_id = add_job(zone, "k")
            zone.wake("deidentify", job_id)
            zone.wake("deidentify", job_id)
            wait_until(lambda: bool(traces(zone, "began")), what="the task began")
            os.kill(traces(zone, "began")[0][1], signal.SIGKILL)
            (zone.root / "hold").unlink()
            wait_until(lambda: job(zone, job_id).state == WorkState.DONE, what="done")
            wait_until(lambda: backlog(zone) == 0, what="every message is taken")
        finally:
            end_group(worker)
        assert len(traces(zone, "ended")) == 1
        assert ledger.verify(zone.engine, zone.keys.signing.public_key()).ok
