"""The site's standing process of the federation engine.

It reads the settings and then becomes the engine (``exec``): the engine's process carries none of ours,
no database, no key, no Celery. The engine's job processes reach the research zone by its socket alone.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from appliance import logs, node
from appliance.errors import SettingsError
from appliance.federation import enginehost, policy
from appliance.federation.unixclient import FEDERATION_SOCKET
from appliance.processes import base
from appliance.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAME: Final = "federation_site"
NOT_JOINED: Final = "federation.not_joined"

_LOG = logs.logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Become the engine; return only when that is not possible: 1 before it joined, 2 for wrong settings."""
    os.umask(0o077)
    arguments = base.parse(NAME, argv)
    try:
        settings = load_settings(arguments.config)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.setup(settings.logging, NAME)
    workspace = settings.federation.workspace
    if workspace is None or not (workspace / "startup" / "fed_client.json").is_file():
        _LOG.error(NOT_JOINED)
        return 1
    command = engine_command(settings, workspace, arguments.parent)
    environment = {**os.environ, policy.SOCKET_VARIABLE: str(node.run_dir(settings) / FEDERATION_SOCKET)}
    return _become(command, environment)


def _become(command: list[str], environment: dict[str, str]) -> int:
    os.execve(command[0], command, environment)  # noqa: S606 - fixed argv, no shell
    raise AssertionError  # execve does not return


def engine_command(settings: Settings, workspace: Path, parent: int | None) -> list[str]:
    """Return the engine's command line for this site."""
    health = node.run_dir(settings) / "health"
    health.mkdir(mode=0o700, exist_ok=True)
    command = enginehost.command("site", workspace, settings.federation.site)
    command += ["--beat", str(health / f"{NAME}.json")]
    return command if parent is None else [*command, "--parent", str(parent)]


if __name__ == "__main__":
    sys.exit(main())
