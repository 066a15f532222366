"""Entries of the inbox: what a file there says of its reception, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from dicom_node import part10
from dicom_node.errors import HeaderError

if TYPE_CHECKING:
    from pathlib import Path

_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Announcement:
    """What a C-STORE request says before its data set comes (PS3.7 9.1.1), as text from the wire."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class InboxEntry:
    """One received instance. The UIDs are those of the request, not yet checked against the data set.

    ``receiving_s``: how long it took to come, known while it is received.
    """

    id: str
    path: Path
    calling_ae_title: str
    called_ae_title: str
    address: str
    received_at: datetime
    size_bytes: int
    sha256: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    receiving_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class DamagedEntry:
    """A file among the entries that no receiver of ours finished."""

    id: str
    path: Path
    code: str


@dataclass(frozen=True)
class Listing:
    """What waits in the inbox, oldest first; ``failed`` says what the disk answered, by entry id."""

    entries: list[InboxEntry]
    damaged: list[DamagedEntry]
    failed: dict[str, OSError]


def read_entry(path: Path) -> InboxEntry:
    """Read an entry back from its file.

    Raises
    ------
    HeaderError
        ``not_an_entry`` when the file was not written by an :class:`InboxWriter`, or not to its end.
    """
    stamp, _, entry_id = path.stem.partition("-")
    return _read(path, entry_id, stamp)


def _read(path: Path, entry_id: str, stamp: str) -> InboxEntry:
    with path.open("rb") as file:
        meta = part10.decode(file.read(4096))
        size_on_disk = os.fstat(file.fileno()).st_size
    try:
        facts = json.loads(meta.values.get(0x0102, b""))
        entry = InboxEntry(
            id=entry_id,
            path=path,
            calling_ae_title=str(facts["calling_ae_title"]),
            called_ae_title=str(facts["called_ae_title"]),
            address=str(facts["address"]),
            received_at=datetime.fromtimestamp(int(stamp) / 1e9, UTC),
            size_bytes=int(facts["size_bytes"]),
            sha256=str(facts["sha256"]),
            sop_class_uid=meta.uid(0x0002),
            sop_instance_uid=meta.uid(0x0003),
            transfer_syntax_uid=meta.uid(0x0010),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise HeaderError("not_an_entry", f"{path.name}: no facts of a reception in it") from error
    if size_on_disk != meta.data_offset + entry.size_bytes:
        raise HeaderError("not_an_entry", f"{path.name}: not as long as it was when it was received")
    return entry


def is_whole(path: Path) -> bool:
    """Whether a file is all that its facts say: a power loss may leave facts and length without the bytes."""
    try:
        entry = _read(path, path.stem, "0")
    except HeaderError:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(-entry.size_bytes, os.SEEK_END)
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == entry.sha256


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
