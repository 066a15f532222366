from __future__ import annotations

import os
import socket
import subprocess
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicom_node.errors import HeaderError, InboxError
from dicom_node.inbox import Inbox
from dicom_node.index import read_header
from dicom_node.negotiation import transfer_syntaxes
from dicom_node.ports import Caller, Decision
from dicom_node.scp import OUT_OF_RESOURCES, SCPConfig, StorageSCP, plain_address
from tests.dicom_node.support import (
    BytePeer,
    Everybody,
    Heard,
    RunningSCP,
    associate_rq,
    ct,
    dcmtk,
    encoded,
    pdu,
    pdv,
    save,
    start_scp,
    store_rq,
    threads_of_associations,
    wait_until,
)
from tests.shared_data import shared_data_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ECHO = "1.2.840.10008.1.1"
SUCCESS = 0x0000


def to(scp: RunningSCP, calling: str = "PACS") -> list[str]:
    return ["-aec", "CLOISTER", "-aet", calling, "127.0.0.1", str(scp.port)]


def all_ended() -> bool:
    return not threads_of_associations()


@pytest.mark.dcmtk
def test_echoscu_is_answered(scp: RunningSCP) -> None:
    dcmtk("echoscu", *to(scp))
    assert scp.heard.accepted == [Caller("PACS", "CLOISTER", "127.0.0.1")]


@pytest.mark.dcmtk
def test_storescu_stores_what_the_inbox_holds_byte_for_byte(scp: RunningSCP, tmp_path: Path) -> None:
    ds = ct(size=300)
    path = save(ds, tmp_path / "a.dcm")
    dcmtk("storescu", "-xe", *to(scp), path)
    (entry,) = scp.inbox.entries(5)
    assert scp.heard.received == [entry]
    assert entry.path.read_bytes().endswith(encoded(ds))
    assert (entry.sop_instance_uid, entry.calling_ae_title) == (ds.SOPInstanceUID, "PACS")
    assert read_header(entry.path).patient_id == "4711"


@pytest.mark.dcmtk
@pytest.mark.real_data
def test_real_files_are_stored_in_the_transfer_syntax_they_come_in(scp: RunningSCP, tmp_path: Path) -> None:
    """Vendor files of many transfer syntaxes: the pixel data of compressed ones stays as it is."""
    folder = shared_data_dir() / "dicom" / "pydicom" / "src" / "pydicom" / "data" / "test_files"
    names = [
        *("JPEG2000.dcm", "JPEG-lossy.dcm", "SC_rgb_rle.dcm", "CT_small.dcm", "MR_small_bigendian.dcm"),
        *("MR_small_implicit.dcm", "693_J2KR.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_ybr_color.dcm"),
    ]
    sent = {}
    for name in names:
        if (folder / name).is_file():
            meta = pydicom.filereader.read_file_meta_info(folder / name)
            sent[str(meta.MediaStorageSOPInstanceUID)] = (folder / name, meta)
    dcmtk("dcmsend", *to(scp), *(path for path, _ in sent.values()))
    entries = scp.inbox.entries(100)
    assert {entry.sop_instance_uid for entry in entries} == set(sent)
    syntaxes = {entry.transfer_syntax_uid for entry in entries}
    assert len(syntaxes) >= 4
    for entry in entries:
        path, meta = sent[entry.sop_instance_uid]
        if meta.TransferSyntaxUID.is_compressed:  # dcmsend may re-encode the others
            assert entry.transfer_syntax_uid == meta.TransferSyntaxUID
            assert entry.path.read_bytes()[-1000:] == path.read_bytes()[-1000:]
        assert read_header(entry.path).sop_instance_uid == entry.sop_instance_uid


def test_every_transfer_syntax_is_stored_as_received(scp: RunningSCP) -> None:
    for syntax in sorted(transfer_syntaxes()):
        data = f"bytes in {syntax}".encode()
        with BytePeer(scp.port) as peer:
            assert peer.associate((CTImageStorage, [syntax]))[0] == 0x02
            assert peer.store(data, CTImageStorage, "1.2.3") == SUCCESS
            peer.release()
        entry = scp.heard.received[-1]
        assert entry.transfer_syntax_uid == syntax
        assert entry.path.read_bytes().endswith(data)


