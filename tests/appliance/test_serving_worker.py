from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import select

from appliance import broker, health, node, work
from appliance.db.base import WorkState, now
from appliance.db.clinical import ClinicalJob, Result
from appliance.db.engine import reading
from appliance.db.peers import Delivery
from tests.appliance.servers import RedisServer, end_group, wait_until
from tests.appliance.serving_material import add_instances, add_model, add_peer, assemble, study_instance
from tests.inference.material import radiograph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings

pytestmark = pytest.mark.e2e


@pytest.fixture
def start(node_settings: Settings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    config = tmp_path / "cloister.toml"
    config.write_text(f'data_root = "{node_settings.data_root}"\n')
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        (node.run_dir(node_settings) / "health" / "inference_worker.json").unlink(missing_ok=True)
        argv = [sys.executable, "-m", "appliance.processes.inference_worker", "--config", str(config)]
        running.append(subprocess.Popen(argv, process_group=0))
        ready = lambda: health.last_beat(node_settings, "inference_worker") is not None  # noqa: E731
        wait_until(ready, 60, "the inference worker is ready")
        return running[-1]

    yield begin
    for process in running:
        end_group(process)


def _state(zone: node.ClinicalZone, job_id: str) -> str:
    with reading(zone.engine) as session:
        return session.get_one(ClinicalJob, job_id).state


def _loaded(process: subprocess.Popen[bytes]) -> set[str]:
    """Names of the runtime's libraries that a process has mapped."""
    maps = {item.path for item in psutil.Process(process.pid).memory_maps()}
    return {
        name for name in ("onnxruntime", "torch", "highdicom") if any(f"/{name}/" in path for path in maps)
    }


def test_a_killed_inference_worker_leaves_one_set_of_results(
    clinical_zone: node.ClinicalZone,
    clinical_redis: RedisServer,
    start: Callable[[], subprocess.Popen[bytes]],
) -> None:
    add_model(clinical_zone)
    add_peer(clinical_zone)
    pictures = [study_instance(pixels=radiograph(900, 700)) for _ in range(40)]
    study_id = add_instances(clinical_zone, pictures)
    _, job_id = assemble(clinical_zone, study_id, ("workstation",))

    first = start()
    assert _loaded(first) == set()
    clinical_zone.wake("infer", job_id)
    wait_until(lambda: _state(clinical_zone, job_id) == WorkState.RUNNING, 60, "the job runs")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    assert _state(clinical_zone, job_id) == WorkState.RUNNING

    start()
    work.reconcile(clinical_zone.engine, ClinicalJob, clinical_zone.wake, now())
    clinical_zone.wake("infer", job_id)
    clinical_zone.wake("infer", job_id)
    wait_until(lambda: _state(clinical_zone, job_id) == WorkState.DONE, 120, "the job is done")
    with reading(clinical_zone.engine) as session:
        assert sorted(session.scalars(select(Result.kind))) == ["sc", "sr"]
        assert len(session.scalars(select(Delivery)).all()) == 2
        jobs = session.scalars(select(ClinicalJob.kind)).all()
        assert sorted(jobs) == ["deliver", "deliver", "infer"]
        assert session.get_one(ClinicalJob, job_id).attempts == 2
    url = node.redis_url(clinical_zone.settings, "clinical")
    wait_until(lambda: broker.backlog(url, (broker.INFERENCE_QUEUE,)) == 0, 30, "no message is left")
