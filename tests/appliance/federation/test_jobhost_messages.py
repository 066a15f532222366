"""What no engine can read does not end the coordinator's job, over the engine's real cells and TCP."""

from __future__ import annotations

import subprocess
import sys

from tests.appliance.federation import probe_messages


def probe(*options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.appliance.federation.probe_messages", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_an_update_that_is_no_message_leaves_the_job_answering_honest_ones() -> None:
    ended = probe()
    assert '{"honest": 1}' in ended.stdout.splitlines()
    assert ended.returncode == 0


def test_the_engine_by_itself_ends_the_job() -> None:
    ended = probe(probe_messages.ENGINE)
    assert "failed to decode streamed submit_update" in ended.stderr + ended.stdout
    assert ended.returncode == 1
