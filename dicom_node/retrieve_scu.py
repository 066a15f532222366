"""The Retrieve SCU: C-MOVE to ourselves and C-GET (PS3.4 C.4.2, C.4.3).

After a C-MOVE instances come over our SCP like any other. Those of a C-GET come on the association that asks
for them and go straight into the inbox, byte for byte: each is durable before it is answered.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dicom_node import commands, identifiers
from dicom_node.archive import ArchiveError, Progress, Retrieval
from dicom_node.conversation import converse
from dicom_node.query import Level
from dicom_node.query_scu import CANCELLED, PENDING, PLAIN, SUCCESS, failure, silence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.archive import Watch
    from dicom_node.arriving import Arrivals
    from dicom_node.conversation import Conversation
    from dicom_node.scu import Destination

STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
SOME_FAILED: Final = 0xB000
NONE_POSSIBLE: Final = 0xA702
_LOOK_EVERY_S: Final = 1.0
_AFTER_CANCEL_S: Final = 20.0
_MAX_CONTEXTS: Final = 127  # PS3.8 9.3.2.2 allows 128; one is the request's

# The encodings that studies are stored in, the most frequent first.
_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # explicit VR little endian
    "1.2.840.10008.1.2",  # implicit VR little endian
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS, near lossless
    "1.2.840.10008.1.2.4.57",  # JPEG lossless, process 14
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # explicit VR big endian
    "1.2.840.10008.1.2.4.201",  # HTJ2K, lossless only
    "1.2.840.10008.1.2.4.203",  # HTJ2K
    "1.2.840.10008.1.2.4.102",  # MPEG-4
)
# Where an archive does not say of which classes a study is (PS3.4 B.5): the frequent ones.
USUAL_CLASSES: Final = tuple(
    f"1.2.840.10008.5.1.4.1.1.{suffix}"
    for part in (
        "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 3.1 4 4.1 4.2 4.3 4.4 6.1 6.2 7 7.1 7.2 7.3 7.4 9.1.1",
        "9.2.1 11.1 12.1 12.1.1 12.2 12.2.1 13.1.1 13.1.2 13.1.3 20 30 66 66.1 66.2 66.3 66.4 66.5 67 77.1.1",
        "77.1.1.1 77.1.2 77.1.2.1 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.6 88.11 88.22 88.33 88.34",
        "88.35 88.40 88.50 88.59 88.65 88.67 88.68 104.1 104.2 128 128.1 130 481.1 481.2 481.3 481.5 481.8",
        "3 5 8 29 12.3 12.77",
    )
    for suffix in part.split()
)


def move(
    destination: Destination,
    calling_ae_title: str,
    keys: Mapping[str, str],
    watch: Watch,
    *,
    silence_s: float = 300.0,
) -> Retrieval:
    """Have an archive send instances to our own AE title.

    Parameters
    ----------
    destination : Destination
        The archive; it must know where our AE title is.
    calling_ae_title : str
        Ours, and the destination of the instances.
    keys : mapping
        StudyInstanceUID, and SeriesInstanceUID and SOPInstanceUID below it.
    watch : Watch
    silence_s : float
        After so long without progress, by the archive's counts or by what arrives, it is given up.

    Raises
    ------
    ArchiveError
        Saying what failed.
    """
    with converse(destination, calling_ae_title, [(STUDY_ROOT_MOVE, list(PLAIN))]) as talk:
        _ask(talk, commands.C_MOVE_RQ, STUDY_ROOT_MOVE, keys, calling_ae_title)
        found = _follow(talk, watch, silence_s)
    _refuse(found)
    return found


def get(
    destination: Destination,
    calling_ae_title: str,
    keys: Mapping[str, str],
    watch: Watch,
    arrivals: Arrivals,
    *,
    sop_classes: Sequence[str] = (),
    silence_s: float = 300.0,
) -> Retrieval:
    """Fetch instances on the association that asks for them.

    Parameters
    ----------
    arrivals : Arrivals
        Takes the instances.
    sop_classes : sequence of str
        Of what is asked for; none: the usual ones. Those that the inbox does not take are left out.
    destination, calling_ae_title, keys, watch, silence_s
        As :func:`move`.

    Raises
    ------
    ArchiveError
        Saying what failed.
    """
    from pynetdicom import build_role  # noqa: PLC0415 -- heavy, and only needed here

    accepts = arrivals.inbox.classes.accepts
    classes = [uid for uid in dict.fromkeys(sop_classes or USUAL_CLASSES) if accepts(uid)][:_MAX_CONTEXTS]
    if not classes:
        raise ArchiveError("none of its SOP classes is taken here", step="retrieve", retryable=False)
    roles = [build_role(uid, scu_role=False, scp_role=True) for uid in classes]
    contexts = [(STUDY_ROOT_GET, list(PLAIN)), *storage_contexts(classes)]
    with converse(destination, calling_ae_title, contexts, extended=roles, begin=arrivals.begin) as talk:
        _ask(talk, commands.C_GET_RQ, STUDY_ROOT_GET, keys)
        found = _follow(talk, _Own(watch, arrivals), silence_s)
    if not arrivals.refused:
        _refuse(found)
    return replace(found, stored=arrivals.stored, refused=dict(arrivals.refused))


def storage_contexts(classes: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return presentation contexts for the instances of a C-GET.

    In one context a peer picks a single transfer syntax for all. So each has its own, as far as the 128 of an
    association reach; the rest share one.
    """
    apart = max(_MAX_CONTEXTS // len(classes) - 1, 0)
    contexts = []
    for uid in classes:
        contexts += [(uid, [syntax]) for syntax in _SYNTAXES[:apart]]
        if _SYNTAXES[apart:]:
            contexts.append((uid, list(_SYNTAXES[apart:])))
    return contexts


class _Own:
    """A watch that knows what came over our own association."""

    def __init__(self, watch: Watch, arrivals: Arrivals) -> None:
        self._watch = watch
        self._arrivals = arrivals

    def arrived(self) -> int:
        """Return bytes, not instances: one that takes its time is no silence."""
        return self._arrivals.received_bytes

    def goes_on(self, progress: Progress) -> bool:
        """Ask the other."""
        return self._watch.goes_on(progress)


def _ask(
    talk: Conversation, field: int, sop_class_uid: str, keys: Mapping[str, str], move_destination: str = ""
) -> None:
    level = Level.STUDY
    if keys.get("SeriesInstanceUID"):
        level = Level.IMAGE if keys.get("SOPInstanceUID") else Level.SERIES
    talk.ask(
        field,
        sop_class_uid,
        lambda explicit: identifiers.write_question(level, keys, explicit=explicit),
        move_destination,
    )


def _follow(talk: Conversation, watch: Watch, silence_s: float) -> Retrieval:
    """Go through the responses up to the last one."""
    progress, cancelled = Progress(), False
    seen: tuple[Progress, int] | None = None
    heard_at = looked_at = time.monotonic()
    deadline = float("inf")
    while True:
        message = talk.next(_LOOK_EVERY_S)
        if message is not None:
            progress = _progress(message.response, progress)
            if message.response.status not in PENDING:
                talk.done()
                return _concluded(message.response.status, progress, cancelled=cancelled)
        elif not talk.is_open:
            raise ArchiveError(silence(talk, 0), step="retrieve", retryable=True)
        now = time.monotonic()
        if now - looked_at < _LOOK_EVERY_S:
            continue
        looked_at = now
        state = (progress, watch.arrived())
        if state != seen:
            seen, heard_at = state, now
        if not cancelled and not watch.goes_on(progress):
            talk.cancel()
            cancelled, deadline = True, now + _AFTER_CANCEL_S
        if now > deadline:
            return Retrieval(progress, cancelled=True)
        if now - heard_at > silence_s:
            raise ArchiveError(f"no progress for {silence_s:.0f} s", step="retrieve", retryable=True)


def _progress(response: commands.Response, before: Progress) -> Progress:
    """Take the counts of a response; what it leaves out stays as it was."""
    return Progress(
        completed=before.completed if response.completed is None else response.completed,
        failed=before.failed if response.failed is None else response.failed,
        warnings=before.warnings if response.warnings is None else response.warnings,
        remaining=response.remaining,
    )


def _concluded(status: int, progress: Progress, *, cancelled: bool) -> Retrieval:
    if cancelled or status == CANCELLED:
        return Retrieval(progress, cancelled=True)
    # Some of it failing is for those to judge who know what was asked for, and what came.
    if status in {SUCCESS, SOME_FAILED, NONE_POSSIBLE}:
        return Retrieval(progress, status=status)
    raise failure(status, "retrieve")


def _refuse(found: Retrieval) -> None:
    if found.status == NONE_POSSIBLE and not found.progress.completed:
        raise failure(found.status, "retrieve")
