"""``cloister deidentify`` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from tests.anonymizer.material import ct, encode

if TYPE_CHECKING:
    from pathlib import Path


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance.cli", "deidentify", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "DOE^JOHN"
    (source / "sub").mkdir(parents=True)
    (source / "a.dcm").write_bytes(encode(ct()))
    second = ct(patient_id="MRN-0815-Y")
    second.SOPInstanceUID = "1.3.6.1.4.1.99999.7.44"
    (source / "sub" / "b").write_bytes(encode(second))
    (source / "c.dcm").write_bytes(encode(ct(patient_id="UNKNOWN")))
    (source / "notes.txt").write_text("no DICOM")
    return source


def test_a_folder_comes_out_under_new_names_with_a_report(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = _run(folder, out, "--json", "--key-file", tmp_path / "key")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["released"] == 2
    assert sorted(each["reason_code"] for each in report["quarantined"]) == [
        "not_dicom",
        "unusable_patient_id",
    ]
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert len(files) == 2
    for path in files:
        ds = dcmread(path)
        assert path.relative_to(out).parts == (
            ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID, f"{ds.SOPInstanceUID}.dcm",
        )  # fmt: skip


def test_the_same_key_file_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    outcomes = []
    for name in ("one", "two"):
        assert _run(folder, tmp_path / name, "--key-file", tmp_path / "key").returncode == 0
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        outcomes.append([(path.name, path.read_bytes()) for path in files])
    assert outcomes[0] == outcomes[1]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_file_goes_to_the_file_that_is_named(folder: Path, tmp_path: Path) -> None:
    run = _run(folder / "a.dcm", tmp_path / "x.dcm")
    assert run.returncode == 0, run.stderr
    assert dcmread(tmp_path / "x.dcm").PatientIdentityRemoved == "YES"


def test_nothing_released_is_a_failure(folder: Path, tmp_path: Path) -> None:
    run = _run(folder / "c.dcm", tmp_path / "x.dcm")
    assert run.returncode == 1
    assert "unusable_patient_id" in run.stdout
    assert not (tmp_path / "x.dcm").exists()


def test_wrong_use_is_said_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    for arguments in (
        (folder, folder / "out"),
        (folder, folder / "a.dcm"),
        (tmp_path / "missing", tmp_path / "out"),
        (folder, tmp_path / "out", "--key-file", tmp_path / "short"),
        (folder, tmp_path / "out", "--max-date-shift-days", "0"),
    ):
        assert _run(*arguments).returncode == 2
    assert not (tmp_path / "out").exists()
    assert not (folder / "out").exists()
