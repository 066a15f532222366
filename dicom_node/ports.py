"""What the DICOM node asks of its surroundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.inbox import InboxEntry
    from dicom_node.query import Query, StoredInstance


# Performed Procedure Step Status (PS3.3 C.4.14).
IN_PROGRESS: Final = "IN PROGRESS"
COMPLETED: Final = "COMPLETED"
DISCONTINUED: Final = "DISCONTINUED"


@dataclass(frozen=True)
class Caller:
    """Who asks for an association."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    tls: bool = False
    certificate_sha256: str = ""  # of the certificate that it showed, if it showed one


@dataclass(frozen=True)
class Decision:
    """Whether a caller may associate; ``reason`` is a code such as ``unknown_ae_title``.

    A refusal is permanent, or ``transient``: the caller may come again (PS3.8 table 9-21). Who is allowed may
    send, ask for what is stored, report on what we gave it, or some of these; a limit of 0 stands for none.
    """

    allowed: bool
    reason: str = ""
    transient: bool = False
    may_store: bool = True
    may_query: bool = False
    may_report: bool = False
    max_associations: int = 0
    max_instances_per_minute: int = 0


class CallerPolicy(Protocol):
    """Decides who may associate and for what. Called on the receiving path: it must not wait."""

    def decide(self, caller: Caller) -> Decision:
        """Say whether this caller may associate."""


class Places(Protocol):
    """The places of all receivers that share a port, and the rates of their callers.

    Called on the receiving path; what a receiver took is free again when it ends, however it does.
    """

    def enter(self, title: str, max_of_caller: int, max_in_all: int) -> int:
        """Take a place for an association of an AE title, and return its number; a bound of 0 is none.

        Raises
        ------
        NoPlaceError
            When the caller, or all callers together, have as many as they may.
        """

    def leave(self, place: int) -> None:
        """Give a place back that :meth:`enter` returned; once."""

    def pause_s(self, title: str, per_minute: int) -> float:
        """Take one instance of a caller's rate, and return how long it has to wait for that."""


class Listener(Protocol):
    """Is told what happened. Called on the receiving path: it must not wait for a database."""

    def on_accepted(self, caller: Caller) -> None:
        """Take note of an association that was accepted."""

    def on_rejected(self, caller: Caller, reason: str) -> None:
        """Take note of an association that was refused."""

    def on_received(self, entry: InboxEntry) -> None:
        """Take note of an instance that is durable and answered with success."""

    def on_refused(self, caller: Caller, status: int, reason: str) -> None:
        """Take note of an instance that was answered with a failure."""

    def on_failed(self, caller: Caller, error: Exception) -> None:
        """Take note of an unforeseen error on an association; it was aborted or answered with a failure."""


class Catalogue(Protocol):
    """Answers for what is stored, results of models among it. Its functions block."""

    def find(self, query: Query) -> list[dict[str, str]]:
        """Return one mapping of keyword to text for each match; several values are joined by backslashes.

        Each carries the attributes of its level and of those above, see :data:`dicom_node.query.RETURNED`.

        Raises
        ------
        QueryError
            When a key or value has no meaning.
        """

    def count(self, query: Query) -> int:
        """Return how many match, whatever limit and offset say."""

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Sequence[StoredInstance]:
        """Return the instances of a study, of one series of it, or the one instance."""


@dataclass(frozen=True)
class Step:
    """What a step says: its status, empty where it says nothing, its studies and the instances it made."""

    status: str
    study_instance_uids: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()


class StepKeeper(Protocol):
    """Keeps procedure steps. Its functions may wait for a database."""

    def create(self, caller: Caller, sop_instance_uid: str, step: Step) -> bool:
        """Note a new step durably; return False where there is one of this UID."""

    def update(self, sop_instance_uid: str, step: Step) -> str | None:
        """Change a step that is in progress; return the status it had before, None for an unknown one."""
