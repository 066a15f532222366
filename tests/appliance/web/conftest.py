"""A seeded node for the whole suite, its desk in this process, and its web process."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from appliance import auth, node, research_api, research_client
from appliance.auth import Principal
from appliance.db.base import now
from appliance.db.engine import reading
from appliance.settings import load_settings
from appliance.web.desk import Desk
from tests.appliance.web.panel_server import PanelServer, write_config
from tests.appliance.web.seed import Seed, seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings


@pytest.fixture(scope="package")
def panel_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A node's settings, read from the file that its processes read, too."""
    folder = tmp_path_factory.mktemp("panel")
    blank = load_settings(_bare_config(folder))
    config = write_config(blank, folder / "cloister.toml")
    settings = load_settings(config)
    node.create_node(settings)
    yield settings
    shutil.rmtree(node.run_dir(settings), ignore_errors=True)


def _bare_config(folder: Path) -> Path:
    path = folder / "bare.toml"
    path.write_text('name = "st-anna"\n[federation]\nsite = "st-anna"\n', encoding="utf-8")
    return path


@pytest.fixture(scope="package")
def planted(panel_settings: Settings) -> Seed:
    """What lies in the node."""
    return seed(panel_settings)


@pytest.fixture(scope="package")
def research_socket(panel_settings: Settings) -> Iterator[None]:
    """Serve the research zone's questions."""
    zone = node.open_research(panel_settings)
    services = research_api.start_api(zone)
    yield
    services.stop()
    zone.engine.dispose()


@pytest.fixture(scope="package")
def desk(panel_settings: Settings, planted: Seed, research_socket: None) -> Iterator[Desk]:
    """The desk on the seeded node, for queries without a browser."""
    zone = node.open_clinical(panel_settings)
    yield Desk(panel_settings, zone, research_client.connect(panel_settings))
    zone.engine.dispose()


@pytest.fixture
def empty_desk(node_settings: Settings) -> Iterator[Desk]:
    """The desk on a node on which nothing has happened, its research zone away."""
    zone = node.open_clinical(node_settings)
    yield Desk(node_settings, zone, research_client.connect(node_settings))
    zone.engine.dispose()


@pytest.fixture(scope="package")
def viewer_of(desk: Desk) -> Callable[[str], Principal]:
    """Give the person behind a user name, without a session."""

    def find(name: str) -> Principal:
        with reading(desk.zone.engine) as session:
            user = auth.users.find_user(session, name)
        return Principal(user.id, user.name, auth.rights.parse(user.rights), now())

    return find


@pytest.fixture(scope="package")
def panel(panel_settings: Settings, planted: Seed, research_socket: None) -> Iterator[PanelServer]:
    """Run the web process on the seeded node."""
    config = panel_settings.data_root.parent / "cloister.toml"
    server = PanelServer(panel_settings, planted, config)
    server.start()
    yield server
    server.stop()
