"""``cloister demo --data``: the user's own studies, here real chest X-rays of two hospitals."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cxr import write_labels, write_studies
from tests.further import FURTHER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.real_data, pytest.mark.timeout(900)]


@FURTHER
def test_the_story_runs_on_own_studies_without_pooling_them(tmp_path: Path) -> None:
    data = tmp_path / "own"
    studies = write_studies("nih", data / "nih", 60) + write_studies("guangzhou", data / "guangzhou", 40)
    (data / "notes.txt").write_text("no DICOM", encoding="ascii")
    write_labels(tmp_path / "labels.csv", studies, "pneumonia")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "appliance.cli", "demo", "--once", "--folder", str(tmp_path / "all")]
    options = ["--data", data, "--labels", tmp_path / "labels.csv", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        [*command, *map(str, options)], capture_output=True, text=True, check=False, timeout=840
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["instances_sent"] == figures["instances_received"]
    assert figures["studies_deidentified"] == figures["studies_assembled"] >= 95
    assert figures["pooled_auc"] is None
    assert figures["margin_required"] is None
    assert set(figures["margins"]) == set(figures["local_auc_per_site"])
    assert figures["identifiers_leaked"] == 0
    assert figures["identifiers_searched"] > 500
    assert figures["results_delivered"] == 2
    assert figures["ledger_ok"]
    assert {path: path.read_bytes() for path in before} == before
