"""Whatever ends a run or one of its processes, OUT holds whole files only, and a second run completes it."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pydicom.uid import XRayAngiographicImageStorage

from anonymizer.batch.crew import Crew
from anonymizer.batch.journal import FOLDER, RefusedRunError
from anonymizer.batch.messages import RELEASED, Answer, Task
from anonymizer.batch.worker import Setting
from tests.anonymizer.batch.scene import ROOT, command, filled, instance, outcomes, run, tree, unfinished
from tests.anonymizer.material import DEFAULT, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anonymizer.batch.report import Report

pytestmark = pytest.mark.slow

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tests.anonymizer.batch.scene import run

def progress(done, of):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), Path(sys.argv[2]), jobs=int(sys.argv[4]), on_progress=progress)
"""


@pytest.mark.parametrize(("after", "jobs"), [(1, 1), (5, 1), (3, 2), (11, 2)])
def test_a_run_that_was_killed_and_is_repeated_ends_like_an_undisturbed_one(
    tmp_path: Path, after: int, jobs: int
) -> None:
    source = filled(tmp_path / "in", 12)
    shutil.copy(source / "P0" / "004", source / "P1" / "copy")
    undisturbed = run(source, tmp_path / "undisturbed")
    target = tmp_path / "out"
    argv = [sys.executable, "-c", KILLED_RUN, str(source), str(target), str(after), str(jobs)]
    killed = subprocess.run(argv, check=False, timeout=120, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    wanted = tree(tmp_path / "undisturbed")
    assert tree(target).items() <= wanted.items()
    assert len(tree(target)) >= after
    assert run(source, target, jobs=jobs).files == undisturbed.files
    assert tree(target) == wanted
    assert unfinished(target) == []


def test_a_record_that_is_cut_within_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 3), tmp_path / "out"
    first, journal = run(source, target), target / FOLDER / "journal.jsonl"
    whole = journal.read_bytes()
    for length in (0, 10, len(whole) - 1, len(whole) - 200):
        journal.write_bytes(whole[:length])
        assert run(source, target).files == first.files
    assert sorted(set(journal.read_bytes().splitlines())) == sorted(whole.splitlines())


