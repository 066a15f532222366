from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import stat
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.errors import InboxError, InboxFullError, InstanceTooLargeError
from dicom_node.inbox import Announcement, Inbox, InboxEntry
from dicom_node.ports import Caller
from tests.dicom_node.support import CALLER, ct, encoded

ANNOUNCED = Announcement(CTImageStorage, "1.2.3.4", ExplicitVRLittleEndian)


def put(inbox: Inbox, data: bytes = b"bytes as received", announced: Announcement = ANNOUNCED) -> InboxEntry:
    return inbox.commit([data], CALLER, announced)


def test_an_entry_comes_back_as_it_was_committed(inbox: Inbox) -> None:
    data = encoded(ct())
    entry = put(inbox, data)
    assert inbox.entries(10) == [entry]
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.size_bytes == len(data)
    assert (entry.calling_ae_title, entry.called_ae_title, entry.address) == ("PACS", "CLOISTER", "127.0.0.1")
    assert (entry.sop_class_uid, entry.sop_instance_uid) == (CTImageStorage, "1.2.3.4")
    assert entry.transfer_syntax_uid == ExplicitVRLittleEndian


def test_the_file_is_a_part_10_file_with_the_bytes_as_received(inbox: Inbox) -> None:
    ds = ct()
    data = encoded(ds)
    entry = put(inbox, data, Announcement(CTImageStorage, ds.SOPInstanceUID, ExplicitVRLittleEndian))
    content = entry.path.read_bytes()
    read = pydicom.dcmread(BytesIO(content))
    assert read == ds
    assert content.endswith(data)
    assert read.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert read.file_meta.SourceApplicationEntityTitle == "PACS"
    length = read.file_meta.FileMetaInformationGroupLength
    assert len(content) == 132 + 12 + length + len(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(chunks=st.lists(st.binary(max_size=300), max_size=6))
def test_however_the_bytes_come_the_same_bytes_are_stored(inbox: Inbox, chunks: list[bytes]) -> None:
    entry = inbox.commit(chunks, CALLER, ANNOUNCED)
    whole = b"".join(chunks)
    assert entry.path.read_bytes().endswith(whole)
    assert (entry.size_bytes, entry.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    inbox.remove(entry)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
def test_no_uid_of_the_peer_ever_becomes_part_of_a_path(inbox: Inbox, text: str) -> None:
    entry = put(inbox, announced=Announcement(text, text, ExplicitVRLittleEndian))
    stamp, _, name = entry.path.stem.partition("-")
    assert stamp.isdigit()
    assert name == entry.id
    assert entry.path.parent == inbox.folder
    assert entry.id.isalnum()
    moved = inbox.quarantine(entry, f"code/../{text}")
    assert moved.parent == inbox.quarantined
    assert moved.is_file()


def test_entries_are_the_oldest_first_and_limited(inbox: Inbox) -> None:
    written = [put(inbox, bytes([number])) for number in range(5)]
    assert inbox.entries(3) == written[:3]
    assert inbox.oldest_received_at() == written[0].received_at
    assert inbox.count() == 5


def test_an_entry_is_as_old_as_its_commit_however_long_it_took_to_come(inbox: Inbox) -> None:
    with inbox.begin(CALLER, ANNOUNCED) as slow:
        slow.write(b"the first half")
        quick = put(inbox)
        begun = datetime.now(UTC)
        late = slow.commit()
    assert late.received_at >= begun
    assert inbox.entries(2) == [quick, late]
    assert inbox.oldest_received_at() == quick.received_at


def test_an_empty_inbox_has_no_oldest_entry(inbox: Inbox) -> None:
    assert inbox.oldest_received_at() is None
    assert inbox.entries(5) == []


def test_removing_and_quarantining_twice_is_the_same_as_once(inbox: Inbox) -> None:
    first, second = put(inbox), put(inbox)
    inbox.remove(first)
    inbox.remove(first)
    moved = inbox.quarantine(second, "truncated")
    assert inbox.quarantine(second, "truncated") == moved
    assert moved.name == f"{second.id}-truncated.dcm"
    assert inbox.entries(5) == []


def test_nobody_else_can_read_what_was_received(inbox: Inbox) -> None:
    entry = put(inbox)
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(inbox.folder.stat().st_mode) == 0o700


def test_an_entry_is_seen_only_after_it_was_committed(inbox: Inbox) -> None:
    with inbox.begin(CALLER, ANNOUNCED) as writer:
        writer.write(b"half of it")
        assert inbox.entries(5) == []
    assert list(inbox.incoming.iterdir()) == []
    with pytest.raises(InboxError):
        writer.commit()


def test_file_and_folder_are_synced_before_the_entry_is_seen(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        visible = "seen" if any(inbox.folder.iterdir()) else "hidden"
        order.append(f"{'folder' if name == str(inbox.incoming) else 'file'} {visible}")
        real_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    put(inbox)
    assert order == ["file hidden", "folder hidden"]


def test_too_little_space_is_refused_and_space_that_returns_is_used(tmp_path: Path) -> None:
    greedy = Inbox(tmp_path / "inbox", min_free_bytes=1 << 60)
    with pytest.raises(InboxFullError):
        put(greedy)
    assert list(greedy.incoming.iterdir()) == []
    greedy.min_free_bytes = 0
    assert put(greedy).path.is_file()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, InboxFullError), (errno.EDQUOT, InboxFullError), (errno.EIO, InboxError)],
)
@pytest.mark.parametrize("call", ["write", "fsync", "pwrite"])
def test_a_disk_that_fails_leaves_nothing_behind(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: type[Exception]
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InboxError) as caught:
            put(inbox)
    assert type(caught.value) is expected
    assert list(inbox.incoming.iterdir()) == []
    assert inbox.entries(5) == []
    assert put(inbox).path.is_file()


