from __future__ import annotations

import subprocess
import sys

# Two children of a shell that ends before them come back to this process; one is its own.
PROGRAM = """
import os, subprocess, time
from appliance.children import adopt_orphans, children_of, collect_orphans
adopt_orphans()
own = subprocess.Popen(["/bin/sleep", "600"])
subprocess.run(["/bin/sh", "-c", "sleep 0.1 & sleep 600 &"], check=True)
deadline = time.monotonic() + 60
while len(children_of(os.getpid())) != 2:
    collect_orphans((own.pid,))
    assert time.monotonic() < deadline, children_of(os.getpid())
    time.sleep(0.02)
own.kill()
time.sleep(0.2)
collect_orphans((own.pid,))
for pid in children_of(os.getpid()):
    if pid != own.pid:
        os.kill(pid, 9)
print(own.wait())
"""


def test_orphans_that_ended_are_collected_and_own_children_keep_their_exit_code() -> None:
    """What still runs stays, and the own child's code is there when it is asked for."""
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["-9"]


# Ten arrays of 8 MiB, twice; the last one of them stays, above what was freed.
HOLDING = """
import numpy as np
from appliance.children import return_large_arrays
from tests.benchmarks.footprint import memory_of
import os
return_large_arrays()
before = memory_of(os.getpid()).anonymous
for _ in range(2):
    held = [np.ones(2**20) for _ in range(10)]
    last = held.pop()
    held.clear()
print(memory_of(os.getpid()).anonymous - before)
"""


def test_freed_arrays_go_back_to_the_system() -> None:
    """Left alone, the C library keeps all ten."""
    done = subprocess.run([sys.executable, "-c", HOLDING], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 24
