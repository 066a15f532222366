"""Where a node's processes meet: the folder of sockets, ports and signs of life.

It imports little, so that a command which only asks a running process starts at once.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.settings import Settings

MAX_SOCKET_PATH: Final = 99  # bytes; sun_path holds 108, some systems less
_LONGEST_SOCKET_NAME: Final = "clinical_redis.sock"
RESEARCH_SOCKET: Final = "research.sock"


class NodeError(ApplianceError):
    """The node's folders are not what they must be."""


def run_dir(settings: Settings) -> Path:
    """Return the folder of sockets, ports and health files (0700), making it at need.

    It is ``run`` in ``data_root``, or in the zone's root where each zone is a user of its own. Where that is
    too long for a Unix socket, it is a link to a short folder of our own under the machine's temporary
    folder, so that every process finds the same one. A node that was copied or moved makes its own anew.

    Raises
    ------
    NodeError
        If a folder lies where the link has to be, or the folder is not ours alone.
    """
    link = _run_parent(settings) / "run"
    if len(os.fsencode(link / _LONGEST_SOCKET_NAME)) <= MAX_SOCKET_PATH:
        link.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _checked(link)
    own = _short_folder(link)
    target = _linked(link, own) or own
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not link.is_symlink():
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            link.symlink_to(target, target_is_directory=True)
        except FileExistsError:
            return run_dir(settings)
    return _checked(target)


def _linked(link: Path, own: Path) -> Path | None:
    """Return where the link leads, unless it is that of the node that this one was copied from."""
    if link.is_symlink():
        target = link.readlink()
        if target.name == own.name:
            return target
        link.unlink(missing_ok=True)
    elif link.exists():
        raise NodeError(
            f"{link}: a folder, but this path is too long for sockets; expected nothing there or a link. "
            "Remove it while nothing of this node runs."
        )
    return None


def zones_apart(settings: Settings) -> bool:
    """Whether each zone runs as a user of its own: then none of them may write to ``data_root`` itself."""
    return settings.data_root.is_dir() and not os.access(settings.data_root, os.W_OK)


def _run_parent(settings: Settings) -> Path:
    if not zones_apart(settings):
        return settings.data_root.resolve()
    for root in (settings.zone_root("clinical"), settings.zone_root("research")):
        if os.access(root, os.W_OK | os.X_OK):
            return root.resolve()
    raise NodeError(f"{settings.data_root}: this user may write to neither zone of the node")


def research_socket(settings: Settings) -> Path:
    """Return the socket on which the research zone answers the panel and the commands.

    Where the zones are apart it lies in the crossing: of the other zone's sockets it is the only one that the
    clinical zone may open, and no identity passes through it.
    """
    folder = settings.crossing_in if zones_apart(settings) else run_dir(settings)
    return folder / RESEARCH_SOCKET


def _short_folder(link: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(link)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > 50:
        base = Path("/tmp")  # noqa: S108 - owner and mode of the folder below are checked
    return base / f"cloister-{os.getuid()}-{digest}"


def _checked(folder: Path) -> Path:
    """Refuse a folder that somebody else prepared for us."""
    status = folder.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise NodeError(f"{folder}: expected a folder of this user with mode 0700")
    return folder


def publish_port(settings: Settings, name: str, port: int) -> None:
    """Tell other processes of the node on which port a listener of this one ended up."""
    folder = run_dir(settings) / "ports"
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.write_text(str(port), encoding="ascii")
    temporary.replace(folder / name)


def bound_port(settings: Settings, name: str, wait_s: float) -> int:
    """Return the port that a process published, waiting for it.

    Raises
    ------
    NodeError
        If it was not published in time.
    """
    path = run_dir(settings) / "ports" / name
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            if time.monotonic() >= deadline:
                raise NodeError(
                    f"no port of {name!r} after {wait_s} s; expected its process to run"
                ) from None
        time.sleep(0.05)
