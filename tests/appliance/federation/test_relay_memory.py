"""What passes the coordinator between peers takes no more memory the more sites there are."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.further import cases


def models_in_memory(name: str, sites: int) -> float:
    argv = [sys.executable, "-m", "tests.appliance.federation.probe_relay", name, str(sites)]
    return float(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))


@pytest.mark.parametrize("name", cases(["dfedavgm", "braintorrent", "swarm"], ["dfedavgm"]))
def test_what_is_handed_on_is_read_from_the_disk_however_many_sites_there_are(name: str) -> None:
    two, six = models_in_memory(name, 2), models_in_memory(name, 6)

    assert six < 1.5 * two, f"models in memory: {two:.1f} for two sites, {six:.1f} for six"
