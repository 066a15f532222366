"""The STOW-RS client (PS3.18 10.5): an instance goes out straight from its file, byte for byte."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from dicom_node import part10, scu, tls
from dicom_node.dicomweb import http, media
from dicom_node.errors import HeaderError
from dicom_node.scu import StoreOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from dicom_node.dicomweb.http import WebDestination

MAX_ANSWER_BYTES: Final = 1 << 20

_FAILED: Final = "00081198"
_STORED: Final = "00081199"
_OTHERS: Final = "0008119A"
_REASON: Final = "00081197"
_WARNING: Final = "00081196"
_INSTANCE: Final = "00081155"
_WARNED: Final = frozenset({0xB000, 0xB006, 0xB007})
_TRANSIENT: Final = frozenset({0x0110, 0x0213})  # processing failure, resource limitation (PS3.7 annex C)
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
_WORDS: Final = {
    400: "it does not understand what is sent",
    401: "it does not accept our credential",
    403: "it forbids this to our credential",
    404: "there is no such service at this URL",
    405: "there is no such service at this URL",
    409: "it does not take this instance",
    413: "the instance is too large for it",
    415: "it does not take this kind of instance, or this transfer syntax",
    501: "there is no such service at this URL",
}


def store(
    path: Path, destination: WebDestination, on_bytes: Callable[[int], None] | None = None
) -> StoreOutcome:
    """Send a Part 10 file and read what the server says became of it; nothing is raised for its fault.

    Parameters
    ----------
    path : Path
        It goes out in the transfer syntax that it is stored in.
    destination : WebDestination
    on_bytes : callable, optional
        Told before so many bytes leave; it may hold them back.

    Returns
    -------
    StoreOutcome
        Its status is that of the instance where the server names one, else that of HTTP.
    """
    import httpx  # noqa: PLC0415 -- heavy, and only needed to send

    try:
        uid, size = _read(path)
        with http.client(destination) as client:
            boundary = uuid.uuid4().hex
            head = _head(boundary)
            tail = f"\r\n--{boundary}--\r\n".encode()
            headers = {
                "Accept": media.JSON,
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Content-Length": str(len(head) + size + len(tail)),
            }
            content = _pieces(path, head, tail, size, on_bytes)
            url = destination.address("studies")
            with client.stream("POST", url, headers=headers, content=content) as answer:
                return _outcome(path, uid, answer)
    except (HeaderError, OSError):
        return _failed(path, "the file cannot be read", retryable=False)
    except tls.TLSError as error:
        return _failed(path, f"connect: {error}", retryable=True)
    except httpx.InvalidURL:
        return _failed(path, "connect: the URL of this destination is none", retryable=False)
    except httpx.HTTPError as error:
        return _failed(path, _problem(error), retryable=True)


def _problem(error: httpx.HTTPError) -> str:
    import httpx  # noqa: PLC0415 -- as above

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "connect: no connection"
    if isinstance(error, httpx.TimeoutException):
        return "store: no answer in time"
    return f"store: the connection ended early ({type(error).__name__})"


def _read(path: Path) -> tuple[str, int]:
    """Return SOP Instance UID and size of a file."""
    with path.open("rb") as file:
        meta = part10.decode(file.read(part10.MAX_META_BYTES))
    uid = meta.uid(0x0003)
    if not (meta.uid(0x0002) and uid and meta.uid(0x0010)):
        raise HeaderError("bad_file_meta", "expected SOP class, instance and transfer syntax")
    return uid, path.stat().st_size


def _head(boundary: str) -> bytes:
    # Without the transfer syntax, which the file says: Orthanc passes over parts whose type has a parameter.
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _pieces(
    path: Path, head: bytes, tail: bytes, size: int, on_bytes: Callable[[int], None] | None
) -> Iterator[bytes]:
    yield head
    with path.open("rb") as file:
        while size:
            piece = file.read(min(http.PIECE_BYTES, size))
            if not piece:
                raise OSError("a file became shorter while it was read")
            size -= len(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
            yield piece
    yield tail


def _outcome(path: Path, uid: str, answer: Any) -> StoreOutcome:
    status = int(answer.status_code)
    body = http.bounded(answer, MAX_ANSWER_BYTES) if status in {200, 202, 409} or status in _BUSY else b""
    told = _told(body, uid)
    if told is not None:
        return told_outcome(path, *told)
    if status in {200, 202}:
        # A server that answers with success and says nothing of the instance has not said that it has it.
        return _failed(path, "store: it answers without saying what it stored", retryable=True, status=status)
    if 300 <= status < 400:
        words = "it sends us elsewhere, and redirections are not followed"
    else:
        words = _WORDS.get(status, "it is busy or out of order" if status in _BUSY else "it could not do it")
    retryable = status in _BUSY or (status >= 500 and status not in _WORDS)
    return _failed(path, f"store: status {status}: {words}", retryable=retryable, status=status)


def told_outcome(path: Path, failed: bool, reason: int) -> StoreOutcome:
    """Judge what a server says of one instance (PS3.18 table I.2-1, PS3.4 table B.2-1)."""
    if not failed:
        words = f"stored with warning 0x{reason:04X}" if reason else "stored"
        return StoreOutcome(path, reason, ok=True, retryable=False, reason=words)
    if reason in _WARNED or not reason:  # in the sequence of failures: not stored, whatever the code
        return _failed(path, f"0x{reason:04X}: refused by the peer", retryable=not reason, status=reason)
    if reason in _TRANSIENT:
        return _failed(path, f"0x{reason:04X}: the peer could not store it", retryable=True, status=reason)
    return scu.outcome_of(path, reason)


def _told(body: bytes | None, uid: str) -> tuple[bool, int] | None:
    """Return whether the instance failed and with which reason; None where the answer does not say.

    A failure that names no instance is this one's: it is the only one that was sent.
    """
    try:
        found = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        return None
    for item in _items(found, _FAILED):
        if _first(item, _INSTANCE) == uid:
            return True, _code(item, _REASON)
    for item in _items(found, _STORED):
        if _first(item, _INSTANCE) == uid:
            return False, _code(item, _WARNING)
    for item in _items(found, _OTHERS):
        return True, _code(item, _REASON)
    return None


def _items(found: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    values = _values(found, tag)
    return [item for item in values if isinstance(item, dict)]


def _first(item: dict[str, Any], tag: str) -> Any:
    return next(iter(_values(item, tag)), None)


def _code(item: dict[str, Any], tag: str) -> int:
    code = _first(item, tag)
    plain = isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 0xFFFF
    return code if plain else 0


def _values(item: dict[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _failed(path: Path, reason: str, *, retryable: bool, status: int | None = None) -> StoreOutcome:
    return StoreOutcome(path, status, ok=False, retryable=retryable, reason=reason)
