from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.trainer.samples import dicom_picture, picture, write_case
from trainer.errors import DatasetError, LabelFileError
from trainer.folders import read_site_folder

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, patient_id: str, study: str, issuer: str = "") -> None:
    ds = dicom_picture(picture(np.random.default_rng(0), 0), patient_id, StudyInstanceUID=study)
    if issuer:
        ds.IssuerOfPatientID = issuer
    write_case(folder, ds, 0)


def test_instances_join_labels_of_their_study_before_those_of_their_patient(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "P1", "1.2.1")
    write(tmp_path / "deep", "P1", "1.2.2")
    write(tmp_path, "P2", "1.2.3", issuer="A")
    write(tmp_path, "P3", "1.2.4")
    write(tmp_path, "", "1.2.5")
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "labels.csv").write_text(
        "patient_id,issuer,study_instance_uid,label,value\n"
        "P1,,,blob,0\nP1,,1.2.2,blob,1\nP2,A,,blob,1\nP2,B,,blob,0\nP3,,,other,1\nP4,,,blob,7\n"
    )
    found = read_site_folder(tmp_path, "blob")
    assert sorted(case.label for case in found.cases) == [0, 1, 1]
    assert len({case.pseudonym for case in found.cases}) == 2
    assert found.skipped == {"unlabelled": 2, "unreadable": 1}
    assert [problem.code for problem in found.problems] == ["bad_value"]


def test_a_missing_folder_or_label_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        read_site_folder(tmp_path / "none", "blob")
    with pytest.raises(LabelFileError):
        read_site_folder(tmp_path, "blob")
