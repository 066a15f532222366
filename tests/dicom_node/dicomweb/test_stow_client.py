"""The STOW-RS client against Orthanc, our own service, and servers that answer as a test says."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from dicom_node.dicomweb.http import WebDestination, authorization
from dicom_node.dicomweb.stow_client import MAX_ANSWER_BYTES, store
from tests.dicom_node.dicomweb.server import served
from tests.dicom_node.dicomweb.web_archive import orthanc_web_archive
from tests.dicom_node.support import ct, free_port, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.requests import Request

UID = "1.2.3.4"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(ct(SOPInstanceUID=UID), tmp_path / "one.dcm")


def item(*, uid: str = UID, reason: int | None = None, warning: int | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        made["00081197"] = {"vr": "US", "Value": [reason]}
    if warning is not None:
        made["00081196"] = {"vr": "US", "Value": [warning]}
    return made


def answer(tag: str, *items: dict[str, Any]) -> bytes:
    return json.dumps({tag: {"vr": "SQ", "Value": list(items)}}).encode()


@contextmanager
def server(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """Answer every request in one way; collect what came."""
    seen: list[Any] = []

    async def take(request: Request) -> Response:
        seen.append((request.headers, await request.body()))
        return Response(body, status, headers)

    with served(Starlette(routes=[Route("/web/studies", take, methods=["POST"])])) as url:
        yield f"{url}/web", seen


def test_the_file_goes_out_byte_for_byte_in_one_part(file: Path) -> None:
    with server(200, answer("00081199", item())) as (url, seen):
        outcome = store(file, WebDestination(url, "ward:secret"))
    assert (outcome.ok, outcome.reason) == (True, "stored")
    headers, body = seen[0]
    boundary = headers["content-type"].rpartition("boundary=")[2]
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
    assert body == head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    assert int(headers["content-length"]) == len(body)
    assert headers["authorization"] == authorization("ward:secret")["Authorization"]


@pytest.mark.parametrize(
    ("status", "body", "ok", "retryable"),
    [
        (202, answer("00081199", item(warning=0xB000)), True, False),
        (200, answer("00081199", item(uid="1.2.9")), False, True),
        (200, b"", False, True),
        (200, b"[1", False, True),
        (200, b"{" * 2000, False, True),
        (200, b" " * (MAX_ANSWER_BYTES + 1), False, True),
        (409, answer("00081198", item(reason=0xA700)), False, True),
        (409, answer("00081198", item(reason=0x0110)), False, True),
        (409, answer("00081198", item(reason=0x0122)), False, False),
        (409, answer("00081198", item(reason=0xA900)), False, False),
        (409, answer("00081198", item(reason=0xC000)), False, False),
        (409, answer("0008119A", {"00081197": {"vr": "US", "Value": [0xC000]}}), False, False),
        (409, b"", False, False),
        (202, answer("00081198", item(reason=0xB000)), False, False),
        (503, answer("00081198", item(reason=0xA700)), False, True),
        (503, b"", False, True),
        (500, b"", False, True),
        (429, b"", False, True),
        (401, b"", False, False),
        (404, b"", False, False),
        (413, b"", False, False),
        (415, b"", False, False),
    ],
)
def test_permanent_refusals_are_told_from_transient_ones(
    file: Path, status: int, body: bytes, ok: bool, retryable: bool
) -> None:
    with server(status, body) as (url, _):
        outcome = store(file, WebDestination(url))
    assert (outcome.ok, outcome.retryable) == (ok, retryable)
    assert UID not in outcome.reason


def test_a_redirection_is_not_followed(file: Path) -> None:
    with (
        server(200, answer("00081199", item())) as (elsewhere, seen),
        server(307, b"", {"location": f"{elsewhere}/studies"}) as (url, _),
    ):
        outcome = store(file, WebDestination(url, "token"))
    assert not outcome.ok
    assert not outcome.retryable
    assert not seen, "the secret stays with the peer"


def test_a_server_that_is_away_silent_or_dies_is_tried_again(file: Path) -> None:
    class Dying(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(100)

        def log_message(self, *_: object) -> None:
            pass

    away = store(file, WebDestination(f"http://127.0.0.1:{free_port()}"))
    dying = ThreadingHTTPServer(("127.0.0.1", 0), Dying)
    thread = threading.Thread(target=dying.serve_forever, daemon=True)
    thread.start()
    try:
        died = store(file, WebDestination(f"http://127.0.0.1:{dying.server_port}"))
    finally:
        dying.shutdown()
        dying.server_close()
        thread.join(20)
    assert [(one.ok, one.retryable) for one in (away, died)] == [(False, True)] * 2
    assert away.reason == "connect: no connection"
    assert died.reason.startswith("store: the connection ended early")


def test_a_file_that_is_none_is_never_tried_again(tmp_path: Path) -> None:
    (tmp_path / "none.dcm").write_bytes(b"nothing")
    for name in ("none.dcm", "missing.dcm"):
        outcome = store(tmp_path / name, WebDestination("http://127.0.0.1:1"))
        assert (outcome.ok, outcome.retryable) == (False, False)


@pytest.mark.orthanc
def test_orthanc_stores_what_we_send_over_the_web(tmp_path: Path, file: Path) -> None:
    with orthanc_web_archive(tmp_path / "orthanc") as (orthanc, destination, _):
        assert store(file, destination).ok
        assert store(file, destination).ok, "a second time changes nothing"
        (held,) = orthanc.instances()
        assert orthanc.get(f"instances/{held}/tags?simplify")["SOPInstanceUID"] == UID
