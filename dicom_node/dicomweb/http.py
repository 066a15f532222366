"""How a DICOMweb peer is reached: its base URL, TLS, secret and time-outs; redirections are not followed.

An answer is read within a bound, and what it says is never repeated: a peer's words may hold values.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dicom_node import tls

if TYPE_CHECKING:
    import httpx

PIECE_BYTES: Final = 256 << 10


@dataclass(frozen=True)
class WebDestination:
    """The base URL of a peer's DICOMweb services; ``secret`` is a bearer token, or ``user:password``."""

    url: str
    secret: str = ""
    tls: tls.TLSOptions | None = None
    timeout_s: float = 10

    def address(self, path: str) -> str:
        """Return the URL of a service."""
        return f"{self.url.rstrip('/')}/{path}"


def client(destination: WebDestination, read_s: float | None = None) -> httpx.Client:
    """Return a client of one peer.

    Parameters
    ----------
    destination : WebDestination
    read_s : float, optional
        How long to wait for the next byte; as the other time-outs where not given.

    Raises
    ------
    TLSError
        When our certificate, its key or the authorities cannot be used.
    """
    import httpx  # noqa: PLC0415 -- heavy, and only needed to ask

    return httpx.Client(
        verify=tls.client_context(destination.tls or tls.TLSOptions()),
        timeout=httpx.Timeout(destination.timeout_s, read=read_s or destination.timeout_s),
        headers=authorization(destination.secret),
        follow_redirects=False,
        trust_env=False,
    )


def bounded(answer: httpx.Response, limit: int) -> bytes | None:
    """Return the body of a streamed answer; None when it is longer than the limit."""
    content = bytearray()
    for chunk in answer.iter_bytes(PIECE_BYTES):
        content += chunk
        if len(content) > limit:
            return None
    return bytes(content)


def authorization(secret: str) -> dict[str, str]:
    """Return the header of a secret: ``user:password`` is Basic, anything else a bearer token (RFC 6750)."""
    if not secret:
        return {}
    if ":" in secret:
        return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode('ascii')}"}
    return {"Authorization": f"Bearer {secret}"}
