"""Real peers of the end-to-end tests: DCMTK's programs and a quiet terminal."""

from __future__ import annotations

import io
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from appliance.demo.screen import Screen
from tests.dicom_node.support import DCMTK, free_port, kill_group, listening, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def running_storescp(folder: Path) -> Iterator[int]:
    """Run DCMTK's ``storescp``, writing what it gets into a folder; give its port."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [program(DCMTK / "storescp"), "-od", str(folder), "-aet", "READINGROOM", str(port)]
    child = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: listening(port), "storescp listens")
        yield port
    finally:
        kill_group(child)


def dcmsend(paths: Sequence[Path], calling: str, called: str, port: int) -> str:
    """Send files with DCMTK's ``dcmsend``, each in the transfer syntax it has; return its report."""
    command = [program(DCMTK / "dcmsend"), "-v", "-aet", calling, "-aec", called, "--decompress-never"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def storescu(paths: Sequence[Path], calling: str, called: str, port: int) -> None:
    """Send files with DCMTK's ``storescu``."""
    command = [program(DCMTK / "storescu"), "-aet", calling, "-aec", called, "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def quiet_screen() -> Screen:
    """Give a screen that nobody sees."""
    return Screen(Console(file=io.StringIO(), width=200))
