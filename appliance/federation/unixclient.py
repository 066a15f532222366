"""Ask a server on a Unix socket: standard library alone, since the engine's job process imports this."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from appliance.federation.errors import SiteServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

REQUEST_TIMEOUT_S: Final = 60.0
FEDERATION_SOCKET: Final = "federation.sock"  # in the node's run folder, for the engine's processes
Content: TypeAlias = "bytes | Sequence[memoryview]"
"""What is sent: as a whole, or in pieces, so that nobody has to make a whole of them."""
JSON_TYPE: Final = "application/json"
BYTES_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True)
class Reply:
    """What a server answered, with status 200."""

    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("unix", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class UnixClient:
    """Ask a :class:`appliance.federation.unixhttp.UnixServer`; one connection per request."""

    path: Path
    timeout_s: float = REQUEST_TIMEOUT_S

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a JSON object, return the JSON answer; raises like :meth:`send`."""
        content = b"" if body is None else json.dumps(body).encode()
        return json.loads(self.send(method, path, content, JSON_TYPE).content)

    def send(self, method: str, path: str, content: Content = b"", content_type: str = BYTES_TYPE) -> Reply:
        """Send bytes, return the answer.

        Raises
        ------
        SiteServiceError
            Retryable when nobody serves the socket, or the server failed; not when it refused the request.
        """
        connection = _UnixConnection(self.path, self.timeout_s)
        length = len(content) if isinstance(content, bytes) else sum(piece.nbytes for piece in content)
        headers = {"Content-Type": content_type, "Content-Length": str(length)}
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused unread: the answer says why
                connection.request(method, path, content, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            message = f"the research zone's service does not answer ({type(error).__name__})"
            raise SiteServiceError(message, retryable=True) from error
        finally:
            connection.close()
        if response.status != 200:
            raise SiteServiceError(_message(answer, response.status), retryable=response.status >= 500)
        return Reply(answer, dict(response.headers.items()))


def _message(content: bytes, status: int) -> str:
    try:
        return str(json.loads(content)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
