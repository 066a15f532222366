"""Connection tests of a DICOMweb peer: QIDO-RS, and whether STOW-RS is there (PS3.18 10.5, 10.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from dicom_node import dimse_probing, tls
from dicom_node.dicomweb import http
from dicom_node.probing import Advice, Side, StepFailedError, Trail
from dicom_node.scu import Destination

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.dicomweb.http import WebDestination

MAX_ANSWER_BYTES: Final = 1 << 20
_JSON: Final = "application/dicom+json"
_BOUNDARY: Final = "cloister-connection-test"


@dataclass(frozen=True)
class _Answer:
    status: int
    kind: str
    body: bytes


def transport_of(destination: WebDestination) -> Destination:
    """Return host, port and TLS of the URL, for the steps below HTTP."""
    parts = urlsplit(destination.url)
    secure = parts.scheme == "https"
    return Destination(
        ae_title="",
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        timeout_s=destination.timeout_s,
        tls=(destination.tls or tls.TLSOptions()) if secure else None,
    )


def query(trail: Trail, destination: WebDestination) -> None:
    """Ask for one study that nobody has."""
    with trail.step("qido") as note:
        parameters = {"StudyInstanceUID": dimse_probing.new_uid(), "limit": "1"}
        answer = _ask(destination, "GET", "studies", params=parameters, headers={"Accept": _JSON})
        _refuse_common(answer, "GET studies")
        if answer.status not in {200, 204}:
            advice = Advice(Side.PEER, "look at the log of its web server")
            raise StepFailedError(f"GET studies: status {answer.status}", advice)
        if answer.status == 200 and answer.kind not in {_JSON, "application/json"}:
            advice = Advice(Side.HERE, "correct the URL: it should end in something like /dicom-web")
            raise StepFailedError(f"GET studies: answers with {answer.kind or 'no type'}, not JSON", advice)
        note.seen = f"GET studies: status {answer.status}, no match for a study that does not exist"


def offer(trail: Trail, destination: WebDestination) -> None:
    """Post a request without an instance: a service that stores refuses it for that reason alone."""
    with trail.step("stow") as note:
        answer = _post(destination, f"--{_BOUNDARY}--\r\n".encode())
        _refuse_common(answer, "POST studies")
        if answer.status >= 500:
            note.advice.append(Advice(Side.PEER, "a real store (its own test) tells more"))
        note.seen = f"POST studies is there (status {answer.status} for a request without an instance)"


def store(trail: Trail, destination: WebDestination, folder: Path) -> None:
    """Post one tiny instance that says that it is a test."""
    path = dimse_probing.write_test_instance(folder / "connection-test.dcm")
    with trail.step("store") as note:
        head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        answer = _post(destination, head + path.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode())
        _refuse_common(answer, "POST studies")
        if answer.status not in {200, 202}:
            advice = Advice(Side.PEER, "allow Secondary Capture, and look at its log")
            raise StepFailedError(f"POST studies: status {answer.status}", advice)
        note.seen = (
            f"POST studies: status {answer.status}; a Secondary Capture of the patient CONNECTION^TEST,"
            " to be deleted"
        )


def _post(destination: WebDestination, body: bytes) -> _Answer:
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    headers = {"Accept": _JSON, "Content-Type": kind}
    return _ask(destination, "POST", "studies", content=body, headers=headers)


def _refuse_common(answer: _Answer, what: str) -> None:
    """Explain the failures that every service shares."""
    if answer.status in {401, 403}:
        words = "does not accept our credential" if answer.status == 401 else "forbids it to our credential"
        raise StepFailedError(
            f"{what}: status {answer.status}, the peer {words}",
            Advice(Side.HERE, "store the right secret: cloister peer secret, and name it at this peer"),
            Advice(Side.PEER, "give the account of this node the right to do it"),
        )
    if answer.status in {404, 405, 501}:
        raise StepFailedError(
            f"{what}: status {answer.status}, there is no such service at this URL",
            Advice(Side.HERE, "correct the URL: it is the part before /studies"),
            Advice(Side.PEER, "switch its DICOMweb service on"),
        )
    if 300 <= answer.status < 400:
        raise StepFailedError(
            f"{what}: status {answer.status}, it sends us elsewhere",
            Advice(Side.HERE, "enter the URL that it leads to; redirections are not followed"),
        )


def _ask(
    destination: WebDestination,
    method: str,
    path: str,
    *,
    headers: dict[str, str],
    params: dict[str, str] | None = None,
    content: bytes | None = None,
) -> _Answer:
    import httpx  # noqa: PLC0415 -- heavy, and only needed here

    url = destination.address(path)
    try:
        with (
            http.client(destination) as client,
            client.stream(method, url, headers=headers, params=params, content=content) as answer,
        ):
            body = b""
            for part in answer.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    break
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            return _Answer(answer.status_code, kind, body)
    except httpx.TimeoutException as error:
        advice = Advice(Side.PEER, "look at its web server: it accepts the connection and does not answer")
        raise StepFailedError(f"no answer within {destination.timeout_s:.0f} s", advice) from error
    except httpx.HTTPError as error:
        advice = Advice(Side.HERE, "check scheme (http or https), host and port of the URL")
        raise StepFailedError(f"no HTTP answer ({type(error).__name__})", advice) from error