@pytest.mark.dcmtk
def test_a_private_sop_class_is_stored(scp: RunningSCP, tmp_path: Path) -> None:
    ds = ct(SOPClassUID="1.3.46.670589.11.0.0.12.2")
    dcmtk("dcmsend", *to(scp), save(ds, tmp_path / "a.dcm"))
    assert scp.inbox.entries(1)[0].sop_class_uid == "1.3.46.670589.11.0.0.12.2"


@pytest.mark.dcmtk
def test_an_unknown_caller_is_rejected_and_heard_of(scp: RunningSCP, tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.dcm")
    outcome = dcmtk("storescu", *to(scp, "EVIL"), path, check=False)
    assert outcome.returncode != 0
    assert "Calling AE Title Not Recognized" in outcome.stderr + outcome.stdout
    assert scp.heard.rejected == [(Caller("EVIL", "CLOISTER", "127.0.0.1"), "unknown_ae_title")]
    assert scp.inbox.entries(5) == []
    wait_until(all_ended, "the rejected association ended")


@pytest.mark.dcmtk
def test_a_caller_that_asks_for_somebody_else_is_rejected(scp: RunningSCP) -> None:
    outcome = dcmtk("echoscu", "-aec", "OTHER", "-aet", "PACS", "127.0.0.1", str(scp.port), check=False)
    assert "Called AE Title Not Recognized" in outcome.stderr + outcome.stdout
    assert [reason for _, reason in scp.heard.rejected] == ["wrong_called_ae_title"]


def test_a_policy_that_fails_lets_nobody_in(inbox: Inbox) -> None:
    class Broken:
        def decide(self, caller: Caller) -> Decision:
            raise RuntimeError(f"no answer for {type(caller)}")

    heard = Heard()
    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, Broken(), heard)
    port = scp.start()
    try:
        with BytePeer(port) as peer:
            kind, body = peer.associate()
        assert (kind, body[1]) == (0x03, 2)  # A-ASSOCIATE-RJ, transient
        assert [reason for _, reason in heard.rejected] == ["policy_failed"]
        assert len(heard.failed) == 1
    finally:
        scp.stop()


def test_a_caller_that_may_come_again_is_told_so(inbox: Inbox) -> None:
    class Starting:
        def decide(self, caller: Caller) -> Decision:
            del caller
            return Decision(allowed=False, reason="not_ready", transient=True)

    scp = StorageSCP(SCPConfig("CLOISTER"), inbox, Starting(), Heard())
    port = scp.start()
    try:
        with BytePeer(port) as peer:
            kind, body = peer.associate()
        assert (kind, body[1], body[2], body[3]) == (0x03, 2, 1, 1)  # PS3.8 table 9-21: transient
    finally:
        scp.stop()


def test_associations_beyond_the_limit_are_rejected_for_now(run_scp: Callable[..., RunningSCP]) -> None:
    scp = run_scp(max_associations=1)
    with BytePeer(scp.port) as first:
        assert first.associate()[0] == 0x02
        with BytePeer(scp.port) as second:
            kind, body = second.associate()
        assert (kind, body[1], body[3]) == (0x03, 2, 2)  # transient, local limit exceeded
    wait_until(all_ended, "both ended")
    with BytePeer(scp.port) as third:
        assert third.associate()[0] == 0x02
        assert third.release() == 0x06


def test_several_instances_on_one_association_are_each_answered(scp: RunningSCP) -> None:
    with BytePeer(scp.port) as peer:
        assert peer.associate()[0] == 0x02
        for number in range(5):
            uid = generate_uid()
            data = encoded(ct(size=200, SOPInstanceUID=uid))
            assert peer.store(data, CTImageStorage, uid, number + 1) == SUCCESS
        assert peer.release() == 0x06
    assert scp.inbox.count() == 5


