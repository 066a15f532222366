"""Fetched instances on their way into the inbox: counted, bounded in speed, of the study asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dicom_node.errors import DICOMNodeError, HeaderError, InboxFullError, InstanceTooLargeError
from dicom_node.index import read_header
from dicom_node.throttle import Throttle

if TYPE_CHECKING:
    from dicom_node.inbox import Announcement, Inbox, InboxWriter
    from dicom_node.ports import Caller

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
OUT_OF_RESOURCES: Final = 0xA700
OTHER_STUDY: Final = 0xA900  # data set does not match (PS3.4 table B.2-1)
CANNOT_UNDERSTAND: Final = 0xC000


class Arrivals:
    """Where the instances of one retrieval go.

    Parameters
    ----------
    inbox : Inbox
    caller : Caller
        The archive; stands in each entry.
    study_uid : str
        The study that was asked for: what is of another one is not stored.
    max_kib_per_s : int
        0: no bound.
    """

    def __init__(self, inbox: Inbox, caller: Caller, study_uid: str, max_kib_per_s: int = 0) -> None:
        self.inbox = inbox
        self.caller = caller
        self.study_uid = study_uid
        self.throttle = Throttle(max_kib_per_s)
        self.stored = 0
        self.received_bytes = 0
        self.refused: Counter[str] = Counter()

    def begin(self, announcement: Announcement) -> Arrival:
        """Start to take one instance."""
        return Arrival(self, announcement)


class Arrival:
    """One instance on its way: every failure becomes a status, the association goes on."""

    def __init__(self, arrivals: Arrivals, announcement: Announcement) -> None:
        self._arrivals = arrivals
        self._writer: InboxWriter | None = None
        self._failure: tuple[int, str] | None = None
        try:
            self._writer = arrivals.inbox.begin(arrivals.caller, announcement)
        except (DICOMNodeError, OSError) as error:
            self._fail(error)

    def write(self, fragment: memoryview | bytes) -> None:
        """Store bytes; those of an instance that failed are dropped."""
        self._arrivals.throttle.take(len(fragment))
        self._arrivals.received_bytes += len(fragment)
        if self._writer is None:
            return
        try:
            self._writer.write(fragment)
        except (DICOMNodeError, OSError) as error:
            self._fail(error)

    def finish(self) -> tuple[int, str]:
        """Return success only for what is durable, and of the study that was asked for."""
        if self._writer is not None:
            try:
                self._commit(self._writer)
            except (DICOMNodeError, OSError) as error:
                self._fail(error)
        if self._failure is None:
            self._arrivals.stored += 1
            return SUCCESS, ""
        status, why = self._failure
        self._arrivals.refused[why] += 1
        return status, why

    def discard(self) -> None:
        """Forget what came so far."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _commit(self, writer: InboxWriter) -> None:
        arrivals = self._arrivals
        header = read_header(writer.path, max_inflated_bytes=arrivals.inbox.max_instance_bytes)
        if header.study_instance_uid != arrivals.study_uid:
            self.discard()
            self._failure = OTHER_STUDY, "of another study"
            return
        writer.commit()

    def _fail(self, error: DICOMNodeError | OSError) -> None:
        self.discard()
        if isinstance(error, InboxFullError):
            self._failure = OUT_OF_RESOURCES, "no space"
        elif isinstance(error, InstanceTooLargeError):
            self._failure = CANNOT_UNDERSTAND, "longer than accepted here"
        elif isinstance(error, HeaderError):
            self._failure = CANNOT_UNDERSTAND, "not readable"
        else:
            self._failure = PROCESSING_FAILURE, "not stored"
