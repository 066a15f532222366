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
