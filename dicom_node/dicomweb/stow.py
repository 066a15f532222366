"""STOW-RS: storing instances (PS3.18 10.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from anyio import fail_after, to_thread
from fastapi import Request  # noqa: TC002 - the framework reads annotations
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from dicom_node.dicomweb import media, multipart
from dicom_node.dicomweb.frame import RETRY_AFTER_S, DICOMwebError, check_uids
from dicom_node.dicomweb.storing import DICOM, REASONS, Outcome, Refusal, Storing, TooManyPartsError
from dicom_node.errors import InboxError, InboxFullError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import APIRouter

    from dicom_node.dicomweb.frame import Frame
    from dicom_node.inbox import Inbox
    from dicom_node.ports import Caller

JSON_TYPES: Final = (media.JSON, "application/json")
PIECE_BYTES: Final = 1 << 19  # taken from the socket before a thread writes it
_RETRY: Final = {"retry-after": str(RETRY_AFTER_S)}
_TRANSIENT: Final = frozenset({Refusal.FULL, Refusal.NOT_WRITABLE})


@dataclass(frozen=True)
class Reception:
    """Where instances go and who sends them.

    Parameters
    ----------
    inbox : Inbox
    caller_of : callable
        Who stands in the entries as their sender.
    on_stored : callable
        Is told for whom a request stored how many instances, and how many were refused.
    max_requests : int
        Requests that store at the same time.
    timeout_s : float
        A client that sends nothing for this long is given up.
    """

    inbox: Inbox
    caller_of: Callable[[Request], Caller]
    on_stored: Callable[[Caller, int, int], None]
    max_requests: int
    timeout_s: float


def router(frame: Frame, reception: Reception) -> APIRouter:
    """Return the routes of the service."""
    routes = frame.router()
    running: set[object] = set()

    async def store(request: Request) -> Response:
        boundary, kind = _check(request)
        if len(running) >= reception.max_requests:
            raise DICOMwebError(503, "Other requests store at the moment; try again later.", _RETRY)
        mine, caller = object(), reception.caller_of(request)
        running.add(mine)
        try:
            outcomes = await _store(request, reception, caller, boundary)
        finally:
            running.discard(mine)
        stored = sum(outcome.refusal is None for outcome in outcomes)
        reception.on_stored(caller, stored, len(outcomes) - stored)
        status = _status(outcomes)
        content = _response(outcomes, frame.base_url(request))
        return JSONResponse(content, status, _RETRY if status == 503 else None, media_type=kind)

    for path in ("/studies", "/studies/{StudyInstanceUID}"):
        routes.add_api_route(path, store, methods=["POST"], response_class=Response)
    return routes


def _check(request: Request) -> tuple[str, str]:
    """Return the boundary, and the media type to answer in; nothing of the body is read before."""
    check_uids(**{name: str(value) for name, value in request.path_params.items()})
    sent = next(iter(media.parse(request.headers.get("content-type", ""))), media.MediaType(""))
    root = sent.parameters.get("type", DICOM).lower()
    if sent.name != "multipart/related" or root != DICOM:
        raise DICOMwebError(415, f'Content-Type: expected multipart/related; type="{DICOM}".')
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise DICOMwebError(415, "Content-Encoding: expected none; instances have encodings of their own.")
    kind = media.choose(media.accepted(request), JSON_TYPES)
    if kind is None:
        raise DICOMwebError(406, f"Accept: expected {media.JSON}.")
    try:
        return multipart.boundary_of(sent), kind
    except multipart.MultipartError as error:
        raise DICOMwebError(400, f"Content-Type: {error}.") from error


async def _store(request: Request, reception: Reception, caller: Caller, boundary: str) -> Sequence[Outcome]:
    study_uid = str(request.path_params.get("StudyInstanceUID", ""))
    storing = Storing(reception.inbox, caller, boundary, study_uid)
    try:
        await to_thread.run_sync(reception.inbox.check_space)
        async for piece in _pieces(request, reception.timeout_s):
            await to_thread.run_sync(storing.feed, piece)
        outcomes = await to_thread.run_sync(storing.finish)
    except multipart.MultipartError as error:
        raise DICOMwebError(400, f"{error}.") from error
    except TooManyPartsError as error:
        raise DICOMwebError(413, f"{error}.") from error
    except InboxFullError as error:
        raise DICOMwebError(
            503, "There is too little space at the moment; try again later.", _RETRY
        ) from error
    except InboxError as error:
        raise DICOMwebError(503, "Nothing can be stored at the moment; try again later.", _RETRY) from error
    except TimeoutError as error:
        raise DICOMwebError(408, "The request stopped before its end.") from error
    except ClientDisconnect as error:
        raise DICOMwebError(400, "The connection ended before the request did.") from error
    finally:
        storing.abandon()
    if not outcomes:
        raise DICOMwebError(400, "Expected at least one part.")
    return outcomes


async def _pieces(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    """Give the body in pieces that are worth a thread's turn."""
    waiting: list[bytes] = []
    size = 0
    stream = request.stream().__aiter__()
    while True:
        with fail_after(timeout_s):
            chunk = await anext(stream, None)
        if chunk is None:
            break
        waiting.append(chunk)
        size += len(chunk)
        if size >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def _status(outcomes: Sequence[Outcome]) -> int:
    """Return the status of PS3.18 table 10.5.3-1."""
    refusals = {outcome.refusal for outcome in outcomes}
    if None in refusals:
        return 200 if len(refusals) == 1 else 202
    if refusals <= _TRANSIENT:
        return 503
    only = refusals.pop() if len(refusals) == 1 else None
    return {Refusal.TOO_LARGE: 413, Refusal.OTHER_MEDIA_TYPE: 415}.get(only, 409) if only else 409


def _response(outcomes: Sequence[Outcome], base: str) -> dict[str, Any]:
    """Return the Store Instances Response Module (PS3.18 table I.2-1) in the JSON model."""
    stored = [outcome for outcome in outcomes if outcome.refusal is None]
    named = [outcome for outcome in outcomes if outcome.refusal and outcome.sop_instance_uid]
    others = [outcome for outcome in outcomes if outcome.refusal and not outcome.sop_instance_uid]
    studies = {outcome.study_instance_uid for outcome in stored}
    response: dict[str, Any] = {}
    if len(studies) == 1:
        response["00081190"] = _one("UR", f"{base}/studies/{studies.pop()}")
    for tag, items in (
        ("00081198", [{**_reference(outcome), "00081197": _reason(outcome)} for outcome in named]),
        ("00081199", [_stored(outcome, base) for outcome in stored]),
        ("0008119A", [{"00081197": _reason(outcome)} for outcome in others]),
    ):
        if items:
            response[tag] = {"vr": "SQ", "Value": items}
    return response


def _stored(outcome: Outcome, base: str) -> dict[str, Any]:
    where = f"{base}/studies/{outcome.study_instance_uid}/series/{outcome.series_instance_uid}"
    return {**_reference(outcome), "00081190": _one("UR", f"{where}/instances/{outcome.sop_instance_uid}")}


def _reference(outcome: Outcome) -> dict[str, Any]:
    return {
        "00081150": _one("UI", outcome.sop_class_uid),
        "00081155": _one("UI", outcome.sop_instance_uid),
    }


def _reason(outcome: Outcome) -> dict[str, Any]:
    return _one("US", REASONS[outcome.refusal] if outcome.refusal else 0)


def _one(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
