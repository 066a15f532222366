"""The Query SCU: C-FIND of the Study Root model, at study, series and instance level (PS3.4 C.4.1)."""

from __future__ import annotations

import time
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dicom_node import commands, identifiers
from dicom_node.archive import Answers, ArchiveError, Listed, Sieve, keywords
from dicom_node.conversation import converse
from dicom_node.index import is_uid
from dicom_node.negotiation import IMPLICIT_VR_LITTLE_ENDIAN
from dicom_node.query import Level, Query, check
from dicom_node.scu import EXPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.conversation import Conversation
    from dicom_node.responses import Message
    from dicom_node.scu import Destination

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
SUCCESS: Final = 0x0000
CANCELLED: Final = 0xFE00
PENDING: Final = frozenset({0xFF00, 0xFF01})
PLAIN: Final = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
MAX_ANSWERS: Final = 50_000
MAX_LISTED: Final = 100_000  # instances of one study
_AFTER_CANCEL_S: Final = 10.0

# PS3.4 tables C.4-1 to C.4-3, PS3.7 annex C: what staff read, and whether another try may help.
_STATUSES: Final[Mapping[int, tuple[str, bool]]] = MappingProxyType(
    {
        0x0122: ("it does not offer this service", False),
        0x0124: ("it does not allow this node to do this", False),
        0x0211: ("it does not know this operation", False),
        0xA700: ("it is out of resources", True),
        0xA701: ("it cannot say what matches", True),
        0xA702: ("it could send none of the instances", True),
        0xA801: ("it does not know our AE title as a destination: enter it there", False),
        0xA900: ("it does not understand what is asked for", False),
        0xFE00: ("it cancelled by itself", True),
    }
)


def find(
    destination: Destination, calling_ae_title: str, query: Query, *, silence_s: float = 60.0
) -> Answers:
    """Ask an archive what it has.

    Parameters
    ----------
    destination : Destination
    calling_ae_title : str
        Ours.
    query : Query
        Of :data:`dicom_node.query.MATCHED`; its limit bounds the answers, 0 takes all up to
        :data:`MAX_ANSWERS`. Beyond it the request is cancelled.
    silence_s : float
        How long to wait for the next answer.

    Raises
    ------
    QueryError
        When the keys have no meaning.
    ArchiveError
        Saying what failed.
    """
    check(query)
    with converse(destination, calling_ae_title, [(STUDY_ROOT_FIND, list(PLAIN))]) as talk:
        return ask(talk, query, silence_s)


def inventory(
    destination: Destination, calling_ae_title: str, study_uid: str, *, silence_s: float = 60.0
) -> tuple[Listed, ...]:
    """Return all instances that an archive says a study has, asked for series by series on one association.

    Raises
    ------
    ArchiveError
        Saying what failed; there are more than :data:`MAX_LISTED` among it.
    """
    listed: list[Listed] = []
    with converse(destination, calling_ae_title, [(STUDY_ROOT_FIND, list(PLAIN))]) as talk:
        for series in ask(talk, Query(Level.SERIES, {"StudyInstanceUID": study_uid}), silence_s).found:
            keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series["SeriesInstanceUID"]}
            left = MAX_LISTED - len(listed)
            answers = ask(talk, Query(Level.IMAGE, keys, limit=max(left, 1)), silence_s)
            if not answers.complete or left < 1:
                raise ArchiveError(
                    f"a study of more than {MAX_LISTED} instances", step="query", retryable=False
                )
            listed.extend(listed_of(found) for found in answers.found)
    return tuple(listed)


def listed_of(found: Mapping[str, str]) -> Listed:
    """Return what an answer at instance level says."""
    sop_class = found.get("SOPClassUID", "")
    return Listed(found["SeriesInstanceUID"], found["SOPInstanceUID"], sop_class if is_uid(sop_class) else "")


def ask(talk: Conversation, query: Query, silence_s: float) -> Answers:
    """Query on an association that is there already; raises as :func:`find`."""
    limit = min(query.limit or MAX_ANSWERS, MAX_ANSWERS)
    sieve = Sieve(query.level, query.match, limit)
    wanted = keywords(query.level, query.match)
    elements = {keyword: query.match.get(keyword, "") for keyword in wanted}
    talk.ask(
        commands.C_FIND_RQ,
        STUDY_ROOT_FIND,
        lambda explicit: identifiers.write_question(query.level, elements, explicit=explicit),
    )
    while True:
        message = talk.next(silence_s)
        if message is None:
            raise ArchiveError(silence(talk, silence_s), step="query", retryable=True)
        status = message.response.status
        if status not in PENDING:
            talk.done()
            if status != SUCCESS:
                raise failure(status, "query")
            return sieve.answers()
        sieve.take(_read(message, wanted))
        if sieve.full:
            _cancel(talk)
            return sieve.answers()


def failure(status: int, step: str) -> ArchiveError:
    """Return what a status means. An error comment is not repeated: it may hold values."""
    words, retryable = _STATUSES.get(status, ("it could not do it", True))
    return ArchiveError(f"status 0x{status:04X}: {words}", step=step, retryable=retryable)


def silence(talk: Conversation, silence_s: float) -> str:
    """Say why there is no answer."""
    if talk.is_open:
        return f"no answer for {silence_s:.0f} s"
    return "the archive ended the association before its last answer"


def _cancel(talk: Conversation) -> None:
    """Take the query back, and let the archive finish; one that goes on and on is cut off at the end."""
    talk.cancel()
    deadline = time.monotonic() + _AFTER_CANCEL_S
    while (left_s := deadline - time.monotonic()) > 0:
        message = talk.next(left_s)
        if message is None:
            return
        if message.response.status not in PENDING:
            talk.done()
            return


def _read(message: Message, wanted: tuple[str, ...]) -> dict[str, str]:
    from pynetdicom.dsutils import decode  # noqa: PLC0415 -- heavy, and only needed to ask

    try:
        ds = decode(BytesIO(message.data), not message.explicit, is_little_endian=True)
        return identifiers.read_found(ds, wanted)
    except Exception:  # noqa: BLE001 -- edge of an answer: bytes from the wire
        return {}
