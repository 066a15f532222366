import csv
import dataclasses
import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.demo.cohorts import Cohort, draw_cohort, draw_next
from appliance.demo.hospitals import HOSPITALS
from appliance.demo.leaks import LeakSearch

DCIODVFY = Path("/usr/bin/dciodvfy")


def _cohort(folder: Path, index: int, studies: int = 6, seed: int = 7) -> Cohort:
    return draw_cohort(dataclasses.replace(HOSPITALS[index], studies=studies), index, folder, seed)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        cohort = _cohort(tmp_path / name, 1)
        digests.append([hashlib.sha256(study.paths[0].read_bytes()).hexdigest() for study in cohort.studies])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0])


@pytest.mark.parametrize("index", range(3))
def test_every_planted_value_stands_in_the_instances(tmp_path: Path, index: int) -> None:
    cohort = _cohort(tmp_path, index)
    search = LeakSearch(cohort.planted)
    leaks, files, _ = search.files([tmp_path / "studies"])
    assert files == len(cohort.studies)
    found = {search.values[leak.value] for leak in leaks}
    unusable = [study.patient_id for study in cohort.studies if not study.releasable]
    assert found >= cohort.planted - set(unusable) - {_former_id(cohort)}


def _former_id(cohort: Cohort) -> str:
    """The person with the unusable patient ID had an ID, which stands nowhere."""
    all_ids = {str(dcmread(study.paths[0]).PatientID) for study in cohort.studies}
    return next(v for v in cohort.planted if re.fullmatch(r"[A-Z]{3}-\d{10}", v) and v not in all_ids)


@pytest.mark.parametrize("index", range(3))
def test_labels_match_the_drawn_lesions_and_two_rows_are_wrong(tmp_path: Path, index: int) -> None:
    cohort = _cohort(tmp_path, index)
    with cohort.labels_csv.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labelled = {study.study_instance_uid: study.label for study in cohort.studies if study.label is not None}
    good = [row for row in rows if row["value"] in "01" and row["study_instance_uid"] in labelled]
    assert {row["study_instance_uid"]: int(row["value"]) for row in good} == labelled
    assert len(rows) - len(good) == cohort.label_rows_wrong == 2
    assert sum(not study.releasable for study in cohort.studies) == 1


@pytest.mark.dicom3tools
@pytest.mark.parametrize("index", range(3))
def test_instances_are_valid_digital_x_rays(tmp_path: Path, index: int) -> None:
    cohort = _cohort(tmp_path, index, studies=2)
    after = draw_next(HOSPITALS[index], index, tmp_path / "next", 7, lesion=True)
    for study in (*(s for s in cohort.studies if s.releasable), after):
        done = subprocess.run([DCIODVFY, "-new", study.paths[0]], capture_output=True, check=False)
        text = done.stderr.decode("utf-8", "replace")
        assert "DXImageForPresentation" in text
        assert "Error" not in text, text


def test_the_next_patient_is_not_in_the_cohort(tmp_path: Path) -> None:
    cohort = _cohort(tmp_path / "cohort", 0)
    after = draw_next(HOSPITALS[0], 0, tmp_path / "next", 7, lesion=True)
    assert after.patient_id not in {study.patient_id for study in cohort.studies}
    assert after.study_instance_uid not in cohort.planted
