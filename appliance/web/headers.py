"""Response headers that keep a browser from doing what the panel does not need."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from appliance.web.sockets import Message, Send

_SCRIPT: Final = re.compile(rb"<script(?=[\s>])")
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+\Z")

_FIXED: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),  # "no-referrer" would make a form's Origin "null"
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)


def policy(nonce: str, host: str, *, secure: bool) -> str:
    """Return the content security policy: our own files, our own socket, nothing else.

    The framework compiles templates in the browser, hence ``unsafe-eval``; inline scripts need the nonce.
    """
    socket = f"{'wss' if secure else 'ws'}://{host}" if re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host) else ""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self'",
            f"connect-src 'self' {socket}".strip(),
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    )


def viewer_policy(origins: Sequence[str], paths: Sequence[str]) -> str:
    """Return the policy of the viewer's page and workers: scripts of ours, requests to these paths only.

    ``'self'`` would open the API to its requests: it has no path.

    Its decoders are WebAssembly with glue that compiles functions, hence ``unsafe-eval``. A worker that comes
    from a file has the policy of that file, so every answer carries it.
    """
    known = [origin for origin in dict.fromkeys(origins) if _ORIGIN.match(origin)]
    places = " ".join(f"{origin}{path}" for origin in known for path in paths) or "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self'",
            "worker-src 'self' blob:",
            f"connect-src {places}",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    )


class HeaderedSend:
    """An ASGI ``send`` that adds the headers, and the nonce to each script of an HTML page.

    Parameters
    ----------
    content_policy : str
        In the place of the panel's content security policy, where it is not empty.
    """

    def __init__(
        self, send: Send, *, host: str, secure: bool, cacheable: bool, content_policy: str = ""
    ) -> None:
        self._send = send
        self._nonce = secrets.token_urlsafe(16)
        chosen = content_policy or policy(self._nonce, host, secure=secure)
        self._added = [*_FIXED, (b"content-security-policy", chosen.encode("ascii"))]
        if secure:
            self._added.append((b"strict-transport-security", b"max-age=31536000"))
        self._cacheable = cacheable
        self._start: MutableMapping[str, Any] | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Send one message of the response."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._continue_page(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        ours = {name for name, _ in self._added}
        headers = [(name, value) for name, value in message.get("headers", []) if name.lower() not in ours]
        if not self._cacheable:
            headers = [(name, value) for name, value in headers if name.lower() != b"cache-control"]
            headers.append((b"cache-control", b"no-store"))
        message = {**message, "headers": [*headers, *self._added]}
        is_page = any(
            name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers
        )
        if is_page:
            self._start = message
        else:
            await self._send(message)

    async def _continue_page(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return
        body = _SCRIPT.sub(b'<script nonce="' + self._nonce.encode("ascii") + b'"', self._body)
        headers = [
            (name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"
        ]
        await self._send(
            {**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode("ascii"))]}
        )
        self._start = None
        await self._send({**message, "body": body})
