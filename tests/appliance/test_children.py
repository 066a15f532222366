from __future__ import annotations

import json
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


# Ten arrays of 8 MiB, three times; the last one of them stays, above what was freed.
HOLDING = """
import json, os, resource
import numpy as np
from appliance.children import keep_freed_arrays, return_freed_memory
from tests.benchmarks.footprint import memory_of

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_arrays()
before, taken = memory_of(os.getpid()).anonymous, []
for _ in range(3):
    first = faults()
    held = [np.ones(2**20) for _ in range(10)]
    taken.append(faults() - first)
    last = held.pop()
    held.clear()
kept = memory_of(os.getpid()).anonymous - before
return_freed_memory()
print(json.dumps({"kept": kept, "left": memory_of(os.getpid()).anonymous - before, "faults": taken}))
"""


def test_freed_arrays_are_used_again_and_then_go_back_to_the_system() -> None:
    """A page is 4 KiB: ten arrays are 20 thousand faults where each is taken anew."""
    done = subprocess.run([sys.executable, "-c", HOLDING], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["faults"][-1] < found["faults"][0] / 4
    assert found["kept"] > 64
    assert found["left"] < 24


# A thread does it while the process goes on with something else.
AT_TIMES = """
import os, time
import numpy as np
from appliance.children import keep_freed_arrays, return_freed_memory_at_times
from tests.benchmarks.footprint import memory_of

keep_freed_arrays()
before = memory_of(os.getpid()).anonymous
held = [np.ones(2**20) for _ in range(10)]
last = held.pop()
held.clear()
assert memory_of(os.getpid()).anonymous - before > 64
return_freed_memory_at_times(0.05)
deadline = time.monotonic() + 60
while memory_of(os.getpid()).anonymous - before > 24:
    assert time.monotonic() < deadline
    time.sleep(0.02)
"""


def test_a_process_that_runs_for_ever_gives_freed_memory_back_at_times() -> None:
    subprocess.run([sys.executable, "-c", AT_TIMES], check=True, timeout=120)