def test_an_instance_longer_than_allowed_is_refused(tmp_path: Path) -> None:
    small = Inbox(tmp_path / "inbox", min_free_bytes=0, max_instance_bytes=1000)
    with pytest.raises(InstanceTooLargeError):
        small.commit([bytes(900), bytes(101)], CALLER, ANNOUNCED)
    assert list(small.incoming.iterdir()) == []
    assert put(small, bytes(1000)).size_bytes == 1000


def test_files_that_no_receiver_finished_are_set_apart(inbox: Inbox) -> None:
    good = put(inbox)
    (inbox.folder / "00000000000000000001-ab.dcm").write_bytes(b"no Part 10 file")
    cut = put(inbox)
    cut.path.write_bytes(cut.path.read_bytes()[:-1])
    listing = inbox.listing(10)
    assert listing.entries == [good]
    assert [item.code for item in listing.damaged] == ["not_part10", "not_an_entry"]


def test_recovery_removes_what_a_killed_receiver_left_half_written(inbox: Inbox) -> None:
    entry = put(inbox)
    writer = inbox.begin(CALLER, ANNOUNCED)
    writer.write(b"half of it")
    fresh = Inbox(inbox.root, min_free_bytes=0)
    assert fresh.recover() == 1
    assert list(fresh.incoming.iterdir()) == []
    assert fresh.entries(5) == [entry]


def test_one_receiver_holds_an_inbox_alone_until_it_lets_go(inbox: Inbox) -> None:
    inbox.recover()
    other = Inbox(inbox.root, min_free_bytes=0)
    with pytest.raises(InboxError):
        other.recover()
    inbox.release()
    other.recover()
    other.release()


def test_a_writer_settles_what_a_killed_one_of_another_name_left(inbox: Inbox) -> None:
    killed = Inbox(inbox.root, min_free_bytes=0, writer="killed")
    killed.begin(CALLER, ANNOUNCED).write(b"half of it")
    fresh = Inbox(inbox.root, min_free_bytes=0)
    assert fresh.recover() == 1
    assert list(killed.incoming.iterdir()) == []
    fresh.release()


def test_what_a_living_writer_is_at_is_left_alone(inbox: Inbox) -> None:
    living = Inbox(inbox.root, min_free_bytes=0, writer="living")
    living.recover()
    writer = living.begin(CALLER, ANNOUNCED)
    writer.write(b"the first half ")
    fresh = Inbox(inbox.root, min_free_bytes=0)
    assert fresh.recover() == 0
    writer.write(b"and the second")
    entry = writer.commit()
    assert fresh.entries(5) == [entry]
    living.release()
    fresh.release()


def test_what_was_answered_before_its_rename_was_durable_comes_back(inbox: Inbox) -> None:
    entry = put(inbox)
    entry.path.rename(inbox.incoming / f"{entry.id}.dcm")  # as after a power loss
    assert inbox.entries(5) == []
    assert inbox.recover() == 0
    (found,) = inbox.entries(5)
    assert (found.id, found.sha256, found.size_bytes) == (entry.id, entry.sha256, entry.size_bytes)


def test_facts_without_their_bytes_make_no_entry(inbox: Inbox) -> None:
    entry = put(inbox)
    content = bytearray(entry.path.read_bytes())
    content[-20:] = bytes(20)  # as a file system may leave blocks that were not written
    (inbox.incoming / f"{entry.id}.dcm").write_bytes(content)
    entry.path.unlink()
    assert inbox.recover() == 1
    assert inbox.entries(5) == []
    assert list(inbox.incoming.iterdir()) == []


def _write_until_killed(root: Path, started: Any) -> None:
    inbox = Inbox(root, min_free_bytes=0)
    inbox.recover()
    number = 0
    while True:
        number += 1
        entry = put(inbox, number.to_bytes(4, "big") * 5000)
        started.send((entry.id, entry.sha256))


def test_kill_9_loses_nothing_whose_commit_returned(inbox: Inbox) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write_until_killed, args=(inbox.root, sender))
    child.start()
    promised = [receiver.recv() for _ in range(50)]
    child.kill()
    child.join(10)
    sender.close()
    while receiver.poll():
        try:
            promised.append(receiver.recv())
        except EOFError:
            break
    fresh = Inbox(inbox.root, min_free_bytes=0)
    fresh.recover()
    listing = fresh.listing(100_000)
    assert listing.damaged == []
    stored = {(entry.id, entry.sha256) for entry in listing.entries}
    assert set(promised) <= stored
    fresh.release()


def test_an_ae_title_that_is_no_ascii_does_not_stop_the_reception(inbox: Inbox) -> None:
    entry = inbox.commit([b"x"], Caller("ÄÖÜ" * 5, "C" * 40, "::1"), ANNOUNCED)
    assert inbox.entries(1) == [entry]
