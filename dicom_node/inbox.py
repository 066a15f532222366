"""The durable inbox: what was answered with success is on the disk.

One entry is one Part 10 file: our file meta information (with the facts of the reception) and the data set
bytes as received. Each writer has a folder of its own under ``incoming``. There the file is written; before
the caller answers 0x0000, its facts (length and hash) are added, and file and folder are fsynced. Then it is
renamed into ``entries``. That rename need not be durable, which halves the commits of the file system's
journal: after a power loss :meth:`Inbox.recover` finds the file by its facts, and renames it again. Names
come from a random id and the clock at the rename, never from the data.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import json
import os
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from dicom_node import part10
from dicom_node.entries import (
    Announcement,
    DamagedEntry,
    InboxEntry,
    Listing,
    is_whole,
    read_entry,
    sync_folder,
)
from dicom_node.errors import HeaderError, InboxError, InboxFullError, InstanceTooLargeError
from dicom_node.locks import locked
from dicom_node.sop_classes import EVERY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dicom_node.ports import Caller
    from dicom_node.sop_classes import StorageClasses

__all__ = [
    "Announcement",
    "DamagedEntry",
    "Inbox",
    "InboxEntry",
    "InboxWriter",
    "Listing",
    "read_entry",
    "sync_folder",
]

_SUFFIX: Final = ".dcm"
_PRIVATE_BYTES: Final = 512
_CHECK_EVERY_BYTES: Final = 32 << 20
_WRITE_BACK_BYTES: Final = 4 << 20
_WAIT_FOR_LOCK_S: Final = 1.0  # another writer may be looking into the folder at this moment
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_CODE_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class Inbox:
    """A folder of received instances.

    Parameters
    ----------
    root : Path
        Folder of the inbox; made when missing.
    min_free_bytes : int
        Space on its file system that receiving leaves to the others.
    max_instance_bytes : int
        Longest data set that is taken.
    classes : StorageClasses
        What is taken; each way into the inbox asks it.
    writer : str
        Name of the writer that this object is, unique among those that write at the same time. Folder and
        lock have this name; a later process may take it again.
    """

    def __init__(
        self,
        root: Path,
        *,
        min_free_bytes: int,
        max_instance_bytes: int = 4 << 30,
        classes: StorageClasses = EVERY,
        writer: str = "scp",
    ) -> None:
        self.root = root
        self.classes = classes
        self.min_free_bytes = min_free_bytes
        self.max_instance_bytes = max_instance_bytes
        self.incoming = root / "incoming" / writer
        self.folder = root / "entries"
        self.quarantined = root / "quarantine"
        for folder in (root, self.incoming, self.folder, self.quarantined):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock: int | None = None

    def begin(self, caller: Caller, announcement: Announcement) -> InboxWriter:
        """Open an entry for writing.

        Raises
        ------
        InboxFullError
            When there is too little space.
        """
        return InboxWriter(self, caller, announcement)

    def commit(self, chunks: Iterable[bytes], caller: Caller, announcement: Announcement) -> InboxEntry:
        """Store a whole instance; on return it is durable.

        Raises
        ------
        InboxFullError
            When there is too little space. Nothing of the instance stays.
        InstanceTooLargeError
            When the data set is longer than allowed.
        """
        with self.begin(caller, announcement) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    def entries(self, limit: int) -> list[InboxEntry]:
        """Return the oldest entries, oldest first."""
        return self.listing(limit).entries

    def listing(self, limit: int) -> Listing:
        """Return the oldest entries, and beside them the files that are no entries of ours."""
        entries: list[InboxEntry] = []
        damaged: list[DamagedEntry] = []
        failed: dict[str, OSError] = {}
        for name in heapq.nsmallest(limit, self._names()):
            path = self.folder / name
            try:
                entries.append(read_entry(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                failed[path.stem[-32:]] = error
            except HeaderError as error:
                damaged.append(DamagedEntry(path.stem, path, error.code))
        return Listing(entries, damaged, failed)

    def count(self) -> int:
        """Return how many entries wait."""
        return sum(1 for _ in self._names())

    def oldest_received_at(self) -> datetime | None:
        """Return when the oldest waiting entry was received, from its name alone."""
        oldest = min(self._names(), default=None)
        if oldest is None or not oldest[:20].isdigit():
            return None
        return datetime.fromtimestamp(int(oldest[:20]) / 1e9, UTC)

    def _names(self) -> Iterator[str]:
        return (item.name for item in os.scandir(self.folder) if item.name.endswith(_SUFFIX))

    def remove(self, entry: InboxEntry) -> None:
        """Forget an entry that is filed elsewhere. A second call does nothing."""
        entry.path.unlink(missing_ok=True)

    def quarantine(self, entry: InboxEntry | DamagedEntry, code: str) -> Path:
        """Move an entry aside for a person; the code is part of the new name. A second call finds it done."""
        target = self.quarantine_path(entry, code)
        try:
            entry.path.rename(target)
        except FileNotFoundError:
            if not target.exists():
                raise
        sync_folder(self.quarantined)
        sync_folder(self.folder)
        return target

    def quarantine_path(self, entry: InboxEntry | DamagedEntry, code: str) -> Path:
        """Return where :meth:`quarantine` puts this entry."""
        safe = "".join(character for character in code if character in _CODE_CHARACTERS)[:40] or "unknown"
        return self.quarantined / f"{entry.id[-32:]}-{safe}{_SUFFIX}"

    def requeue(self, path: Path, entry_id: str) -> None:
        """Let what was moved aside wait again, as if it were received now."""
        path.rename(self.folder / f"{time.time_ns():020d}-{entry_id}{_SUFFIX}")
        sync_folder(self.folder)
        sync_folder(self.quarantined)

    def waits(self, entry_id: str) -> bool:
        """Whether this entry waits."""
        return next(self.folder.glob(f"*-{entry_id}{_SUFFIX}"), None) is not None

    def recover(self) -> int:
        """Take this writer's place alone, and settle what killed writers left, of this name and of others.

        What is whole becomes an entry: it may have been answered with success. The rest is removed.

        Returns
        -------
        int
            How many unfinished files were removed; none of them was answered with success.

        Raises
        ------
        InboxError
            When another process writes under this name.
        """
        if self._lock is None:
            self._lock = locked(self.incoming, time.monotonic() + _WAIT_FOR_LOCK_S)
        if self._lock is None:
            raise InboxError(f"{self.incoming}: another process receives into this inbox under this name")
        removed = self._settle(self.incoming)
        others = [item for item in self.incoming.parent.iterdir() if item.is_dir() and item != self.incoming]
        for folder in others:
            lock = locked(folder, 0)
            if lock is not None:
                try:
                    removed += self._settle(folder)
                finally:
                    os.close(lock)
        return removed

    def _settle(self, folder: Path) -> int:
        removed = 0
        for path in folder.glob(f"*{_SUFFIX}"):
            if is_whole(path):
                path.rename(self.folder / f"{time.time_ns():020d}-{path.stem}{_SUFFIX}")
            else:
                path.unlink()
                removed += 1
        sync_folder(self.folder)
        sync_folder(folder)
        return removed

    def release(self) -> None:
        """Let another process take this writer's place."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_space(self) -> None:
        """Refuse when receiving would take the space that others need.

        Raises
        ------
        InboxFullError
            When less than ``min_free_bytes`` is free.
        """
        space = os.statvfs(self.incoming)
        if space.f_bavail * space.f_frsize < self.min_free_bytes:
            raise InboxFullError("less free space than the configured minimum; the sender may try again")


