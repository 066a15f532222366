"""Nothing is written outside OUT, whoever laid what into it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from anonymizer.batch.journal import FOLDER, RefusedRunError
from tests.anonymizer.batch.scene import filled, instance, outcomes, run, tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return filled(tmp_path / "in", 2)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"of somebody else")
    return folder


def _untouched(outside: Path) -> bool:
    return {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"of somebody else"}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_link_in_place_of_a_folder_is_not_followed(
    source: Path, outside: Path, tmp_path: Path, depth: int
) -> None:
    run(source, tmp_path / "known")
    victim = min(tree(tmp_path / "known"))
    link = tmp_path / "out" / "/".join(victim.split("/")[:depth])
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    report = run(source, tmp_path / "out")
    assert sorted(outcomes(report).values()) == ["output_blocked", "released"]
    assert _untouched(outside)


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
def test_what_lies_in_place_of_an_instance_stays(
    source: Path, outside: Path, tmp_path: Path, kind: str
) -> None:
    run(source, tmp_path / "known")
    place = tmp_path / "out" / min(tree(tmp_path / "known"))
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(outside / "file")
    elif kind == "dangling link":
        place.symlink_to(outside / "new")
    elif kind == "hard link":
        place.hardlink_to(outside / "file")
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    report = run(source, tmp_path / "out")
    assert sorted(outcomes(report).values()) == ["output_exists", "released"]
    assert _untouched(outside)


@pytest.mark.parametrize("name", ["", "/staging", "/journal.jsonl", "/lock"])
def test_a_link_in_place_of_the_record_is_refused(
    source: Path, outside: Path, tmp_path: Path, name: str
) -> None:
    link = tmp_path / "out" / f"{FOLDER}{name}"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside if name in {"", "/staging"} else outside / "file")
    with pytest.raises((RefusedRunError, OSError)):
        run(source, tmp_path / "out")
    assert _untouched(outside)


def test_a_second_name_of_another_file_in_place_of_the_record_is_refused(
    source: Path, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / FOLDER).mkdir(parents=True)
    (tmp_path / "out" / FOLDER / "journal.jsonl").hardlink_to(outside / "file")
    with pytest.raises(RefusedRunError):
        run(source, tmp_path / "out")
    assert _untouched(outside)


def test_a_file_out_that_is_a_link_is_not_followed(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(instance(1))
    target = tmp_path / "x.dcm"
    target.symlink_to(outside / "file")
    assert outcomes(run(tmp_path / "a.dcm", target)) == {"a.dcm": "output_exists"}
    assert target.is_symlink()
    assert _untouched(outside)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "outside", "x.dcm"]
