"""A run with whole series: the same files whatever the number of processes, and again what has changed."""

from __future__ import annotations

import shutil
from random import Random
from typing import TYPE_CHECKING

import pytest

from anonymizer.batch.run import deidentify_tree
from anonymizer.engine import Context
from anonymizer.profiles import load_profile
from tests.anonymizer import heads, scans
from tests.anonymizer.batch.scene import tree
from tests.anonymizer.material import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

    from anonymizer.batch.report import Report

HEAD = Context(DEFAULT.keys, "trial", profile=load_profile("head"))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    head = heads.drawn(Random(11))  # noqa: S311 - the same head each time
    scans.written(head, scans.Scan("T1", pixel_mm=4.0, gap_mm=8.0, field_mm=240.0), folder / "SERIES")
    return folder


def _run(source: Path, target: Path, jobs: int = 1) -> Report:
    return deidentify_tree(source, target, HEAD, jobs=jobs, resumable=True)


def test_any_number_of_processes_gives_the_same_files(series: Path, tmp_path: Path) -> None:
    one, two = _run(series, tmp_path / "one"), _run(series, tmp_path / "two", jobs=2)
    assert one.succeeded
    assert one.files == two.files
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_second_run_does_nothing_and_one_with_less_of_a_series_looks_anew(
    series: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(series, tmp_path / "in")
    first = _run(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert _run(source, tmp_path / "out").files == first.files
    for path in sorted((source / "SERIES").iterdir())[10:]:
        path.unlink()
    last = _run(source, tmp_path / "out")
    assert {entry.code for entry in last.files} == {"face_not_removed"}
    assert tree(tmp_path / "out") == before
