from __future__ import annotations

import subprocess
import threading
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    generate_uid,
)

from dicom_node import scu
from dicom_node.inbox import Inbox
from dicom_node.scp import SCPConfig, StorageSCP
from dicom_node.scu import Destination, StoreOutcome
from tests.dicom_node.orthanc import running_orthanc
from tests.dicom_node.support import (
    DCMTK,
    Everybody,
    Heard,
    RunningSCP,
    ct,
    encoded,
    free_port,
    kill_group,
    listening,
    program,
    save,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def at(port: int, ae_title: str = "CLOISTER") -> Destination:
    return Destination(ae_title, "127.0.0.1", port, timeout_s=5)


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[Destination]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    child = subprocess.Popen(
        [program(DCMTK / "storescp"), "-od", str(folder), *options, str(port)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listening(port), "storescp listens")
        yield at(port, "WORKSTATION")
    finally:
        kill_group(child)


@pytest.mark.dcmtk
def test_storescp_answers_an_echo(tmp_path: Path) -> None:
    with storescp(tmp_path / "in") as destination:
        outcome = scu.echo(destination, "CLOISTER")
    assert outcome.ok
    assert 0 < outcome.round_trip_s < 5


@pytest.mark.dcmtk
def test_storescp_stores_what_is_sent(tmp_path: Path) -> None:
    instances = [ct(size=200) for _ in range(3)]
    paths = [save(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(instances)]
    with storescp(tmp_path / "in") as destination:
        outcomes = scu.store(paths, destination, "CLOISTER")
    assert [(outcome.path, outcome.status, outcome.ok) for outcome in outcomes] == [
        (path, 0, True) for path in paths
    ]
    received = {pydicom.dcmread(path).SOPInstanceUID: path for path in (tmp_path / "in").iterdir()}
    for ds in instances:
        assert pydicom.dcmread(received[ds.SOPInstanceUID]) == ds


@pytest.mark.dcmtk
def test_a_peer_that_takes_implicit_vr_alone_gets_it(tmp_path: Path) -> None:
    ds = ct()
    path = save(ds, tmp_path / "a.dcm", ExplicitVRLittleEndian)
    with storescp(tmp_path / "in", "+xi") as destination:
        (outcome,) = scu.store([path], destination, "CLOISTER")
    assert outcome.ok
    (stored,) = (tmp_path / "in").iterdir()
    received = pydicom.dcmread(stored)
    assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert received == ds


@pytest.mark.dcmtk
def test_a_peer_that_does_not_take_a_transfer_syntax_is_no_reason_to_try_again(tmp_path: Path) -> None:
    compressed = save(ct(), tmp_path / "deflated.dcm", DeflatedExplicitVRLittleEndian)
    plain = save(ct(), tmp_path / "plain.dcm")
    with storescp(tmp_path / "in") as destination:
        first, second = scu.store([compressed, plain], destination, "CLOISTER")
    assert (first.ok, first.retryable, first.status) == (False, False, None)
    assert second.ok


@pytest.mark.dcmtk
def test_a_rejected_association_says_so(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm")
    with storescp(tmp_path / "in", "--refuse") as destination:
        (outcome,) = scu.store([path], destination, "CLOISTER")
        echo = scu.echo(destination, "CLOISTER")
    assert not outcome.ok
    assert "rejected" in outcome.reason
    assert not echo.ok
    assert "rejected" in echo.reason


@pytest.mark.dcmtk
@pytest.mark.parametrize("option", ["--abort-during", "--abort-after"])
def test_an_association_that_breaks_is_tried_again(tmp_path: Path, option: str) -> None:
    paths = [save(ct(size=300), tmp_path / f"{number}.dcm") for number in range(3)]
    with storescp(tmp_path / "in", option) as destination:
        outcomes = scu.store(paths, destination, "CLOISTER")
    broken = [outcome for outcome in outcomes if not outcome.ok]
    assert broken
    assert all(outcome.retryable and outcome.status is None for outcome in broken)
    assert [outcome.path for outcome in outcomes] == paths


def test_nobody_at_the_port_is_tried_again(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm")
    (outcome,) = scu.store([path], at(free_port()), "CLOISTER")
    assert (outcome.ok, outcome.retryable) == (False, True)


def test_a_name_that_does_not_resolve_is_tried_again(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm")
    (outcome,) = scu.store([path], Destination("A", "no-such-host.invalid", 104, 5), "CLOISTER")
    assert (outcome.ok, outcome.retryable) == (False, True)


def test_a_peer_that_rejects_our_ae_title_waits_for_people(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp(Everybody("STRANGER"))
    (outcome,) = scu.store([save(ct(), tmp_path / "a.dcm")], at(scp.port), "STRANGER")
    assert (outcome.ok, outcome.retryable) == (False, False)
    assert "Calling AE title not recognised" in outcome.reason


def test_a_full_peer_is_tried_again_and_takes_the_instance_later(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp()
    path = save(ct(), tmp_path / "a.dcm")
    scp.inbox.min_free_bytes = 1 << 60
    (outcome,) = scu.store([path], at(scp.port), "CLOISTER")
    assert (outcome.status, outcome.ok, outcome.retryable) == (0xA700, False, True)
    scp.inbox.min_free_bytes = 0
    assert scu.store([path], at(scp.port), "CLOISTER")[0].ok


def test_bytes_arrive_as_they_are_stored(run_scp: Callable[..., RunningSCP], tmp_path: Path) -> None:
    scp = run_scp()
    wanted = {}
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        path = save(ct(size=150), tmp_path / f"{syntax}.dcm", syntax)
        wanted[path] = syntax
    outcomes = scu.store(wanted, at(scp.port), "CLOISTER")
    assert all(outcome.ok for outcome in outcomes)
    for entry, (path, syntax) in zip(scp.inbox.entries(5), wanted.items(), strict=True):
        assert entry.transfer_syntax_uid == syntax
        assert path.read_bytes().endswith(entry.path.read_bytes()[-entry.size_bytes :])


def test_who_passes_the_checkpoint_says_so_at_once() -> None:
    association: Any = SimpleNamespace(_is_paused=True)
    checkpoint = scu.PausingCheckpoint(association)
    assert checkpoint.wait(5)
    assert association._is_paused is False


def test_who_waits_at_a_closed_checkpoint_is_paused_until_it_opens() -> None:
    association: Any = SimpleNamespace(_is_paused=True)
    checkpoint = scu.PausingCheckpoint(association)
    checkpoint.clear()
    waiting = threading.Thread(target=checkpoint.wait, daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert (waiting.is_alive(), association._is_paused) == (True, True)
    checkpoint.set()
    waiting.join(5)
    assert (waiting.is_alive(), association._is_paused) == (False, False)


def test_more_contexts_than_one_association_carries_are_split(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp()
    paths = [
        save(ct(size=2, SOPClassUID=f"2.25.{1000 + number}"), tmp_path / f"{number}.dcm")
        for number in range(150)
    ]
    outcomes = scu.store(paths, at(scp.port), "CLOISTER")
    assert {outcome.reason for outcome in outcomes if not outcome.ok} == set()
    assert len(scp.heard.accepted) == 3  # two contexts for each class


def test_a_file_that_is_none_does_not_hold_up_the_others(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp()
    bad, missing = tmp_path / "bad.dcm", tmp_path / "missing.dcm"
    bad.write_bytes(b"no DICOM")
    good = save(ct(), tmp_path / "good.dcm")
    outcomes = scu.store([bad, good, missing], at(scp.port), "CLOISTER")
    assert [outcome.ok for outcome in outcomes] == [False, True, False]
    assert not outcomes[0].retryable


@pytest.mark.parametrize(
    ("status", "ok", "retryable"),
    [
        (0x0000, True, False),
        (0xB000, True, False),
        (0xB007, True, False),
        (0xA700, False, True),
        (0xA7FF, False, True),
        (0x0110, False, True),
        (0xA900, False, False),
        (0xC000, False, False),
        (0xCFFF, False, False),
        (0x0122, False, False),
        (0x0124, False, False),
        (0x1234, False, True),
    ],
)
def test_each_status_says_whether_another_try_helps(
    tmp_path: Path, status: int, ok: bool, retryable: bool
) -> None:
    outcome = scu.outcome_of(tmp_path, status)
    assert isinstance(outcome, StoreOutcome)
    assert (outcome.ok, outcome.retryable, outcome.status) == (ok, retryable, status)


@pytest.mark.orthanc
@pytest.mark.slow
def test_orthanc_stores_what_we_send_and_sends_it_back(tmp_path: Path) -> None:
    plain, squeezed = ct(size=100), ct(size=8, SOPInstanceUID=generate_uid())
    squeezed.BitsAllocated, squeezed.BitsStored, squeezed.HighBit = 8, 8, 7
    squeezed.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 not decoded on the way \xff\xd9"])
    squeezed["PixelData"].VR = "OB"
    paths = [save(plain, tmp_path / "plain.dcm"), save(squeezed, tmp_path / "jpeg.dcm", JPEGBaseline8Bit)]
    inbox, heard = Inbox(tmp_path / "inbox", min_free_bytes=0), Heard()
    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, Everybody(), heard)
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        destination = at(orthanc.dicom_port, "ORTHANC")
        assert scu.echo(destination, "CLOISTER").ok
        outcomes = scu.store(paths, destination, "CLOISTER")
        assert all(outcome.ok for outcome in outcomes)
        files = [orthanc.file(item) for item in orthanc.instances()]
        stored = {ds.SOPInstanceUID: ds for ds in (pydicom.dcmread(BytesIO(file)) for file in files)}
        assert stored[squeezed.SOPInstanceUID].file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        assert stored[plain.SOPInstanceUID].PixelData == plain.PixelData
        port = scp.start()
        try:
            answer = orthanc.send(files, "CLOISTER", port)
        finally:
            scp.stop()
    assert answer["status"] == 200
    assert answer["FailedInstancesCount"] == 0
    received = {entry.sop_instance_uid: entry for entry in inbox.entries(10)}
    assert received[squeezed.SOPInstanceUID].transfer_syntax_uid == JPEGBaseline8Bit
    assert received[plain.SOPInstanceUID].path.read_bytes().endswith(encoded(plain)[-1000:])
    assert {entry.calling_ae_title for entry in received.values()} == {"ORTHANC"}
