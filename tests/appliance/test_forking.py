from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from appliance import forking

def write_to_a_caller_who_hung_up():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.write(writer, b"answer")
    except BrokenPipeError:
        return
    raise SystemExit(9)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
print(forking.run_in_child(write_to_a_caller_who_hung_up, "probe"))
print(forking.run_in_child(lambda: None if signal.getsignal(signal.SIGTERM) == 0 else os.abort(), "probe"))
"""


def test_a_caller_that_hangs_up_does_not_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.split(), done.stderr) == (["0", "0"], "")
