"""A node whose zones run as users of their own, laid out as ``deploy/systemd`` lays it out.

The tests' interpreter and its libraries may lie where no other user can read them, so each program runs in a
mount namespace of its own in which they, and this project, are bound under ``/mnt``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
TMPFILES: Final = ROOT / "deploy" / "systemd" / "cloister.tmpfiles"
IDS: Final = {"root": 0, "cloister-crossing": 52000, "cloister-clinical": 52001, "cloister-research": 52002}
ZONES: Final = ("clinical", "research")
_ENTER: Final = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/site /mnt/cloister
mount --bind "$1" /mnt/python
mount --bind "$2" /mnt/site
mount --bind "$3" /mnt/cloister
user=$4 group=$5
shift 5
umask 027
exec setpriv --reuid "$user" --regid "$user" --groups "$group" --no-new-privs -- "$@"
"""


@dataclass(frozen=True)
class Installation:
    """Where everything lies; ``data`` stands for ``/var/lib/cloister``."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "etc" / "cloister.toml"

    def argv(self, zone: str, *words: str) -> list[str]:
        """Return the command line of a Python program as the user of a zone."""
        places = (sys.base_prefix, sysconfig.get_paths()["purelib"], str(ROOT))
        ids = (str(IDS[f"cloister-{zone}"]), str(IDS["cloister-crossing"]))
        python = f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        return ["unshare", "--mount", "sh", "-c", _ENTER, "enter", *places, *ids, python, "-B", *words]

    def environment(self, zone: str) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.data / zone),
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": "/mnt/python/lib",
            "PYTHONHOME": "/mnt/python",
            "PYTHONPATH": "/mnt/cloister:/mnt/site",
            "CLOISTER_CONFIG": str(self.config),
        }

    def start(self, zone: str) -> subprocess.Popen[bytes]:
        """Start one zone's processes as its user, as its unit does."""
        argv = self.argv(zone, "-m", "appliance.cli", "up", "--zone", zone)
        log = (self.folder / f"{zone}.log").open("ab")
        with log:
            return subprocess.Popen(argv, env=self.environment(zone), stderr=log, start_new_session=True)

    def run(self, zone: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a Python program as the user of a zone to its end."""
        return subprocess.run(
            self.argv(zone, *words),
            env=self.environment(zone),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def cloister(self, zone: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the product as the user of a zone."""
        return self.run(zone, "-m", "appliance.cli", *words, text=text)


@contextmanager
def installation(config: str) -> Iterator[Installation]:
    """Lay out an installation whose folders belong to whom ``cloister.tmpfiles`` says."""
    if os.geteuid() != 0:
        pytest.skip("switching users needs root")
    found = Installation(Path(tempfile.mkdtemp(prefix="cloister-users-", dir="/tmp")))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, found.folder, ignore_errors=True)
        found.folder.chmod(0o755)
        for line in TMPFILES.read_text(encoding="utf-8").splitlines():
            if line.startswith("d /var/lib/cloister"):
                _, place, mode, user, group, _ = line.split()
                _make(Path(place.replace("/var/lib/cloister", str(found.data))), int(mode, 8), user, group)
        found.config.parent.mkdir()
        found.config.write_text(f'data_root = "{found.data}"\n{config}', encoding="utf-8")
        found.config.chmod(0o644)
        yield found


def _make(path: Path, mode: int, user: str, group: str) -> None:
    """Make a folder as systemd-tmpfiles would."""
    path.mkdir()
    os.chown(path, IDS[user], IDS[group])
    path.chmod(mode)
