"""An archive asked over DICOMweb: QIDO-RS search and WADO-RS retrieval into the inbox (PS3.18 10.4, 10.6).

What comes is streamed: an instance goes from the socket into its entry, byte for byte as the archive sends
it, and is durable before it counts.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from dicom_node import tls
from dicom_node.archive import Answers, ArchiveError, Listed, Progress, Retrieval, Sieve, keywords
from dicom_node.dicomweb import http, media
from dicom_node.dicomweb.multipart import MultipartError, boundary_of
from dicom_node.dicomweb.storing import Storing, TooManyPartsError
from dicom_node.index import is_uid
from dicom_node.query import Level, Query, check
from dicom_node.query_scu import MAX_ANSWERS, MAX_LISTED, listed_of
from dicom_node.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from dicom_node.archive import Watch
    from dicom_node.dicomweb.http import WebDestination
    from dicom_node.inbox import Inbox
    from dicom_node.ports import Caller

PAGE: Final = 500
MAX_PAGE_BYTES: Final = 64 << 20
MAX_VALUE: Final = 4096
_LOOK_EVERY_S: Final = 1.0
_JSON_TYPES: Final = frozenset({media.JSON, "application/json"})
_INSTANCES: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PATHS: Final = {Level.STUDY: "studies", Level.SERIES: "series", Level.IMAGE: "instances"}


def find(destination: WebDestination, query: Query) -> Answers:
    """Ask an archive what it has; raises as :func:`dicom_node.query_scu.find`.

    Below the study level a query should name one study: not every server searches all of them.
    """
    check(query)
    limit = min(query.limit or MAX_ANSWERS, MAX_ANSWERS)
    sieve = Sieve(query.level, query.match, limit)
    with _client(destination) as client:
        offset = 0
        while not sieve.full:
            answers, more = _page(client, destination, query, offset)
            before = sieve.kept
            for answer in answers:
                sieve.take(answer)
            offset += len(answers)
            # A server that overlooks the offset gives the same page again.
            if not answers or sieve.kept == before or (len(answers) < PAGE and not more):
                break
    return sieve.answers()


def inventory(destination: WebDestination, study_uid: str) -> tuple[Listed, ...]:
    """Return all instances that an archive says a study has; raises as :func:`find`."""
    query = Query(Level.IMAGE, {"StudyInstanceUID": study_uid}, limit=MAX_LISTED)
    return tuple(listed_of(found) for found in find(destination, query).found)


def retrieve(
    destination: WebDestination,
    study_uid: str,
    series_uid: str,
    watch: Watch,
    inbox: Inbox,
    caller: Caller,
    *,
    silence_s: float = 300.0,
    max_kib_per_s: int = 0,
) -> Retrieval:
    """Retrieve a study, or one series of it, into the inbox.

    Parameters
    ----------
    destination : WebDestination
    study_uid, series_uid : str
        The series may be empty.
    watch : Watch
    inbox : Inbox
    caller : Caller
        The archive; stands in each entry.
    silence_s : float
        After so long without a byte it is given up.
    max_kib_per_s : int
        0: no bound.

    Raises
    ------
    ArchiveError
        Saying what failed. What came whole before that stays.
    """
    path = f"studies/{study_uid}" + (f"/series/{series_uid}" if series_uid else "")
    with (
        _client(destination, silence_s) as client,
        _answer(client, destination, path, {}, _INSTANCES, "retrieve") as answer,
    ):
        boundary = _boundary(answer)
        storing = Storing(inbox, caller, boundary, study_uid)
        try:
            cancelled = _take(answer, storing, watch, Throttle(max_kib_per_s))
            outcomes = storing.outcomes if cancelled else storing.finish()
        except (MultipartError, TooManyPartsError) as error:
            raise ArchiveError(str(error), step="retrieve", retryable=True) from error
        finally:
            storing.abandon()
    refused = Counter(one.refusal.value.replace("_", " ") for one in outcomes if one.refusal is not None)
    stored = sum(one.refusal is None for one in outcomes)
    return Retrieval(Progress(completed=stored), cancelled=cancelled, stored=stored, refused=dict(refused))


def _take(answer: httpx.Response, storing: Storing, watch: Watch, throttle: Throttle) -> bool:
    """Store what comes; say whether it was taken back before the end."""
    looked_at = time.monotonic()
    for chunk in answer.iter_raw(http.PIECE_BYTES):
        throttle.take(len(chunk))
        storing.feed(chunk)
        if time.monotonic() - looked_at >= _LOOK_EVERY_S:
            looked_at = time.monotonic()
            if not watch.goes_on(Progress(completed=len(storing.outcomes))):
                return True
    return False


def _boundary(answer: httpx.Response) -> str:
    kind = next(iter(media.parse(answer.headers.get("content-type", ""))), None)
    coded = answer.headers.get("content-encoding", "identity").strip().lower()
    if kind is None or kind.name != "multipart/related" or coded not in {"", "identity"}:
        raise ArchiveError("it answers with no plain multipart message", step="retrieve", retryable=False)
    try:
        return boundary_of(kind)
    except MultipartError as error:
        raise ArchiveError(str(error), step="retrieve", retryable=False) from error


def _page(
    client: httpx.Client, destination: WebDestination, query: Query, offset: int
) -> tuple[list[dict[str, str]], bool]:
    """Return one page of answers, and whether the server says that there is more."""
    wanted = keywords(query.level, query.match)
    named = query.match.get("StudyInstanceUID", "")
    study_uid = named if query.level is not Level.STUDY and is_uid(named) else ""
    path = f"studies/{study_uid}/{_PATHS[query.level]}" if study_uid else _PATHS[query.level]
    asked = {
        keyword: value.replace("\\", ",")
        for keyword, value in query.match.items()
        if value and not (study_uid and keyword == "StudyInstanceUID")
    }
    parameters = {
        **asked,
        "includefield": ",".join(wanted),
        "limit": str(PAGE),
        "offset": str(offset),
    }
    with _answer(client, destination, path, parameters, media.JSON, "query") as answer:
        if answer.status_code == 204:
            return [], False
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _JSON_TYPES:
            raise ArchiveError("it answers with no JSON", step="query", retryable=False)
        content = _bounded(answer)
        return [_texts(one, wanted) for one in _rows(content)], "warning" in answer.headers


def _bounded(answer: httpx.Response) -> bytes:
    content = http.bounded(answer, MAX_PAGE_BYTES)
    if content is None:
        raise ArchiveError("an answer longer than any", step="query", retryable=False)
    return content


def _rows(content: bytes) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArchiveError("an answer that is no JSON", step="query", retryable=True) from error
    if not isinstance(found, list):
        raise ArchiveError("an answer that is no list", step="query", retryable=False)
    return [one for one in found if isinstance(one, dict)]


def _texts(one: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, str]:
    return {keyword: _text(one.get(_tag(keyword))) for keyword in wanted}


def _text(attribute: Any) -> str:
    """Return the values of an attribute in the DICOM JSON model (PS3.18 F.2), as text."""
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    if not isinstance(values, list):
        return ""
    texts = []
    for value in values:
        plain = value.get("Alphabetic", "") if isinstance(value, dict) else value
        if isinstance(plain, str | int) and not isinstance(plain, bool):
            texts.append(str(plain).strip(" \0"))
    text = "\\".join(texts)
    return text if len(text) <= MAX_VALUE else ""


@cache
def _tag(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415 -- heavy, and only needed to ask

    return f"{tag_for_keyword(keyword) or 0:08X}"


@contextlib.contextmanager
def _answer(
    client: httpx.Client,
    destination: WebDestination,
    path: str,
    parameters: Mapping[str, str],
    accept: str,
    step: str,
) -> Iterator[httpx.Response]:
    """Send a GET request and give its answer while it comes; every failure becomes one of the archive."""
    import httpx  # noqa: PLC0415 -- heavy, and only needed to ask

    url = destination.address(path)
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    try:
        with client.stream("GET", url, params=dict(parameters), headers=headers) as answer:
            _refuse(answer.status_code, step)
            yield answer
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ArchiveError("no connection", step="connect", retryable=True) from error
    except httpx.TimeoutException as error:
        raise ArchiveError("no answer in time", step=step, retryable=True) from error
    except httpx.HTTPError as error:
        words = f"the connection ended early ({type(error).__name__})"
        raise ArchiveError(words, step=step, retryable=True) from error


def _refuse(status: int, step: str) -> None:
    if status in {200, 206} or (status == 204 and step == "query"):
        return
    if status in {429, 503}:
        raise ArchiveError(f"status {status}: it is busy", step="connect", retryable=True)
    words, retryable = {
        204: ("it has nothing of this", True),
        401: ("it does not accept our credential", False),
        403: ("it forbids this to our credential", False),
        404: ("it has nothing of this, or there is no such service at this URL", step == "retrieve"),
        406: ("it does not give instances as they are stored", False),
    }.get(status, ("it could not do it", status >= 500))
    raise ArchiveError(f"status {status}: {words}", step=step, retryable=retryable)


def _client(destination: WebDestination, silence_s: float | None = None) -> httpx.Client:
    try:
        return http.client(destination, silence_s)
    except tls.TLSError as error:
        raise ArchiveError(str(error), step="connect", retryable=True) from error
