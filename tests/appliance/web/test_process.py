"""The web process as a process: how it starts, what it loads and weighs, how it ends."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from appliance import node
from tests.appliance.web.panel_server import PanelServer, write_config
from tests.appliance.web.seed import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from appliance.settings import Settings

MAX_PSS_MIB = 150
FORBIDDEN = {
    "torch",
    "monai",
    "onnxruntime",
    "highdicom",
    "nvflare",
    "pynetdicom",
    "pydicom",
    "PIL",
    "pandas",
}


@pytest.fixture
def own_server(make_node: Callable[..., Settings], tmp_path: Path) -> Iterator[PanelServer]:
    """A web process of its own on an empty node."""
    settings = make_node("alone")
    config = write_config(settings, tmp_path / "cloister.toml")
    nothing = Seed("", (), (), (), {}, "", "", "", "", "", "", "", "", "", "")
    server = PanelServer(settings, nothing, config)
    server.start()
    yield server
    server.stop()


def test_it_weighs_little_and_ends_at_once(own_server: PanelServer) -> None:
    assert own_server.process is not None
    pss_mib = psutil.Process(own_server.process.pid).memory_full_info().pss / 2**20
    assert pss_mib < MAX_PSS_MIB
    assert own_server.stop() < 5
    assert own_server.process.returncode == 0


def test_it_ends_at_once_while_a_page_is_open(own_server: PanelServer) -> None:
    zone = node.open_clinical(own_server.settings)
    from appliance.auth import Right, users  # noqa: PLC0415 - used here only
    from appliance.db.engine import writing  # noqa: PLC0415 - as above
    from tests.appliance.web.seed import PASSWORD  # noqa: PLC0415 - as above
    from tests.appliance.web.test_sockets import _page, _socket  # noqa: PLC0415 - as above

    with writing(zone.engine) as session:
        users.add_user(session, zone.ledger, name="viewer", password=PASSWORD, rights=[Right.VIEW])
    zone.engine.dispose()
    client = own_server.client("viewer")
    with _socket(own_server, _page(client), token=own_server.token(client)) as socket:
        assert socket.accepted
        assert own_server.stop() < 5


def test_it_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "import appliance.processes.web, appliance.web.app, appliance.web.panel.live\n"
        "import appliance.research_client\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    argv = [sys.executable, "-c", program]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert loaded & FORBIDDEN == set()
    assert "nicegui" in loaded


def test_importing_the_process_module_loads_no_page_framework() -> None:
    program = "import sys, appliance.processes.web; print(*sys.modules)"
    argv = [sys.executable, "-c", program]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert loaded & {"nicegui", "fastapi", "uvicorn"} == set()