class InboxWriter:
    """An entry being written; leaving the block without :meth:`commit` removes it."""

    def __init__(self, inbox: Inbox, caller: Caller, announcement: Announcement) -> None:
        inbox.check_space()
        self._inbox = inbox
        self._facts = {
            "calling_ae_title": caller.calling_ae_title,
            "called_ae_title": caller.called_ae_title,
            "address": caller.address,
        }
        self.id = uuid.uuid4().hex
        self._path = inbox.incoming / f"{self.id}{_SUFFIX}"
        self._announcement = announcement
        self._began = time.monotonic()
        self._hash = hashlib.sha256()
        self._size = 0
        self._unchecked = 0
        self._written_back = 0
        self._committed = False
        self._file: int | None = None
        head = part10.encode(
            sop_class_uid=_safe_uid(announcement.sop_class_uid),
            sop_instance_uid=_safe_uid(announcement.sop_instance_uid),
            transfer_syntax_uid=announcement.transfer_syntax_uid,
            calling_ae_title=caller.calling_ae_title,
            called_ae_title=caller.called_ae_title,
            private=bytes(_PRIVATE_BYTES),
        )
        self._private_offset = len(head) - _PRIVATE_BYTES
        try:
            self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            self._write_all(head)
        except OSError as error:
            self.discard()
            raise _translated(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def path(self) -> Path:
        """Where the entry lies until it is committed; what was written may be read there."""
        return self._path

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes of the data set.

        Raises
        ------
        InboxFullError, InstanceTooLargeError
            The entry is then discarded.
        """
        self._size += len(chunk)
        self._unchecked += len(chunk)
        if self._size > self._inbox.max_instance_bytes:
            self.discard()
            raise InstanceTooLargeError("data set longer than the configured maximum")
        try:
            if self._unchecked >= _CHECK_EVERY_BYTES:
                self._unchecked = 0
                self._inbox.check_space()
            self._write_all(chunk)
            self._write_back()
        except InboxFullError:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise _translated(error) from error
        self._hash.update(chunk)

    def commit(self) -> InboxEntry:
        """Make the entry durable and visible; from now on it counts as received, in the order of commits."""
        if self._file is None:
            raise InboxError("the entry was discarded before it was committed")
        sha256 = self._hash.hexdigest()
        private = json.dumps({**self._facts, "sha256": sha256, "size_bytes": self._size}).encode()
        try:
            os.pwrite(self._file, private.ljust(_PRIVATE_BYTES), self._private_offset)
            os.fsync(self._file)
            sync_folder(self._inbox.incoming)
            os.close(self._file)
            self._file = None
            received_ns = time.time_ns()
            target = self._inbox.folder / f"{received_ns:020d}-{self.id}{_SUFFIX}"
            self._path.rename(target)
            self._committed = True
        except OSError as error:
            self.discard()
            raise _translated(error) from error
        return InboxEntry(
            id=self.id,
            path=target,
            received_at=datetime.fromtimestamp(received_ns / 1e9, UTC),
            size_bytes=self._size,
            sha256=sha256,
            sop_class_uid=_safe_uid(self._announcement.sop_class_uid),
            sop_instance_uid=_safe_uid(self._announcement.sop_instance_uid),
            transfer_syntax_uid=self._announcement.transfer_syntax_uid,
            receiving_s=time.monotonic() - self._began,
            **self._facts,
        )

    def discard(self) -> None:
        """Remove an entry that was not committed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not self._committed:
            self._path.unlink(missing_ok=True)

    def _write_back(self) -> None:
        """Let the disk begin with what came so far: the fsync at the end then has less to do."""
        if self._file is not None and self._size - self._written_back >= _WRITE_BACK_BYTES:
            count = self._size - self._written_back
            # Linux starts to write dirty pages of the range and does not wait; pages that are dirty are kept.
            os.posix_fadvise(self._file, self._written_back, count, os.POSIX_FADV_DONTNEED)
            self._written_back = self._size

    def _write_all(self, chunk: bytes | memoryview) -> None:
        if self._file is None:
            raise InboxError("the entry was discarded")
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._file, view) :]


def _safe_uid(text: str) -> str:
    """Return the text when a file meta element can carry it, else nothing; it is never made valid."""
    return text if text.isascii() and text.isprintable() and len(text) <= 64 else ""


def _translated(error: OSError) -> Exception:
    if error.errno in _NO_SPACE:
        return InboxFullError("no space left for the inbox; expected the sender to try again")
    return InboxError(f"the inbox cannot be written (errno {error.errno})")