def test_an_interrupt_ends_the_run_at_once_and_it_can_go_on(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 8), tmp_path / "out"
    ends: list[Report] = []

    def progress(done: int, of: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(source, target, jobs=2, on_progress=progress, on_end=ends.append)
    assert [end.stopped for end in ends] == ["interrupted"]
    assert len(ends[0].files) == 3
    assert not ends[0].succeeded
    assert len(tree(target)) == 3
    assert unfinished(target) == []
    assert run(source, target).succeeded


def test_two_runs_into_one_out_are_refused(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    refused: list[str] = []

    def progress(done: int, of: int) -> None:
        if done == 1:
            with pytest.raises(RefusedRunError) as error:
                run(source, target)
            refused.append(str(error.value))

    assert run(source, target, on_progress=progress).succeeded
    assert refused == ["OUT: another run writes there; expected it ended"]


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    target.mkdir()
    folders = [os.open(path, os.O_RDONLY) for path in (source, target, target)]
    made = Crew(Setting(folders[0], folders[1], folders[2], context=DEFAULT, secret=b"x", prefix="t-"), 1)
    yield made
    made.close()
    for folder in folders:
        os.close(folder)


def _die(crew: Crew) -> None:
    (member,) = crew._members
    member.process.kill()
    member.process.wait()


def _all_answers(crew: Crew) -> list[Answer]:
    found: list[Answer] = []
    while crew.outstanding:
        found += crew.answers()
    return found


def test_a_process_that_is_killed_is_replaced_and_its_file_tried_again(crew: Crew) -> None:
    crew.add(Task(0, ("P0", "000")))
    _die(crew)
    (answer,) = _all_answers(crew)
    assert (answer.number, answer.outcome) == (0, RELEASED)


def test_a_file_that_kills_its_process_twice_is_reported_and_the_next_one_taken(crew: Crew) -> None:
    crew.add(Task(0, ("P0", "000")))
    _die(crew)
    assert list(crew.answers()) == []
    _die(crew)
    answers = list(crew.answers())
    assert [(answer.code, answer.reason) for answer in answers] == [
        ("process_died", "the process that read this file died twice (signal 9)")
    ]
    crew.add(Task(1, ("P1", "001")))
    assert [answer.outcome for answer in _all_answers(crew)] == [RELEASED]


def test_in_that_vanishes_is_named_file_by_file(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 5), tmp_path / "out"

    def progress(done: int, of: int) -> None:
        if done == 1:
            shutil.rmtree(source)

    report = run(source, target, on_progress=progress)
    assert sorted(outcomes(report).values()) == ["released", *["unreadable"] * 4]
    assert not report.succeeded


def _bounded(limit: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(limit, (size, size))


def test_a_file_that_may_not_become_so_large_is_named_and_nothing_of_it_stays(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    (source / "large").write_bytes(instance(9, rows=20_000))
    done = command(source, target, preexec_fn=_bounded(resource.RLIMIT_FSIZE, 100_000))
    assert done.returncode == 1
    assert "large: failed: unwritable: OUT cannot be written (File too large)" in done.stdout
    assert len(tree(target)) == 2
    assert unfinished(target) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["/usr/bin/umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_whole_files_and_more_space_completes_it(
    tmp_path: Path, small_disk: Path
) -> None:
    source, target = tmp_path / "in", small_disk / "out"
    source.mkdir()
    for number in range(6):
        (source / f"{number}").write_bytes(instance(number, rows=5000))
    arguments = (source, target, "--key-file", tmp_path / "key", "--report", tmp_path / "r.json")
    full = command(*arguments)
    assert full.returncode == 1
    assert "stopped: OUT cannot be written (No space left on device)" in full.stderr
    assert '"complete": false' in (tmp_path / "r.json").read_text()
    assert 0 < len(tree(target)) < 6
    assert unfinished(target) == []
    subprocess.run(["/usr/bin/mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert command(*arguments).returncode == 0
    assert len(tree(target)) == 6


WITHOUT_OVERRIDE = ("/usr/bin/setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_an_unreadable_file_is_named_and_a_folder_that_takes_nothing_is_said(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "in", 2), tmp_path / "out"
    (source / "P0" / "000").chmod(0)
    prefix = WITHOUT_OVERRIDE if os.geteuid() == 0 else ()
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("no setpriv")
    unreadable = command(source, target, prefix=prefix)
    assert unreadable.returncode == 1
    assert "P0/000: failed: unreadable: cannot be read (Permission denied)" in unreadable.stdout
    assert len(tree(target)) == 1
    (tmp_path / "closed").mkdir(mode=0o555)
    for closed in (tmp_path / "closed", tmp_path / "closed" / "out"):
        refused = command(source, closed, prefix=prefix)
        assert refused.returncode == 1
        assert "Permission denied" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert list((tmp_path / "closed").iterdir()) == []


def test_memory_does_not_grow_with_native_pixel_data(tmp_path: Path) -> None:
    """Of 600 MB each process may keep 300 MB for itself: file maps that are only read do not count."""
    source = tmp_path / "large.dcm"
    content = instance(1, rows=16)
    frames = 600 * 1024**2 // (16 * 8 * 2)
    source.write_bytes(_multi_frame(content, frames))
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size + frames * 16 * 8 * 2)
    target = tmp_path / "out.dcm"
    done = command(source, target, preexec_fn=_bounded(resource.RLIMIT_DATA, 300 * 1024**2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.stat().st_size > 600 * 1024**2
    target.unlink()


def _multi_frame(content: bytes, frames: int) -> bytes:
    """Return a multi-frame instance up to where its pixel data begins."""
    ds = dcmread(io.BytesIO(content))
    ds.SOPClassUID, ds.NumberOfFrames = XRayAngiographicImageStorage, str(frames)
    ds.PixelData = b"\0\0"
    encoded = encode(ds)
    length = struct.pack("<L", frames * 16 * 8 * 2)
    assert encoded.endswith(b"OW\0\0\2\0\0\0\0\0")
    return encoded[:-6] + length