def test_a_sop_instance_uid_with_dots_and_slashes_stays_in_the_inbox(scp: RunningSCP, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    evil = f"../../{outside.name}"
    data = encoded(ct(SOPInstanceUID="1.2.3")).replace(b"1.2.3\0", b"../../")
    with BytePeer(scp.port) as peer:
        peer.associate()
        assert peer.store(data, CTImageStorage, evil) == SUCCESS
        peer.release()
    (entry,) = scp.inbox.entries(5)
    assert entry.path.parent == scp.inbox.folder
    assert not outside.exists()
    with pytest.raises(HeaderError) as caught:
        read_header(entry.path)
    assert caught.value.code == "invalid_uid"
    everything = {path.name for path in tmp_path.rglob("*")}
    assert not any("outside" in name for name in everything)


def test_a_data_set_that_was_cut_before_it_was_sent_is_stored_and_found_out(scp: RunningSCP) -> None:
    ds = ct(size=64)
    with BytePeer(scp.port) as peer:
        peer.associate()
        assert peer.store(encoded(ds)[:-1000], CTImageStorage, ds.SOPInstanceUID) == SUCCESS
    with pytest.raises(HeaderError) as caught:
        read_header(scp.inbox.entries(1)[0].path)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("ending", ["close", "abort"])
def test_a_connection_that_ends_inside_an_instance_leaves_nothing(scp: RunningSCP, ending: str) -> None:
    ds = ct(size=200)
    with BytePeer(scp.port) as peer:
        peer.associate()
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, ds.SOPInstanceUID))))
        half = pdu(0x04, pdv(1, 0x00, encoded(ds)[:40000]))
        peer.send(half[:-5000] if ending == "close" else half)
        wait_until(lambda: any(scp.inbox.incoming.iterdir()), "the instance began")
        if ending == "abort":
            peer.send(pdu(0x07, bytes(4)))
            peer.receive()
    wait_until(all_ended, "the association ended")
    assert list(scp.inbox.incoming.iterdir()) == []
    assert scp.inbox.entries(5) == []
    assert scp.heard.failed == []


def _garbage() -> Iterator[tuple[str, bytes]]:
    data = encoded(ct())
    request = store_rq(CTImageStorage, "1.2.3")
    yield "no command first", pdu(0x04, pdv(1, 0x02, data))
    yield "a context that was never accepted", pdu(0x04, pdv(99, 0x03, request))
    yield "an item longer than its PDU", pdu(0x04, pdv(1, 0x03, request)[:-40])
    yield "a PDU too short for an item", pdu(0x04, b"\0\0")
    yield "a PDU without an item length", pdu(0x04, bytes(6))
    yield "random bytes as a command", pdu(0x04, pdv(1, 0x03, bytes(range(256))))
    yield "a command without end", b"".join(pdu(0x04, pdv(1, 0x01, bytes(60000))) for _ in range(3))
    yield "a second command inside a data set", pdu(0x04, pdv(1, 0x03, request) * 2)
    yield "an unknown PDU type", pdu(0x42, b"hello")
    yield "HTTP", b"GET / HTTP/1.1\r\nHost: cloister\r\n\r\n"
    yield "a release of 4 GiB", b"\x05\0\xff\xff\xff\xff" + bytes(1000)
    yield "a second association request", associate_rq([(ECHO, [ExplicitVRLittleEndian])])


GARBAGE = dict(_garbage())


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_dicom_ends_the_association_and_nothing_else(scp: RunningSCP, what: str) -> None:
    sent = GARBAGE[what]
    with BytePeer(scp.port) as peer, BytePeer(scp.port) as honest:
        assert peer.associate()[0] == 0x02
        assert honest.associate()[0] == 0x02
        peer.send(sent)
        assert peer.receive()[0] in {0x07, 0x00}, what  # A-ABORT
        ds = ct()
        assert honest.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == SUCCESS
        assert honest.release() == 0x06
    wait_until(all_ended, "both ended")
    assert list(scp.inbox.incoming.iterdir()) == []
    assert scp.inbox.count() == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\0\xff\xff\xff\xff",
        b"\x01\0\0\0\0\x08" + bytes(8),
        os.urandom(4096),
        b"",
    ],
    ids=["HTTP", "4 GiB request", "short request", "noise", "silence"],
)
def test_a_stream_that_never_associates_is_closed(run_scp: Callable[..., RunningSCP], sent: bytes) -> None:
    scp = run_scp(association_timeout_s=0.5, network_timeout_s=0.5)
    with BytePeer(scp.port) as peer:
        peer.send(sent)
        assert peer.receive()[0] in {0x07, 0x00}
        wait_until(all_ended, "the connection was given up", 60)
    with BytePeer(scp.port) as honest:
        assert honest.associate()[0] == 0x02


