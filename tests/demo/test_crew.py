import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.demo.crew import Crew, CrewError
from appliance.demo.proc import PeakMemory, descendants, pss_kib

GRANDCHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
"""


def _wait_line(member_out: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = member_out.read_text(encoding="utf-8")
        if text.endswith("\n"):
            return text.strip()
        time.sleep(0.02)
    raise AssertionError("no line in time")


def test_an_orphan_of_a_dead_child_is_killed_too(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        member = crew.start("parent", ["-c", GRANDCHILD])
        grandchild = int(_wait_line(member.out))
        member.process.wait(timeout=10)
        assert grandchild in descendants()
        started = time.monotonic()
        killed = crew.stop()
        assert time.monotonic() - started < 10
        assert killed
    assert not Path(f"/proc/{grandchild}").exists()


def test_a_child_that_ignores_the_signal_is_killed_in_time(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(1, flush=True); time.sleep(600)"
    )
    started = time.monotonic()
    with Crew(tmp_path) as crew:
        member = crew.start("stubborn", ["-c", stubborn])
        _wait_line(member.out)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert member.process.poll() is not None


def test_a_failed_program_names_its_log(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew, pytest.raises(CrewError, match=r"broken ended with 3.*broken\.log"):
        crew.run("broken", ["-c", "import sys; sys.exit(3)"], timeout_s=20)


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew, pytest.raises(CrewError, match="not done after"):
        crew.run("hangs", ["-c", "import time; time.sleep(600)"], timeout_s=1)


def test_the_peak_counts_children() -> None:
    argv = [sys.executable, "-c", "x = bytearray(b'1') * (80 << 20); print(1, flush=True); input()"]
    alone = pss_kib(os.getpid()) / 1024
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory = PeakMemory()
        memory.look()
        assert memory.peak_mib > alone + 70
        assert memory.processes >= 2
        child.kill()
