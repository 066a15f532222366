"""The federation's benchmark runs on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.further import FURTHER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@FURTHER
def test_the_benchmark_measures_both_federations_and_the_coordinator(tmp_path: Path) -> None:
    parts = ["--parts", "beside,many"]  # the long one runs the same for longer
    options = [*parts, "--sizes", "0.1", "--rounds", "2", "--counts", "2,3", "--counts-size", "0.1"]
    command = [sys.executable, "-m", "appliance.cli", "bench", "federation", *options]
    subprocess.run([*command, "--json", str(tmp_path / "figures.json")], check=True, timeout=880)

    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["ok"]
    compared = figures["million_parameters"]["0.1"]
    model_mib = compared["model_mib"]
    for side in ("cloister", "engine"):
        assert compared[side]["rounds"] == 2
        assert compared[side]["seconds_per_round"] > compared[side]["seconds_per_round_beyond_training"] > 0
        for direction in ("sent", "received"):
            assert 0 < compared[side][f"mib_{direction}_per_round_and_site"] < 3 * model_mib  # of one round
    assert {"research_agent", "research_worker child", "site engine job", "coordinator engine job"} <= set(
        compared["cloister"]["peak_mib_of_a_process"]
    )
    assert set(figures["many"]["sites"]) == {"2", "3"}
