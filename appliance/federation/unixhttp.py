"""A small HTTP server over a Unix socket, from the standard library: the research zone must stay small."""

from __future__ import annotations

import json
import os
import re
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import parse_qsl, urlsplit

from appliance import logs
from appliance.errors import ApplianceError
from appliance.federation.unixclient import BYTES_TYPE, JSON_TYPE

if TYPE_CHECKING:
    from io import BufferedIOBase
    from pathlib import Path
    from types import TracebackType

MAX_JSON_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 60.0
OWNER_ONLY: Final = 0o600
CONNECTION_BROKE: Final = "unix_http.connection_broke"
REQUEST_FAILED: Final = "unix_http.request_failed"
_EARLY: Final = "the body ended early"

_LOG = logs.logger(__name__)


class RequestError(Exception):
    """What the caller did wrong; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Body:
    """What comes with a request, read once: as a whole or in pieces."""

    def __init__(self, stream: BufferedIOBase, length: int) -> None:
        self._stream, self.length = stream, length

    def read(self) -> bytes:
        """Return all of it; raises RequestError if it ends early."""
        content = self._stream.read(self.length)
        if len(content) != self.length:
            raise RequestError(400, _EARLY)
        return content

    def pieces(self) -> Iterator[memoryview]:
        """Yield it in pieces that lie in the same memory; raises RequestError if it ends early."""
        room = memoryview(bytearray(min(PIECE_BYTES, self.length)))
        left = self.length
        while left:
            count = self._stream.readinto(room[:left])
            if not count:
                raise RequestError(400, _EARLY)
            yield room[:count]
            left -= count


@dataclass(frozen=True)
class Request:
    """A request as a handler sees it: path parameters, query, JSON object or raw bytes.

    ``body`` is what a handler of a route that is ``streamed`` reads for itself; ``content`` is empty then.
    """

    parameters: Mapping[str, str]
    query: Mapping[str, str]
    content: bytes
    body: Body

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises
        ------
        RequestError
            If it is none.
        """
        try:
            value = json.loads(self.content or b"{}")
        except ValueError as error:
            raise RequestError(400, "expected a JSON body") from error
        if not isinstance(value, dict):
            raise RequestError(400, "expected a JSON object")
        return value


@dataclass(frozen=True)
class Answer:
    """A handler's answer: bytes, or a file from its beginning to its end, closed when it was sent."""

    content: bytes | BinaryIO
    content_type: str = BYTES_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], object]


@dataclass(frozen=True)
class Route:
    """A method and a path such as ``/v1/rounds/{id}``; a parameter is 1 to 128 of ``A-Za-z0-9._-``.

    ``streamed``: the handler reads the body itself.
    """

    method: str
    path: str
    handler: Handler
    max_bytes: int = MAX_JSON_BYTES
    streamed: bool = False

    def match(self, method: str, path: str) -> Mapping[str, str] | None:
        """Return the path's parameters when this route serves it."""
        if method != self.method:
            return None
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[A-Za-z0-9._-]{1,128})", self.path)
        found = re.fullmatch(pattern, path)
        return None if found is None else found.groupdict()


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serve routes on a socket, which its owner alone may open unless ``mode`` says otherwise."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, routes: Iterable[Route], mode: int = OWNER_ONLY) -> None:
        self.routes = tuple(routes)
        self.path = path
        path.unlink(missing_ok=True)
        before = os.umask(0o777 & ~mode)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(before)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.2,), name=path.name, daemon=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Take note of a connection that broke; what a handler raised was logged already."""
        del request, client_address
        _LOG.info(CONNECTION_BROKE, error_class=type(sys.exception()).__name__)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End serving and remove the socket."""
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=5)
        self.path.unlink(missing_ok=True)


class _Outcome(AbstractContextManager["_Outcome"]):
    """The edge of a request: whatever a handler raises becomes a status."""

    def __init__(self) -> None:
        self.status = 200
        self.value: object = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Translate."""
        if isinstance(error, RequestError):
            self.status, self.value = error.status, {"error": str(error)}
        elif isinstance(error, ApplianceError):
            self.status, self.value = 409, {"error": str(error)}
        elif isinstance(error, Exception):
            _LOG.error(REQUEST_FAILED, exc_info=error)
            self.status, self.value = 500, {"error": "the service failed; its log says why"}
        return isinstance(error, Exception)


class _Handler(BaseHTTPRequestHandler):
    """Parse, call one handler, translate the answer."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S
    server: UnixServer

    def do_GET(self) -> None:
        """Answer a question."""
        self._serve()

    def do_POST(self) -> None:
        """Do something."""
        self._serve()

    def do_PUT(self) -> None:
        """Store something."""
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing; failures are logged where they happen."""

    def address_string(self) -> str:
        """Return a fixed name: a Unix peer has none."""
        return "unix"

    def _serve(self) -> None:
        with _Outcome() as outcome:
            outcome.value = self._answer()
        if outcome.status != 200:
            self.close_connection = True  # the body may be unread
        self._send(outcome.status, outcome.value)

    def _answer(self) -> object:
        parts = urlsplit(self.path)
        for route in self.server.routes:
            parameters = route.match(self.command, parts.path)
            if parameters is not None:
                body = self._body(route.max_bytes)
                content = b"" if route.streamed else body.read()
                return route.handler(Request(parameters, dict(parse_qsl(parts.query)), content, body))
        raise RequestError(404, "no such path")

    def _body(self, max_bytes: int) -> Body:
        try:
            length = int(self.headers.get("Content-Length", "0"))
        except ValueError as error:
            raise RequestError(400, "expected a Content-Length") from error
        if not 0 <= length <= max_bytes:
            raise RequestError(413, f"expected at most {max_bytes} bytes")
        return Body(self.rfile, length)

    def _send(self, status: int, value: object) -> None:
        answer = value if isinstance(value, Answer) else Answer(json.dumps(value).encode(), JSON_TYPE)
        self.send_response(status)
        self.send_header("Content-Type", answer.content_type)
        content = answer.content
        length = len(content) if isinstance(content, bytes) else os.fstat(content.fileno()).st_size
        self.send_header("Content-Length", str(length))
        for name, text in answer.headers.items():
            self.send_header(name, text)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)
            return
        with content:
            self.connection.sendfile(content)
