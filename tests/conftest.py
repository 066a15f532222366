"""Fixtures for all tests: nodes, zones, real servers, and sockets that reach this machine only."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from pytest_socket import socket_allow_hosts

from appliance import node
from appliance.settings import Settings
from tests.appliance.servers import PostgreSQL, RedisServer, running_postgresql
from tests.longest import rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files begin first whose tests take longest."""
    items.sort(key=lambda item: rank(item.path))


def pytest_runtest_setup() -> None:
    """Allow loopback and Unix sockets, nothing else."""
    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


@pytest.fixture(scope="session")
def node_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node that was made once, to be copied: making keys and databases takes most of a second."""
    root = tmp_path_factory.mktemp("template") / "data"
    node.create_node(Settings(data_root=root))
    (root / "run").unlink() if (root / "run").is_symlink() else shutil.rmtree(root / "run")
    return root


@pytest.fixture
def make_node(tmp_path: Path, node_template: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Make nodes: ``make_node("name", dicom={"port": 0}, ...)``; ``fresh=True`` gives one keys of its own."""

    def make(name: str = "node", *, fresh: bool = False, **sections: Any) -> Settings:
        sections.setdefault("dicom", {"port": 0})
        sections.setdefault("web", {"port": 0})
        settings = Settings(name=name, data_root=tmp_path / name / "data", **sections)
        if not fresh:
            shutil.copytree(node_template, settings.data_root)
        node.create_node(settings)
        run_dir = node.run_dir(settings)
        request.addfinalizer(lambda: shutil.rmtree(run_dir, ignore_errors=True))
        return settings

    return make


@pytest.fixture
def node_settings(make_node: Callable[..., Settings]) -> Settings:
    """A node without running processes."""
    return make_node()


@pytest.fixture
def clinical_zone(node_settings: Settings) -> Iterator[node.ClinicalZone]:
    """Give the clinical zone of ``node_settings``."""
    zone = node.open_clinical(node_settings)
    yield zone
    zone.engine.dispose()


@pytest.fixture
def research_zone(node_settings: Settings) -> Iterator[node.ResearchZone]:
    """Give the research zone of ``node_settings``."""
    zone = node.open_research(node_settings)
    yield zone
    zone.engine.dispose()


@pytest.fixture
def clinical_redis(node_settings: Settings) -> Iterator[RedisServer]:
    """Run the clinical zone's embedded Redis."""
    server = RedisServer(node_settings, "clinical")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def research_redis(node_settings: Settings) -> Iterator[RedisServer]:
    """Run the research zone's embedded Redis."""
    server = RedisServer(node_settings, "research")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server for this session; mark its tests ``postgres``."""
    with running_postgresql() as server:
        yield server
