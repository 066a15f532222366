"""From a multipart message to inbox entries, while it arrives; for STOW-RS, and for WADO-RS as a client.

Each part goes straight into an entry, whose data set bytes are those received. Nothing of a part stays unless
it was whole, its header could be read and the entry is durable. All functions block.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from dicom_node import negotiation, part10
from dicom_node.dicomweb.multipart import MultipartParser, PartBegin, PartData
from dicom_node.errors import DICOMNodeError, HeaderError, InboxError, InboxFullError, InstanceTooLargeError
from dicom_node.inbox import Announcement
from dicom_node.index import is_uid, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.dicomweb.multipart import Event
    from dicom_node.inbox import Inbox, InboxWriter
    from dicom_node.ports import Caller

MAX_PARTS: Final = 20_000
DICOM: Final = "application/dicom"
_SHORTEST_ELEMENT: Final = 8
_PIECE_BYTES: Final = 1 << 20
_ANNOUNCED: Final = (0x0002, 0x0003, 0x0010)  # SOP class, SOP instance, transfer syntax
_PREFIX_BYTES: Final = 132  # preamble and DICM (PS3.10 7.1)


class Refusal(Enum):
    """Why an instance was not stored; the value is its place in the answer, see :data:`REASONS`."""

    FULL = "full"  # may be tried again
    NOT_WRITABLE = "not_writable"  # may be tried again
    TOO_LARGE = "too_large"
    OTHER_MEDIA_TYPE = "other_media_type"
    NOT_READABLE = "not_readable"
    OTHER_STUDY = "other_study"  # than the path names
    SOP_CLASS = "sop_class"
    TRANSFER_SYNTAX = "transfer_syntax"


# PS3.18 table I.2-2, PS3.4 table B.2-1: Failure Reason (0008,1197).
REASONS: Final = {
    Refusal.FULL: 0xA700,
    Refusal.NOT_WRITABLE: 0x0110,
    Refusal.TOO_LARGE: 0xC000,
    Refusal.OTHER_MEDIA_TYPE: 0xC000,
    Refusal.NOT_READABLE: 0xC000,
    Refusal.OTHER_STUDY: 0xA900,
    Refusal.SOP_CLASS: 0x0122,
    Refusal.TRANSFER_SYNTAX: 0xC122,
}


class TooManyPartsError(DICOMNodeError):
    """A message of more parts than one request may have."""


@dataclass(frozen=True)
class Outcome:
    """What became of one part. UIDs are those of its data set, else of its file meta information, or empty.

    Study and series are known of what was stored.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    refusal: Refusal | None = None


