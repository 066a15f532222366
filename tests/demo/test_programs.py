"""The PACS and the workstation, as processes that speak DICOM."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from appliance.demo import pacs
from appliance.demo.cohorts import Cohort, draw_next
from appliance.demo.crew import Crew, Member
from appliance.demo.hospitals import HOSPITALS
from appliance.demo.workstation import look_at
from appliance.demo.world import json_lines
from dicom_node.scu import Destination

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.demo.cohorts import CohortStudy


def _wait(member: Member, lines: int) -> None:
    deadline = time.monotonic() + 30
    while len(member.lines()) < lines:
        member.check()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def study(tmp_path: Path) -> CohortStudy:
    return draw_next(HOSPITALS[1], 1, tmp_path / "next", 3, lesion=True)


def test_the_workstation_stores_what_the_pacs_sends_and_looks_at_it(
    tmp_path: Path, study: CohortStudy
) -> None:
    with Crew(tmp_path / "logs") as crew:
        argv = ["-m", "appliance.demo.workstation", str(tmp_path / "seen"), "--ae-title", "ROOM"]
        workstation = crew.start("workstation", argv)
        _wait(workstation, 1)
        port = json_lines(workstation)[0]["port"]
        titles = ["--calling-ae-title", "PACS", "--called-ae-title", "ROOM", "--port", str(port)]
        out = crew.run("pacs", ["-m", "appliance.demo.pacs", str(study.paths[0]), *titles], timeout_s=60)
        assert json.loads(out.splitlines()[-1]) == {"sent": 1, "failed": 0, "total": 1, "reasons": {}}
        _wait(workstation, 2)
        seen = json_lines(workstation)[1]
    assert seen["problem"] == ""
    assert seen["patient_id"] == study.patient_id
    assert seen["study_instance_uid"] == study.study_instance_uid
    assert dcmread(seen["path"]).PixelData == dcmread(study.paths[0]).PixelData


def test_the_pacs_counts_what_nobody_takes(tmp_path: Path, study: CohortStudy) -> None:
    del tmp_path
    last = list(pacs.send(study.paths, Destination("ROOM", "127.0.0.1", 1, timeout_s=2), "PACS"))[-1]
    assert (last.sent, last.failed) == (0, 1)
    assert sum(last.reasons.values()) == 1


def test_a_file_that_is_no_dicom_cannot_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(b"not DICOM at all")
    assert "cannot be read" in look_at(path).problem


def test_an_x_ray_room_writes_its_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.demo import modality  # noqa: PLC0415 - patched below

    few = tuple(dataclasses.replace(hospital, studies=3) for hospital in HOSPITALS)
    monkeypatch.setattr(modality, "HOSPITALS", few)
    assert modality.main([str(tmp_path), "--hospital", "2", "--seed", "5"]) == 0
    cohort = Cohort.read(tmp_path / "cohort.json")
    assert len(cohort.studies) == 4
    assert all(path.is_file() for study in cohort.studies for path in study.paths)


def test_importing_the_command_loads_neither_torch_nor_the_story() -> None:
    code = (
        "import sys, appliance.cli.demo;"
        "print([m for m in sys.modules if m in ('torch', 'pynetdicom', 'sqlalchemy', 'appliance.demo')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
