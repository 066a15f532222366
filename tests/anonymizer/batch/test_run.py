"""What becomes of the files of a folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydicom import Dataset, Sequence
from pydicom.uid import MediaStorageDirectoryStorage

from anonymizer.batch.journal import FOLDER, RefusedRunError
from anonymizer.batch.run import deidentify_tree
from anonymizer.profiles import load_profile
from tests.anonymizer.batch.scene import filled, instance, outcomes, run, tree, unfinished
from tests.anonymizer.material import DEFAULT, OTHER, ct, encode, item
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_of_two_instances_with_one_uid_the_first_comes_out_and_an_equal_one_counts_once(
    tmp_path: Path,
) -> None:
    source = filled(tmp_path / "in", 3)
    shutil.copy(source / "P0" / "000", source / "P0" / "001-copy")
    other = ct("MRN-8150-X")
    other.SOPInstanceUID, other.KVP = "1.3.6.1.4.1.99999.7.100.0", "80"
    (source / "P1" / "0-other").write_bytes(encode(other))
    reports = [run(source, tmp_path / f"out{jobs}", jobs=jobs) for jobs in (1, 3)]
    assert outcomes(reports[0]) == {
        "P0/000": "released",
        "P0/001-copy": "same_instance",
        "P0/002": "released",
        "P1/0-other": "same_sop_instance_uid",
        "P1/001": "released",
    }
    assert reports[0].files == reports[1].files
    assert tree(tmp_path / "out1") == tree(tmp_path / "out3")
    assert len(tree(tmp_path / "out1")) == 3
    assert not reports[0].succeeded
    assert unfinished(tmp_path) == []


def test_a_second_run_does_nothing_again_but_what_is_missing(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 4), tmp_path / "out"
    (source / "P0" / "unusable").write_bytes(instance(9, patient_id="UNKNOWN"))
    first = run(source, target)
    made = {path: path.stat().st_ino for path in target.rglob("*.dcm")}
    before = tree(target)
    lost = sorted(made)[1]
    lost.unlink()
    os.utime(source / "P1" / "001", ns=(1, 1))
    (source / "P1" / "later").write_bytes(instance(7, patient_id="MRN-8151-X"))
    second = run(source, target)
    assert [entry for entry in second.files if entry.source != "P1/later"] == list(first.files)
    assert outcomes(second)["P1/later"] == "released"
    after = tree(target)
    assert {name: after[name] for name in before} == before
    assert len(after) == 5
    assert all(path.stat().st_ino == number for path, number in made.items() if path != lost)


def test_what_lies_in_out_is_never_replaced(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    run(source, target)
    changed, kept = sorted(target.rglob("*.dcm"))
    changed.write_bytes(b"edited by a person")
    report = run(source, target)
    assert sorted(outcomes(report).values()) == ["output_exists", "released"]
    assert changed.read_bytes() == b"edited by a person"
    assert tree(target)[kept.relative_to(target).as_posix()] == kept.read_bytes()


def test_a_source_that_changed_comes_out_anew_only_under_another_uid(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    run(source, target)
    (source / "P0" / "000").write_bytes(instance(0, patient_id="MRN-8150-X", rows=16))
    (source / "P1" / "001").write_bytes(instance(5, patient_id="MRN-8151-X"))
    assert outcomes(run(source, target)) == {"P0/000": "output_exists", "P1/001": "released"}
    assert len(tree(target)) == 3


@pytest.mark.parametrize("changed", ["keys", "profile", "days", "project", "not resumable"])
def test_other_parameters_on_the_same_out_are_refused(tmp_path: Path, changed: str) -> None:
    source, target = filled(tmp_path / "in", 1), tmp_path / "out"
    run(source, target)
    context = {
        "keys": replace(DEFAULT, keys=OTHER.keys),
        "profile": replace(DEFAULT, profile=load_profile("basic")),
        "days": replace(DEFAULT, max_date_shift_days=30),
        "project": replace(DEFAULT, project="another"),
        "not resumable": DEFAULT,
    }[changed]
    before = tree(target)
    with pytest.raises(RefusedRunError, match="another OUT"):
        deidentify_tree(source, target, context, resumable=changed != "not resumable")
    assert tree(target) == before


def test_a_run_without_kept_keys_cannot_go_on(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 1), tmp_path / "out"
    deidentify_tree(source, target, DEFAULT)
    for resumable in (False, True):
        with pytest.raises(RefusedRunError, match="--key-file from the first run on"):
            deidentify_tree(source, target, DEFAULT, resumable=resumable)


def test_the_record_in_out_names_no_source(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "DOE^JOHN", 2), tmp_path / "out"
    (source / "ROE^JANE.dcm").write_bytes(instance(9, patient_id="UNKNOWN"))
    run(source, target)
    record = b"".join(path.read_bytes() for path in (target / FOLDER).iterdir() if path.is_file())
    assert record.count(b"\n") == 4
    assert not any(name in record for name in (b"DOE", b"ROE", b"P0", b"MRN"))
    assert (target / FOLDER).stat().st_mode & 0o777 == 0o700


def test_links_and_what_is_no_file_are_named_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(instance(7))
    source = filled(tmp_path / "in", 1)
    (source / "file").symlink_to(outside / "b")
    (source / "folder").symlink_to(outside)
    (source / "loop").symlink_to(source)
    (source / "inside").symlink_to("P0/000")
    (source / "nowhere").symlink_to("no such file")
    os.mkfifo(source / "pipe")
    (source / "empty").touch()
    (source / "text").write_text("no DICOM")
    assert outcomes(run(source, tmp_path / "out")) == {
        "P0/000": "released",
        "file": "leads_outside",
        "folder": "leads_outside",
        "loop": "link",
        "inside": "link",
        "nowhere": "missing_file",
        "pipe": "not_a_file",
        "empty": "not_dicom",
        "text": "not_dicom",
    }


def test_names_of_sources_may_be_anything(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = [b"-rf", b"a\nb", b"\x1b[31m", b"\xff\xfe", b"x" * 255, "Jörg".encode(), b"$(id)", b"CON"]
    for number, name in enumerate(names):
        (source / os.fsdecode(name)).write_bytes(instance(number))
    report = run(source, tmp_path / "out")
    assert report.succeeded
    assert {os.fsencode(entry.source) for entry in report.files} == set(names)
    assert run(source, tmp_path / "out").files == report.files


def test_in_and_out_must_lie_apart(tmp_path: Path) -> None:
    source = filled(tmp_path / "in", 1)
    (tmp_path / "link").symlink_to(source / "P0")
    for target in (source, source / "out", source / "P0", tmp_path, tmp_path / "link" / "out"):
        with pytest.raises(RefusedRunError):
            run(source, target)
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "P0", "000", "link"}


@pytest.mark.real_data
def test_a_dicomdir_stands_for_the_files_that_it_refers_to(tmp_path: Path) -> None:
    parts = "dicom/pydicom/src/pydicom/data/test_files/dicomdirtests/TINY_ALPHA"
    medium = tmp_path / "medium"
    shutil.copytree(shared_data_dir() / parts, medium)
    files = sorted(path for path in medium.rglob("*") if path.is_file() and path.name != "DICOMDIR")
    (medium / "unrelated.dcm").write_bytes(instance(1))
    files[3].unlink()
    lower = files[4].with_name(files[4].name.lower())
    files[4].rename(lower)
    names = {path.relative_to(medium).as_posix() for path in files}
    for source, extra in ((medium / "DICOMDIR", set()), (medium, {"unrelated.dcm"})):
        found = outcomes(run(source, tmp_path / f"out-{source.name}"))
        assert found.pop("DICOMDIR") == "dicomdir"
        assert found.pop(files[3].relative_to(medium).as_posix()) == "missing_file"
        gone = {files[n].relative_to(medium).as_posix() for n in (3, 4)}
        assert set(found) == names - gone | extra | {lower.relative_to(medium).as_posix()}
    assert len(names) == 50


@pytest.mark.filterwarnings("ignore:.*alid value for VR CS:UserWarning")
def test_a_reference_that_leads_out_of_the_medium_is_not_followed(tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    (tmp_path / "secret").write_bytes(instance(1))
    (medium / "IM1").write_bytes(instance(2))
    (medium / "LINK").symlink_to(tmp_path)
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MediaStorageDirectoryStorage, "1.3.6.1.4.1.99999.7.9"
    ids = (["IM1"], ["..", "secret"], ["LINK", "secret"], ["", "etc", "passwd"], [str(tmp_path / "secret")])
    ds.DirectoryRecordSequence = Sequence([item(ReferencedFileID=each) for each in ids])
    content = encode(ds)
    (medium / "DICOMDIR").write_bytes(content)
    report = run(medium / "DICOMDIR", tmp_path / "out")
    assert report.counts == {"released": 1, "duplicate": 0, "quarantined": 0, "failed": 4, "skipped": 1}
    assert report.reasons == {"dicomdir": 1, "leads_outside": 3, "missing_file": 1}
    assert len(tree(tmp_path / "out")) == 1