def test_a_peer_that_stalls_inside_a_pdu_is_given_up(run_scp: Callable[..., RunningSCP]) -> None:
    scp = run_scp(network_timeout_s=0.5)
    with BytePeer(scp.port) as peer:
        peer.associate()
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3"))))
        peer.send(pdu(0x04, pdv(1, 0x00, bytes(1000)))[:-100])
        wait_until(all_ended, "the stalled association ended", 60)
    assert list(scp.inbox.incoming.iterdir()) == []


def test_a_request_without_a_data_set_is_refused_and_the_association_kept(scp: RunningSCP) -> None:
    with BytePeer(scp.port) as peer:
        peer.associate()
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3", data_set=False))))
        assert peer.status() == 0xC000
        ds = ct()
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == SUCCESS


def test_commands_and_data_may_come_in_any_fragments(scp: RunningSCP) -> None:
    ds = ct()
    request, data = store_rq(CTImageStorage, ds.SOPInstanceUID), encoded(ds)
    with BytePeer(scp.port) as peer:
        peer.associate()
        items = [pdv(1, 0x01, request[:7]), pdv(1, 0x01, b""), pdv(1, 0x03, request[7:])]
        items += [pdv(1, 0x00, data[:1]), pdv(1, 0x00, data[1:300]), pdv(1, 0x02, data[300:])]
        peer.send(pdu(0x04, b"".join(items)))
        assert peer.status() == SUCCESS
        uid = generate_uid()
        for item in (pdv(1, 0x03, store_rq(CTImageStorage, uid)), pdv(1, 0x00, data), pdv(1, 0x02, b"")):
            whole = pdu(0x04, item)
            for part in (whole[:3], whole[3:11], whole[11:]):
                peer.send(part)
        assert peer.status() == SUCCESS
    first, second = scp.inbox.entries(5)
    assert first.sha256 == second.sha256


