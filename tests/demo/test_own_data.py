from __future__ import annotations

import csv
import dataclasses
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from appliance.demo.cohorts import Cohort, draw_cohort
from appliance.demo.hospitals import HOSPITALS
from appliance.demo.own_data import MINIMUM_PATIENTS, OwnDataError, identifying_values, read_own

if TYPE_CHECKING:
    from pathlib import Path

SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("own")
    small = dataclasses.replace(HOSPITALS[0].look, rows=32, columns=32)
    hospital = dataclasses.replace(HOSPITALS[0], studies=MINIMUM_PATIENTS + 12, look=small)
    return draw_cohort(hospital, 0, folder, 11)


def test_patients_are_split_and_one_is_kept_back(own: Cohort, tmp_path: Path) -> None:
    data = own.labels_csv.parent / "studies"
    found = read_own(data, own.labels_csv, tmp_path, SITES)
    patients = [{study.patient_id for study in cohort.studies} for cohort in found.cohorts]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert found.following.patient_id not in set.union(*patients)
    assert found.following.label == 1
    assert {study.label for cohort in found.cohorts for study in cohort.studies} == {0, 1}
    assert found.label == "lung-lesion"
    assert found.modalities == ("DX",)
    assert max(map(len, patients)) - min(map(len, patients)) <= 1


def test_each_site_gets_the_label_rows_of_its_patients(own: Cohort, tmp_path: Path) -> None:
    found = read_own(own.labels_csv.parent / "studies", own.labels_csv, tmp_path, SITES)
    for cohort in found.cohorts:
        with cohort.labels_csv.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert {row["patient_id"] for row in rows} == {study.patient_id for study in cohort.studies}


def test_identifying_values_are_found_where_they_are_nested(own: Cohort) -> None:
    path = own.studies[0].paths[0]
    found = set(identifying_values(dcmread(path)))
    assert own.studies[0].patient_id in found
    assert own.studies[0].study_instance_uid in found
    assert any(value.startswith("OLD") for value in found)


def test_too_few_patients_are_refused(own: Cohort, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for study in own.studies[:3]:
        (few / study.paths[0].name).write_bytes(study.paths[0].read_bytes())
    (few / "notes.txt").write_text("no DICOM", encoding="ascii")
    with pytest.raises(OwnDataError, match="expected 30 or more"):
        read_own(few, own.labels_csv, tmp_path, SITES)
