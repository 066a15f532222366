from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from appliance import ledger, meeting, node
from appliance.db.clinical import Rule
from appliance.db.engine import reading, writing
from appliance.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_node_is_closed_to_others(make_node: Callable[..., Settings]) -> None:
    settings = make_node(fresh=True)
    crossing = settings.data_root / "crossing"
    folders = [settings.data_root, *(path for path in settings.data_root.rglob("*") if path.is_dir())]
    closed = [path for path in folders if not path.is_relative_to(crossing)]
    assert {path: oct(mode(path)) for path in closed if mode(path) & 0o077} == {}
    assert {path: oct(mode(path)) for path in folders if mode(path) & 0o027} == {}


def test_one_zone_can_be_made_alone(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path / "data")
    node.create_node(settings, "research")
    assert node.open_research(settings).keys
    assert not settings.zone_root("clinical").exists()
    node.create_node(settings, "clinical")
    assert node.open_clinical(settings).keys


def test_making_a_node_again_changes_nothing(make_node: Callable[..., Settings]) -> None:
    settings = make_node()
    zone = node.open_clinical(settings)
    with writing(zone.engine) as session:
        session.delete(session.scalars(select(Rule)).one())
    node.create_node(settings)
    with reading(zone.engine) as session:
        assert session.scalars(select(Rule)).all() == []
    report = ledger.verify(zone.engine, zone.keys.signing.public_key(), node.head_path(settings, "clinical"))
    assert (report.ok, report.entries) == (True, 1)


def test_a_new_node_sends_everything_to_research_and_inference_and_nothing_out(
    clinical_zone: node.ClinicalZone,
) -> None:
    with reading(clinical_zone.engine) as session:
        rule = session.scalars(select(Rule)).one()
    assert (rule.enabled, rule.condition) == (True, {})
    assert rule.action == {"research": True, "inference": True, "destinations": [], "priority": 5}


def test_sockets_have_short_paths_however_deep_the_node_lies(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60) / "data"
    settings = Settings(data_root=deep)
    folder = node.run_dir(settings)
    assert len(os.fsencode(node.redis_socket(settings, "clinical"))) < 100
    assert folder == node.run_dir(settings)
    assert (deep / "run").resolve() == folder
    assert node.run_dir(Settings(data_root=tmp_path / ("x" * 60) / ("z" * 60) / "data")) != folder
    folder.rmdir()


def test_a_short_node_keeps_its_sockets_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_root=tmp_path / "d")
    monkeypatch.setattr(meeting, "MAX_SOCKET_PATH", 400)
    assert node.run_dir(settings) == (tmp_path / "d" / "run").resolve()


def test_the_run_folder_is_found_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_root=tmp_path / ("x" * 80) / "data")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    first = node.run_dir(settings)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run")
    assert node.run_dir(settings) == first
    first.rmdir()


def test_a_copied_node_shares_no_sockets_with_the_first(tmp_path: Path) -> None:
    first = tmp_path / ("x" * 80) / "data"
    folder = node.run_dir(Settings(data_root=first))
    copy = tmp_path / ("y" * 80) / "data"
    shutil.copytree(first, copy, symlinks=True)

    other = node.run_dir(Settings(data_root=copy))

    assert other != folder
    assert node.run_dir(Settings(data_root=copy)) == other
    assert node.run_dir(Settings(data_root=first)) == folder
    for one in (folder, other):
        one.rmdir()


def test_a_node_moved_to_a_path_too_long_for_sockets_says_what_is_in_the_way(tmp_path: Path) -> None:
    data = tmp_path / ("x" * 80) / "data"
    (data / "run").mkdir(parents=True, mode=0o700)
    with pytest.raises(node.NodeError, match="expected nothing there or a link"):
        node.run_dir(Settings(data_root=data))


def test_a_run_folder_that_somebody_else_may_enter_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path / ("x" * 80) / "data")
    folder = node.run_dir(settings)
    folder.chmod(0o777)
    with pytest.raises(node.NodeError, match="0700"):
        node.run_dir(settings)
    folder.rmdir()


def test_a_published_port_is_found_by_others(node_settings: Settings) -> None:
    with pytest.raises(node.NodeError):
        node.bound_port(node_settings, "scp", 0)
    node.publish_port(node_settings, "scp", 11112)
    assert node.bound_port(node_settings, "scp", 0) == 11112


def test_the_zones_share_neither_database_nor_broker_nor_keys(
    clinical_zone: node.ClinicalZone, research_zone: node.ResearchZone
) -> None:
    settings = clinical_zone.settings
    assert clinical_zone.engine.url != research_zone.engine.url
    assert node.redis_url(settings, "clinical") != node.redis_url(settings, "research")
    assert clinical_zone.keys.signing.public_key() != research_zone.keys.signing.public_key()
    assert clinical_zone.keys.ledger_salt != research_zone.keys.ledger_salt


def test_configured_urls_win_over_the_embedded_stores(tmp_path: Path) -> None:
    stores = {"database_url": "postgresql://db/x", "redis_url": "redis://cache/1"}
    settings = Settings(data_root=tmp_path, clinical=stores)  # type: ignore[arg-type]
    assert node.database_url(settings, "clinical") == "postgresql://db/x"
    assert node.redis_url(settings, "clinical") == "redis://cache/1"
    assert node.database_url(settings, "research").startswith("sqlite:///")