class Storing:
    """One request that stores.

    Parameters
    ----------
    inbox : Inbox
    caller : Caller
        Stands in each entry.
    boundary : str
    study_uid : str
        The study that every instance must be of; empty for any.
    """

    def __init__(self, inbox: Inbox, caller: Caller, boundary: str, study_uid: str = "") -> None:
        self._inbox = inbox
        self._caller = caller
        self._study_uid = study_uid
        self._parser = MultipartParser(boundary)
        self._outcomes: list[Outcome] = []
        self._part: _Part | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the message.

        Raises
        ------
        MultipartError
        TooManyPartsError
        """
        for event in self._parser.feed(chunk):
            self._take(event)

    def finish(self) -> tuple[Outcome, ...]:
        """Say that the message is over; return what became of its parts.

        Raises
        ------
        MultipartError
            When it was cut off.
        """
        self._parser.close()
        return tuple(self._outcomes)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of the parts so far."""
        return tuple(self._outcomes)

    def abandon(self) -> None:
        """Remove what is half-written. A second call does nothing."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _take(self, event: Event) -> None:
        if isinstance(event, PartBegin):
            if len(self._outcomes) >= MAX_PARTS:
                raise TooManyPartsError(f"multipart: expected at most {MAX_PARTS} parts")
            self._part = _Part(self._inbox, self._caller, self._study_uid, event)
        elif self._part is None:
            return
        elif isinstance(event, PartData):
            self._part.write(event.data)
        else:
            self._outcomes.append(self._part.finish())
            self._part = None


class _Part:
    """A Part 10 file on its way into an entry: its file meta information is read, the rest is written."""

    def __init__(self, inbox: Inbox, caller: Caller, study_uid: str, begin: PartBegin) -> None:
        self._inbox = inbox
        self._caller = caller
        self._study_uid = study_uid
        self._head = b""
        self._announced = Announcement("", "", "")
        self._writer: InboxWriter | None = None
        kind = begin.content_type
        other = kind is not None and kind.name != DICOM
        self._refusal = Refusal.OTHER_MEDIA_TYPE if other else None

    def write(self, data: bytes) -> None:
        """Take the next bytes of the file; those of one that is refused already are dropped."""
        if self._refusal is None:
            try:
                if self._writer is not None:
                    self._writer.write(data)
                else:
                    self._head += data
                    self._open(whole=False)
            except (HeaderError, InboxError) as error:
                self._refuse(error)

    def finish(self) -> Outcome:
        """Make the entry durable if the instance can be filed."""
        try:
            if self._refusal is None and self._writer is None:
                self._open(whole=True)
            if self._writer is not None:
                return self._commit(self._writer)
        except (HeaderError, InboxError, OSError) as error:
            self._refuse(error)
        finally:
            self.discard()
        return self._refused(self._refusal or Refusal.NOT_READABLE)

    def discard(self) -> None:
        """Remove an entry that is not durable."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _open(self, *, whole: bool) -> None:
        """Open the entry once the file meta information is there; until then wait for more."""
        complete = whole or len(self._head) > part10.MAX_META_BYTES
        try:
            meta = part10.decode(self._head)
        except HeaderError:
            if complete or (len(self._head) >= _PREFIX_BYTES and not self._head.startswith(b"DICM", 128)):
                raise
            return
        if not complete and len(self._head) < meta.data_offset + _SHORTEST_ELEMENT:
            return
        announced = Announcement(*(uid if is_uid(uid) else "" for uid in map(meta.uid, _ANNOUNCED)))
        if not announced.transfer_syntax_uid:
            raise HeaderError("bad_file_meta", "no valid TransferSyntaxUID in the file meta information")
        self._announced = announced
        if announced.transfer_syntax_uid not in negotiation.transfer_syntaxes():
            self._refusal = Refusal.TRANSFER_SYNTAX
            return
        self._writer = self._inbox.begin(self._caller, announced)
        self._writer.write(self._head[meta.data_offset :])
        self._head = b""

    def _commit(self, writer: InboxWriter) -> Outcome:
        header = read_header(writer.path, max_inflated_bytes=self._inbox.max_instance_bytes)
        announced, syntax = self._announced, header.transfer_syntax_uid
        self._announced = Announcement(header.sop_class_uid, header.sop_instance_uid, syntax)
        if not self._inbox.classes.accepts(header.sop_class_uid):
            return self._refused(Refusal.SOP_CLASS)
        if self._study_uid not in {"", header.study_instance_uid}:
            return self._refused(Refusal.OTHER_STUDY)
        if self._announced == announced:
            writer.commit()
        else:
            self._copy(writer.path)
        return Outcome(
            header.sop_class_uid,
            header.sop_instance_uid,
            header.study_instance_uid,
            header.series_instance_uid,
        )

    def _copy(self, path: Path) -> None:
        """Store the data set under its own UIDs, where the file meta information named others, or none."""
        with path.open("rb") as file:
            file.seek(part10.decode(file.read(part10.MAX_META_BYTES)).data_offset)
            self._inbox.commit(iter(lambda: file.read(_PIECE_BYTES), b""), self._caller, self._announced)

    def _refused(self, refusal: Refusal) -> Outcome:
        announced = self._announced
        return Outcome(announced.sop_class_uid, announced.sop_instance_uid, refusal=refusal)

    def _refuse(self, error: HeaderError | InboxError | OSError) -> None:
        self._refusal = next((refusal for kind, refusal in _BY_ERROR if isinstance(error, kind)))
        self._head = b""
        self.discard()


_BY_ERROR: Final = (
    (InboxFullError, Refusal.FULL),
    (InstanceTooLargeError, Refusal.TOO_LARGE),
    (InboxError, Refusal.NOT_WRITABLE),
    (OSError, Refusal.NOT_WRITABLE),  # what was written cannot be read back
    (HeaderError, Refusal.NOT_READABLE),
)
