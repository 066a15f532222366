from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from appliance import health, node, work
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob
from appliance.db.engine import writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.settings import Settings
    from tests.appliance.servers import RedisServer


def wrong(settings: Settings) -> dict[str, health.Check]:
    found = health.overall(settings)
    assert found.well == all(check.ok for check in found.checks)
    return {check.name: check for check in found.checks if not check.ok}


def beat_all(settings: Settings) -> None:
    for name in health.processes(settings):
        health.beat(settings, name, {"n": 1})


def test_a_node_with_living_processes_and_stores_is_well(
    node_settings: Settings, clinical_redis: RedisServer, research_redis: RedisServer
) -> None:
    beat_all(node_settings)
    assert wrong(node_settings) == {}


def test_what_is_away_is_named_with_a_fix(node_settings: Settings) -> None:
    found = wrong(node_settings)
    assert {"process scp", "process web", "clinical redis", "research redis"} <= set(found)
    assert all(check.fix for check in found.values())


def test_a_process_that_fell_silent_is_named(node_settings: Settings) -> None:
    beat_all(node_settings)
    path = node.run_dir(node_settings) / "health" / "indexer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "at": time.time() - 60}))
    assert "no sign of life" in wrong(node_settings)["process indexer"].detail


def test_a_beat_of_a_process_that_has_ended_counts_nothing(node_settings: Settings) -> None:
    beat_all(node_settings)
    path = node.run_dir(node_settings) / "health" / "indexer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "started": "1"}))
    assert wrong(node_settings)["process indexer"].detail == "not running"


def test_a_damaged_beat_is_no_beat(node_settings: Settings) -> None:
    beat_all(node_settings)
    (node.run_dir(node_settings) / "health" / "indexer.json").write_text("{")
    assert health.last_beat(node_settings, "indexer") is None
    assert "process indexer" in wrong(node_settings)


def test_a_beat_holds_who_when_and_what(node_settings: Settings) -> None:
    health.beat(node_settings, "scp", {"associations": 2})
    found = health.last_beat(node_settings, "scp")
    assert found is not None
    assert (found.pid, found.detail, found.gone) == (os.getpid(), {"associations": 2}, False)
    assert found.age_s < 5


def test_bundles_that_research_refuses_are_shown(node_settings: Settings) -> None:
    health.beat(node_settings, "research_agent", {health.REFUSED_BUNDLES: 2})
    check = wrong(node_settings)["crossing"]
    assert check.detail == "2 bundles refused"
    assert "research_agent" in check.fix
    health.beat(node_settings, "research_agent", {health.REFUSED_BUNDLES: 0})
    assert "crossing" not in wrong(node_settings)


def test_dead_work_is_shown(clinical_zone: node.ClinicalZone) -> None:
    with writing(clinical_zone.engine) as session:
        work.enqueue(session, ClinicalJob, "infer", "a" * 32, "k")
        session.execute(update(ClinicalJob).values(state=WorkState.DEAD))
    check = wrong(clinical_zone.settings)["clinical jobs"]
    assert check.detail == "1 dead"
    assert not health.Health(well=False, checks=[check]).well
    assert health.Health(well=False, checks=[check]).ready, "the node does its other work"


def test_too_little_space_is_named_before_studies_are_refused(make_node: Callable[..., Settings]) -> None:
    settings = make_node(dicom={"port": 0, "pause_training_below_mib": 2**40})
    assert wrong(settings)["disk"].detail.endswith("MiB free: training is paused")


def test_that_instances_are_refused_for_want_of_space_is_named(make_node: Callable[..., Settings]) -> None:
    settings = make_node(dicom={"port": 0, "min_free_mib": 2**40})
    assert "instances are refused (0xA700)" in wrong(settings)["disk"].detail


def test_a_database_that_is_away_is_named(node_settings: Settings) -> None:
    (node_settings.zone_root("clinical") / "clinical.db").unlink()
    assert "clinical database" in wrong(node_settings)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_zone_that_is_closed_to_this_user_is_not_looked_at(node_settings: Settings) -> None:
    os.chown(node_settings.zone_root("research"), 65_001, 65_001)
    for folder in (node_settings.data_root, *node_settings.data_root.parents):
        if str(folder).startswith("/tmp/pytest"):  # noqa: S108 - pytest's folders
            folder.chmod(0o711)
    pid = os.fork()
    if pid == 0:
        os.setgid(65_001)
        os.setuid(65_001)
        os._exit(0 if health.open_zones(node_settings) == ("research",) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert health.open_zones(node_settings) == ("clinical", "research")


def test_only_what_is_configured_runs(make_node: Callable[..., Settings]) -> None:
    settings = make_node(
        clinical={"redis_url": "redis://127.0.0.1:1/0"}, inference={"enabled": False}, web={"enabled": False}
    )
    assert health.processes(settings, "clinical") == (
        "scp",
        "indexer",
        "clinical_worker",
        "fetch_worker",
    )
    assert health.processes(settings, "research") == ("research_redis", "research_agent", "research_worker")
    assert set(health.processes(settings)) == {
        *health.processes(settings, "clinical"),
        *health.processes(settings, "research"),
    }
