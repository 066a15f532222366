"""``cloister deidentify`` as a process of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from anonymizer.batch.journal import FOLDER
from anonymizer.profiles import load_profile
from tests.anonymizer.batch.scene import command, tree
from tests.anonymizer.material import ct, encode

if TYPE_CHECKING:
    from pathlib import Path

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
    out, path = tmp_path / "out", tmp_path / "report.json"
    run = command(folder, out, "--json", "--key-file", tmp_path / "key", "--report", path, "--jobs", 2)
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert json.loads(path.read_text()) == report
    assert path.stat().st_mode & 0o777 == 0o600
    assert report["counts"] == {"released": 2, "duplicate": 0, "quarantined": 1, "failed": 0, "skipped": 1}
    assert report["reasons"] == {"not_dicom": 1, "unusable_patient_id": 1}
    assert report["profile"]["hash"] == load_profile().hash
    files = tree(out)
    assert {each["output"] for each in report["files"] if each["output"]} == set(files)
    for name in files:
        ds = dcmread(out / name)
        assert name == "/".join(
            (ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID, f"{ds.SOPInstanceUID}.dcm")
        )


def test_what_is_no_dicom_is_counted_apart_and_no_failure(folder: Path, tmp_path: Path) -> None:
    (folder / "c.dcm").unlink()
    run = command(folder, tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "notes.txt: skipped: not_dicom" in run.stdout
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty", tmp_path / "nothing").returncode == 1


def test_the_same_key_file_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert command(folder, tmp_path / name, "--key-file", tmp_path / "key").returncode == 1
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 2
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_the_profile_is_the_one_that_is_named(folder: Path, tmp_path: Path) -> None:
    custom = tmp_path / "own.toml"
    custom.write_text('name = "own"\nextends = "basic"\n')
    for profile, name in (("longitudinal", "longitudinal"), (custom, "own")):
        target = tmp_path / f"{name}.dcm"
        assert command(folder / "a.dcm", target, "--profile", profile).returncode == 0
        ds = dcmread(target)
        assert ds.DeidentificationMethod[1:] == [load_profile(profile).hash, f"profile {name}"]
    unknown = command(folder / "a.dcm", tmp_path / "x.dcm", "--profile", "none-such")
    assert unknown.returncode == 2
    assert "research-default" in unknown.stderr


def test_a_file_goes_to_the_file_that_is_named(folder: Path, tmp_path: Path) -> None:
    run = command(folder / "a.dcm", tmp_path / "x.dcm")
    assert run.returncode == 0, run.stderr
    assert dcmread(tmp_path / "x.dcm").PatientIdentityRemoved == "YES"
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "x.dcm"]


def test_nothing_released_is_a_failure(folder: Path, tmp_path: Path) -> None:
    run = command(folder / "c.dcm", tmp_path / "x.dcm")
    assert run.returncode == 1
    assert "unusable_patient_id" in run.stdout
    assert not (tmp_path / "x.dcm").exists()


def test_paths_can_be_named_by_hashes(folder: Path, tmp_path: Path) -> None:
    (folder / "ROE^JANE\x1b[2J").write_bytes(b"no DICOM")
    plain = command(folder, tmp_path / "plain", "--key-file", tmp_path / "key")
    assert "ROE^JANE\\x1b[2J: skipped" in plain.stdout
    path = tmp_path / "r.json"
    arguments = (folder, tmp_path / "out", "--hash-paths", "--report", path, "--key-file", tmp_path / "key")
    run = command(*arguments)
    record = (tmp_path / "out" / FOLDER / "journal.jsonl").read_text()
    for said in (run.stdout, run.stderr, path.read_text(), record):
        assert not any(name in said for name in ("a.dcm", "sub", "notes", "ROE", "DOE"))
    report = json.loads(path.read_text())
    assert len({each["source"] for each in report["files"]}) == 5
    assert all(each["source"] in record for each in report["files"] if each["output"])


def test_wrong_use_is_said_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for arguments in (
        (folder, folder / "out"),
        (folder, folder / "a.dcm"),
        (folder, tmp_path),
        (folder, tmp_path / "file"),
        (tmp_path / "missing", tmp_path / "out"),
        (folder, tmp_path / "out", "--key-file", tmp_path / "short"),
        (folder, tmp_path / "out", "--key-file", tmp_path / "out" / "key"),
        (folder, tmp_path / "out", "--max-date-shift-days", "0"),
        (folder, tmp_path / "out", "--jobs", "0"),
        (folder, tmp_path / "out", "--report", folder / "r.json"),
        (folder, tmp_path / "out", "--report", tmp_path / "missing" / "r.json"),
    ):
        run = command(*arguments)
        assert run.returncode == 2
        assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
    assert not (folder / "out").exists()


def test_another_profile_on_the_same_out_is_refused_with_advice(folder: Path, tmp_path: Path) -> None:
    key = ("--key-file", tmp_path / "key")
    assert command(folder, tmp_path / "out", *key).returncode == 1
    run = command(folder, tmp_path / "out", *key, "--profile", "basic")
    assert run.returncode == 2
    assert "other parameters (profile); expected the same ones, or another OUT" in run.stderr
    run = command(folder, tmp_path / "out")
    assert run.returncode == 2
    assert "expected --key-file from the first run on" in run.stderr
