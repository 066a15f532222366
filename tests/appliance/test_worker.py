from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from appliance import broker, children, health, ledger, node, work
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import reading, writing
from appliance.db.research import Protocol, Round
from appliance.worker import clinical_app, research_app
from tests.appliance.servers import PostgreSQL, RedisServer, end_group, running_tcp_redis, wait_until

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
        argv = [sys.executable, "-m", "tests.appliance.probe_worker", name, "--config", str(config)]
        process = subprocess.Popen(argv, process_group=0)
        running.append(process)
        wait_until(lambda: health.last_beat(node_settings, name) is not None, 60, f"{name} is ready")
        return process

    yield begin
    for process in running:
        end_group(process)


def add_job(zone: node.ClinicalZone, key: str, kind: str = "deidentify") -> str:
    with writing(zone.engine) as session:
        job_id = work.enqueue(session, ClinicalJob, kind, "a" * 32, key)
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
        report = ledger.verify(
            zone.engine, zone.keys.signing.public_key(), node.head_path(settings, "clinical")
        )
        assert report.problems[0].code == "tail"  # the copied head is that of another database
        zone.engine.dispose()


def test_a_killed_child_s_task_is_done_again_and_counted_once(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    start("clinical_worker")
    (clinical_zone.root / "hold").touch()
    job_id = add_job(clinical_zone, "k")
    clinical_zone.wake("deidentify", job_id)
    wait_until(lambda: bool(traces(clinical_zone, "began")), what="the task began")
    os.kill(traces(clinical_zone, "began")[0][1], signal.SIGKILL)
    (clinical_zone.root / "hold").unlink()
    wait_until(lambda: job(clinical_zone, job_id).state == WorkState.DONE, what="done")
    assert job(clinical_zone, job_id).attempts == 2
    assert len(traces(clinical_zone, "ended")) == 1


def test_a_killed_worker_s_task_is_taken_over_by_the_next(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    first = start("clinical_worker")
    (clinical_zone.root / "hold").touch()
    job_id = add_job(clinical_zone, "k")
    clinical_zone.wake("deidentify", job_id)
    wait_until(lambda: bool(traces(clinical_zone, "began")), what="the task began")
    child = traces(clinical_zone, "began")[0][1]
    first.kill()
    wait_until(lambda: not alive(child), what="the child died with its parent")
    (clinical_zone.root / "hold").unlink()
    start("clinical_worker")
    work.reconcile(clinical_zone.engine, ClinicalJob, clinical_zone.wake, now())
    wait_until(lambda: job(clinical_zone, job_id).state == WorkState.DONE, what="done")
    assert len(traces(clinical_zone, "ended")) == 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_work_goes_on_after_redis_was_killed_and_lost_everything(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    worker = start("clinical_worker")
    (clinical_zone.root / "hold").touch()
    jobs = [add_job(clinical_zone, f"k{number}") for number in range(4)]
    for job_id in jobs[:3]:
        clinical_zone.wake("deidentify", job_id)
    wait_until(lambda: bool(traces(clinical_zone, "began")), what="the task began")
    clinical_redis.kill()
    clinical_redis.forget_everything()
    began = time.monotonic()
    clinical_zone.wake("deidentify", jobs[3])  # the caller neither fails nor waits
    assert time.monotonic() - began < 1.5
    (clinical_zone.root / "hold").unlink()
    wait_until(lambda: job(clinical_zone, jobs[0]).state == WorkState.DONE, what="the running task is done")
    clinical_redis.start()
    work.reconcile(clinical_zone.engine, ClinicalJob, clinical_zone.wake, now())
    wait_until(lambda: all(job(clinical_zone, i).state == WorkState.DONE for i in jobs), 40, "all done")
    assert worker.poll() is None
    assert sorted(i for i, _ in traces(clinical_zone, "ended")) == sorted(jobs)


def test_a_sender_notices_that_redis_is_back(
    clinical_zone: node.ClinicalZone, clinical_redis: RedisServer
) -> None:
    url = node.redis_url(clinical_zone.settings, "clinical")
    for _ in range(3):
        assert broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "a" * 32)
        clinical_redis.kill()
        assert not broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "a" * 32)
        clinical_redis.start()
    assert broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "a" * 32)
    assert backlog(clinical_zone) is not None
    assert backlog(clinical_zone) != 0


def test_a_worker_told_to_stop_ends_soon_and_its_task_is_taken_over_at_once(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    worker = start("clinical_worker")
    (clinical_zone.root / "hold").touch()
    job_id = add_job(clinical_zone, "k")
    clinical_zone.wake("deidentify", job_id)
    wait_until(lambda: bool(traces(clinical_zone, "began")), what="the task began")
    worker.terminate()
    worker.wait(8)
    wait_until(lambda: not alive(traces(clinical_zone, "began")[0][1]), what="the child is gone")
    (clinical_zone.root / "hold").unlink()
    start("clinical_worker")
    work.reconcile(clinical_zone.engine, ClinicalJob, clinical_zone.wake, now())
    wait_until(lambda: job(clinical_zone, job_id).state == WorkState.DONE, what="done")
    assert len(traces(clinical_zone, "ended")) == 1


def test_the_research_child_ends_after_idling_and_no_round_is_lost(
    research_zone: node.ResearchZone,
    research_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    worker = start("research_worker")
    for number in range(1, 4):
        round_id = add_round(research_zone, number)
        research_zone.wake(round_id)
        wait_until(lambda i=round_id: round_state(research_zone, i) == WorkState.DONE, what="done")  # type: ignore[misc]
        pid = traces(research_zone, "ended")[-1][1]
        wait_until(lambda p=pid: not alive(p), what="the idle child ended")  # type: ignore[misc]
        wait_until(lambda: bool(children.children_of(worker.pid)), what="a new child is there")
    pids = [pid for _, pid in traces(research_zone, "ended")]
    assert len(set(pids)) == 3
    assert worker.poll() is None


def test_rounds_that_come_just_when_the_child_ends_are_not_lost(
    research_zone: node.ResearchZone,
    research_redis: RedisServer,
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    start("research_worker")
    ids = [add_round(research_zone, number) for number in range(1, 13)]
    for number, round_id in enumerate(ids):
        research_zone.wake(round_id)
        wait_until(lambda i=round_id: round_state(research_zone, i) == WorkState.DONE, what="done")  # type: ignore[misc]
        ended = time.monotonic()
        wait_until(lambda e=ended, n=number: time.monotonic() - e > 0.44 + 0.01 * n, what="nearly idle")  # type: ignore[misc]
    assert len(traces(research_zone, "ended")) == len(ids)


def test_every_task_option_is_one_that_celery_knows() -> None:
    clinical_app.loader.import_default_modules()
    research_app.loader.import_default_modules()
    tasks = {name: task for app in (clinical_app, research_app) for name, task in app.tasks.items()}
    ours = {name for name in tasks if not name.startswith("celery.")}
    assert ours == {
        "clinical.deidentify_study",
        "clinical.deliver_result",
        "clinical.infer_study",
        "research.run_local_round",
    }
    from celery import Task  # noqa: PLC0415 - only here

    for name in ours:
        own = {option for option in vars(type(tasks[name])) if not option.startswith("__")}
        known = set(dir(Task)) | {"_decorated", "_decorated_fun", "store_eager_result", "__wrapped__"}
        assert own <= known, name
        assert tasks[name].acks_late
        assert tasks[name].reject_on_worker_lost
        assert tasks[name].ignore_result