def test_an_instance_longer_than_allowed_is_refused_and_the_association_kept(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp(into=Inbox(tmp_path / "small", min_free_bytes=0, max_instance_bytes=100_000))
    with BytePeer(scp.port) as peer:
        peer.associate()
        assert peer.store(bytes(200_000), CTImageStorage, "1.2.3") == 0xC000
        ds = ct()
        assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == SUCCESS
    assert scp.inbox.count() == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["/usr/bin/umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("limit", ["disk", "setting"])
def test_a_full_disk_is_answered_a700_and_space_that_returns_is_used_on_the_same_association(
    run_scp: Callable[..., RunningSCP], limit: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue("tiny_disk") if limit == "disk" else tmp_path
    scp = run_scp(into=Inbox(root / "inbox", min_free_bytes=0))
    filler = root / "filler"
    ds = ct(size=400)  # 320 kB
    data = encoded(ds)
    with BytePeer(scp.port) as peer:
        peer.associate()
        assert peer.store(data, CTImageStorage, ds.SOPInstanceUID) == SUCCESS
        if limit == "disk":
            fill(filler)
        else:
            scp.inbox.min_free_bytes = 1 << 60
        assert peer.store(data, CTImageStorage, ds.SOPInstanceUID) == OUT_OF_RESOURCES
        assert peer.store(data, CTImageStorage, ds.SOPInstanceUID) == OUT_OF_RESOURCES
        assert list(scp.inbox.incoming.iterdir()) == []
        if limit == "disk":
            filler.unlink()
        else:
            scp.inbox.min_free_bytes = 0
        assert peer.store(data, CTImageStorage, ds.SOPInstanceUID) == SUCCESS
        assert peer.release() == 0x06
    assert [status for _, status, _ in scp.heard.refused] == [OUT_OF_RESOURCES, OUT_OF_RESOURCES]
    assert scp.inbox.count() == 2


def fill(path: Path) -> None:
    """Fill the file system but for less than one instance."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            return


@pytest.mark.dcmtk
def test_storescu_goes_on_after_a700(
    tiny_disk: Path, run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp(into=Inbox(tiny_disk / "inbox", min_free_bytes=0))
    big, small = save(ct(size=1200), tmp_path / "big.dcm"), save(ct(), tmp_path / "small.dcm")
    outcome = dcmtk("storescu", "-v", "-nh", *to(scp), big, small, check=False)
    assert "Refused: OutOfResources" in outcome.stderr + outcome.stdout
    assert scp.inbox.count() == 1


def test_a_reception_needs_no_memory_for_the_instance(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    """Watch the process while 200 MB arrive: nothing but buffers may grow."""
    scp = run_scp(into=Inbox(tmp_path / "big", min_free_bytes=0))
    chunk = pdu(0x04, pdv(1, 0x00, bytes(120_000)))
    with BytePeer(scp.port) as peer:
        peer.associate()
        peer.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3"))))
        tracemalloc.start()
        for _ in range(1600):
            peer.send(chunk)
        peer.send(pdu(0x04, pdv(1, 0x02, b"end.")))
        assert peer.status() == SUCCESS
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert scp.inbox.entries(1)[0].size_bytes == 1600 * 120_000 + 4
    assert peak < 4_000_000


@pytest.mark.dcmtk
def test_many_associations_at_once_lose_nothing(run_scp: Callable[..., RunningSCP], tmp_path: Path) -> None:
    scp = run_scp(max_associations=12)
    folders = []
    for number in range(8):
        folder = tmp_path / f"sender{number}"
        folder.mkdir()
        folders.append(folder)
        for index in range(6):
            save(ct(size=100), folder / f"{index}.dcm")
    senders = [
        threading.Thread(target=dcmtk, args=("dcmsend", *to(scp), "--scan-directories", folder))
        for folder in folders
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    assert scp.inbox.count() == 48
    assert len({entry.sop_instance_uid for entry in scp.inbox.entries(100)}) == 48
    wait_until(all_ended, "all associations ended")


def test_threads_and_descriptors_are_given_back(scp: RunningSCP) -> None:
    def round_trip() -> None:
        with BytePeer(scp.port) as peer:
            peer.associate()
            ds = ct()
            assert peer.store(encoded(ds), CTImageStorage, ds.SOPInstanceUID) == SUCCESS
            assert peer.release() == 0x06

    round_trip()
    wait_until(all_ended, "the association ended")
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(20):
        round_trip()
    wait_until(all_ended, "all associations ended")
    after = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 1


def test_a_second_receiver_does_not_start_on_the_same_inbox(scp: RunningSCP) -> None:
    with pytest.raises(InboxError):
        start_scp(Inbox(scp.inbox.root, min_free_bytes=0))


def test_stopping_ends_open_associations_soon_and_frees_the_inbox(inbox: Inbox) -> None:
    scp = start_scp(inbox, Everybody())
    with BytePeer(scp.port) as idle, BytePeer(scp.port) as stalled:
        idle.associate()
        stalled.associate()
        stalled.send(pdu(0x04, pdv(1, 0x03, store_rq(CTImageStorage, "1.2.3"))) + b"\x04\0\0\0\xff\xff")
        wait_until(lambda: any(inbox.incoming.iterdir()), "the instance began")
        scp.scp.stop(grace_s=0.5)
        assert idle.receive()[0] == 0x07
    wait_until(all_ended, "both ended")
    again = start_scp(Inbox(inbox.root, min_free_bytes=0))
    again.scp.stop()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("192.0.2.7", "192.0.2.7"),
        ("::1", "::1"),
    ],
)
def test_addresses_are_compared_in_one_form(given: str, expected: str) -> None:
    assert plain_address(given) == expected


def test_connections_that_close_at_once_hold_no_place(scp: RunningSCP) -> None:
    """A port scanner, or the probes of a load balancer."""
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", scp.port), timeout=10):
            pass
    wait_until(lambda: scp.scp.association_count == 0, "their places are free", 60)
    with BytePeer(scp.port) as peer:
        assert peer.associate()[0] == 0x02
