from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_MOVE

from dicom_node import scu
from dicom_node.archive import ArchiveError, Progress
from dicom_node.arriving import Arrivals
from dicom_node.inbox import Inbox
from dicom_node.part10 import MAX_META_BYTES, decode
from dicom_node.ports import Caller
from dicom_node.retrieve_scu import USUAL_CLASSES, get, move, storage_contexts
from dicom_node.throttle import Throttle
from tests.dicom_node.archives import fill, odd_archive, orthanc_archive, running_dcmqrscp
from tests.dicom_node.scripted import scripted_acceptor
from tests.dicom_node.support import ct, encoded, pdu, pdv, save, store_rq, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dicom_node.scu import Destination
    from tests.dicom_node.support import RunningSCP

CT = str(CTImageStorage)
STUDY = "1.2.840.99.1"


class Patience:
    """A watch that lets a retrieval go on until it is told otherwise."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[Progress] = []

    def arrived(self) -> int:
        """Know nothing."""
        return 0

    def goes_on(self, progress: Progress) -> bool:
        """Keep it."""
        self.seen.append(progress)
        return self.stop_at is None or progress.completed < self.stop_at


def study(tmp_path: Path, count: int = 5, syntax: Any = ExplicitVRLittleEndian) -> list[Path]:
    paths = []
    for number in range(count):
        changes = {
            "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": f"{STUDY}.{number % 2}",
            "SOPInstanceUID": f"{STUDY}.9.{number}",
        }
        paths.append(save(ct(changes), tmp_path / f"{syntax.name}-{number}.dcm".replace(" ", ""), syntax))
    return paths


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[decode(content[:MAX_META_BYTES]).data_offset :]


def held(inbox: Inbox) -> dict[str, bytes]:
    return {entry.sop_instance_uid: data_of(entry.path) for entry in inbox.entries(1000)}


def sent(paths: list[Path]) -> dict[str, bytes]:
    return {str(dcmread(path).SOPInstanceUID): data_of(path) for path in paths}


def arrivals(inbox: Inbox, kib_per_s: int = 0) -> Arrivals:
    return Arrivals(inbox, Caller("ARCHIVE", "CLOISTER", "127.0.0.1"), STUDY, kib_per_s)


@pytest.fixture(
    params=[
        pytest.param("dcmqrscp", marks=pytest.mark.dcmtk),
        pytest.param("orthanc", marks=pytest.mark.orthanc),
    ]
)
def archive(request: pytest.FixtureRequest, tmp_path: Path, scp: RunningSCP) -> Iterator[Destination]:
    if request.param == "dcmqrscp":
        with running_dcmqrscp(tmp_path, ours_port=scp.port) as destination:
            yield destination
    else:
        with orthanc_archive(tmp_path, ours_port=scp.port) as (_, destination):
            yield destination


def test_a_study_comes_by_get_byte_for_byte(archive: Destination, inbox: Inbox, tmp_path: Path) -> None:
    paths = study(tmp_path)
    fill(archive, paths)
    watch = Patience()
    done = get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, watch, arrivals(inbox), sop_classes=[CT])
    assert (done.progress.completed, done.progress.failed, done.stored, done.refused) == (5, 0, 5, {})
    assert held(inbox) == sent(paths)
    assert {entry.calling_ae_title for entry in inbox.entries(9)} == {"ARCHIVE"}


def test_a_series_or_an_instance_of_it_comes_alone(
    archive: Destination, inbox: Inbox, tmp_path: Path
) -> None:
    fill(archive, study(tmp_path))
    keys = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.1"}
    assert get(archive, "CLOISTER", keys, Patience(), arrivals(inbox)).stored == 2
    keys["SOPInstanceUID"] = f"{STUDY}.9.3"
    assert get(archive, "CLOISTER", keys, Patience(), arrivals(inbox)).stored == 1


def test_a_study_comes_by_move_over_our_own_scp(
    archive: Destination, scp: RunningSCP, tmp_path: Path
) -> None:
    paths = study(tmp_path)
    fill(archive, paths)
    done = move(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience())
    assert (done.progress.completed, done.progress.failed, done.cancelled) == (5, 0, False)
    assert held(scp.inbox) == sent(paths)


def test_a_move_to_an_archive_that_does_not_know_us_says_so(archive: Destination, tmp_path: Path) -> None:
    fill(archive, study(tmp_path))
    with pytest.raises(ArchiveError, match="retrieve"):
        move(archive, "STRANGER", {"StudyInstanceUID": STUDY}, Patience())


@pytest.mark.orthanc
def test_each_encoding_of_a_study_is_kept_by_get(inbox: Inbox, tmp_path: Path) -> None:
    paths = study(tmp_path, 2)
    implicit = ct({"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.7"})
    paths.append(save(implicit, tmp_path / "implicit.dcm", ImplicitVRLittleEndian))
    keys = {"StudyInstanceUID": STUDY}
    with orthanc_archive(tmp_path) as (_, archive):
        fill(archive, paths)
        done = get(archive, "CLOISTER", keys, Patience(), arrivals(inbox), sop_classes=[CT])
    assert done.stored == 3
    assert held(inbox) == sent(paths)


def test_contexts_fit_into_an_association_whatever_the_number_of_classes() -> None:
    for count in (1, 2, 8, 63, 64, 120, 127):
        contexts = storage_contexts([f"1.2.{number}" for number in range(count)])
        assert len(contexts) <= 127
        assert all(
            len({syntax for uid, syntaxes in contexts if uid == f"1.2.{number}" for syntax in syntaxes}) == 16
            for number in (0, count - 1)
        )
    assert len(set(USUAL_CLASSES)) == len(USUAL_CLASSES) <= 127


def instance(number: int, study_uid: str = STUDY) -> Dataset:
    series = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": f"{STUDY}.1"}
    ds = ct({**series, "SOPInstanceUID": f"{STUDY}.9.{number}"})
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def gives(*instances: Dataset, claims: int | None = None) -> Callable[[Any], Iterator[Any]]:
    def handler(event: Any) -> Iterator[Any]:
        yield claims or len(instances)
        for one in instances:
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, one

    return handler


def test_instances_of_another_study_are_not_stored(inbox: Inbox) -> None:
    with odd_archive(get=gives(instance(1), instance(2, "1.2.3.4"), instance(3))) as archive:
        taken = arrivals(inbox)
        done = get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), taken, sop_classes=[CT])
    assert (done.stored, done.refused) == (2, {"of another study": 1})
    assert sorted(held(inbox)) == [f"{STUDY}.9.1", f"{STUDY}.9.3"]
    assert not list(inbox.incoming.iterdir())


def test_a_full_disk_refuses_the_instance_and_keeps_the_association(tmp_path: Path) -> None:
    full = Inbox(tmp_path / "full", min_free_bytes=1 << 60)
    with odd_archive(get=gives(instance(1), instance(2))) as archive:
        taken = arrivals(full)
        done = get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), taken, sop_classes=[CT])
    assert (done.stored, done.refused, done.progress.failed) == (0, {"no space": 2}, 2)


def test_a_get_that_is_taken_back_ends_with_what_came(inbox: Inbox) -> None:
    def slow(event: Any) -> Iterator[Any]:
        yield 60
        for number in range(60):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            time.sleep(0.1)
            yield 0xFF00, instance(number)

    with odd_archive(get=slow) as archive:
        taken = arrivals(inbox)
        done = get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(3), taken, sop_classes=[CT])
    assert done.cancelled
    assert 3 <= len(held(inbox)) < 60


def test_an_archive_that_aborts_midway_is_an_error_and_what_was_whole_stays(inbox: Inbox) -> None:
    def leaves(event: Any) -> Iterator[Any]:
        yield 5
        yield 0xFF00, instance(1)
        yield 0xFF00, instance(2)
        event.assoc.abort()

    with odd_archive(get=leaves) as archive, pytest.raises(ArchiveError, match="ended") as error:
        get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), arrivals(inbox), sop_classes=[CT])
    assert error.value.retryable
    assert len(held(inbox)) == 2


def test_endless_pending_without_progress_is_given_up() -> None:
    def pending(event: Any) -> Iterator[Any]:
        while event.assoc.is_established:
            time.sleep(0.05)
            event.assoc.dimse.send_msg(_pending(event), event.context.context_id)
        yield None, None

    with odd_archive(move=pending) as archive, pytest.raises(ArchiveError, match="no progress for 2 s"):
        move(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), silence_s=2)


def _pending(event: Any) -> Any:
    response = C_MOVE()
    response.MessageIDBeingRespondedTo = event.request.MessageID
    response.AffectedSOPClassUID = event.request.AffectedSOPClassUID
    response.Status = 0xFF00
    response.NumberOfRemainingSuboperations = 1
    return response


def test_an_instance_that_is_cut_off_leaves_nothing_behind(inbox: Inbox) -> None:
    data = encoded(instance(1))
    half = pdu(0x04, pdv(3, 0x03, store_rq(CT, f"{STUDY}.9.1"))) + pdu(0x04, pdv(3, 0x00, data[:200]))
    with scripted_acceptor("", half) as port:
        archive = scu.Destination("ODD", "127.0.0.1", port, timeout_s=2)
        with pytest.raises(ArchiveError, match=r"retrieve|connect"):
            get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), arrivals(inbox), silence_s=2)
    assert held(inbox) == {}
    wait_until(lambda: not list(inbox.incoming.iterdir()), "nothing half-written")


def test_a_bound_on_speed_holds_bytes_back() -> None:
    throttle = Throttle(100)
    started = time.monotonic()
    for _ in range(15):
        throttle.take(10_240)
    assert 0.4 < time.monotonic() - started < 3
    Throttle(0).take(1 << 40)


def test_a_stranger_gets_no_further_than_the_association() -> None:
    ae = AE(ae_title="ODD")
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        archive = scu.Destination("ODD", "127.0.0.1", server.server_address[1], timeout_s=3)
        with pytest.raises(ArchiveError, match=r"connect: .*presentation contexts") as error:
            move(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience())
        assert not error.value.retryable
    finally:
        server.shutdown()
        ae.shutdown()


_FETCHES = """
import sys
from pathlib import Path
from dicom_node.arriving import Arrivals
from dicom_node.inbox import Inbox
from dicom_node.ports import Caller
from dicom_node.retrieve_scu import get
from dicom_node.scu import Destination
from tests.dicom_node.test_retrieve_scu import STUDY, Patience

def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

inbox = Inbox(Path(sys.argv[2]), min_free_bytes=1)
before = peak_kib()
archive = Destination("DCMQR", "127.0.0.1", int(sys.argv[1]), timeout_s=60)
arrivals = Arrivals(inbox, Caller("ARCHIVE", "CLOISTER", "127.0.0.1"), STUDY)
done = get(archive, "CLOISTER", {"StudyInstanceUID": STUDY}, Patience(), arrivals)
assert done.stored == 1, done
print((peak_kib() - before) // 1024)
"""


@pytest.mark.dcmtk
@pytest.mark.slow
def test_a_large_instance_is_never_in_memory(inbox: Inbox, tmp_path: Path) -> None:
    ds = ct({"StudyInstanceUID": STUDY, "NumberOfFrames": 400}, size=512)
    ds.PixelData = bytes(400 * 512 * 512 * 2)
    path = save(ds, tmp_path / "large.dcm")
    with running_dcmqrscp(tmp_path) as archive:
        fill(replace(archive, timeout_s=60), [path])
        command = [sys.executable, "-c", _FETCHES, str(archive.port), str(inbox.root)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (entry,) = inbox.entries(2)
    assert entry.size_bytes > 200 << 20
    assert int(ran.stdout) < 30
