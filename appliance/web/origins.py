"""Which host names and origins are ours. Pure functions over header values."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from appliance.settings import WebSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Origins:
    """The names under which this panel may be asked for.

    Names are listed because a foreign name that resolves to our address (DNS rebinding) would make a foreign
    page "same origin"; an address or ``localhost`` cannot be rebound.
    """

    names: frozenset[str]
    public: str  # scheme://host[:port] of ``web.public_url``, or empty

    @classmethod
    def of(cls, settings: WebSettings) -> Origins:
        """Read the names from the configuration and the machine."""
        public = origin_of(settings.public_url)
        names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower(), settings.host.lower()}
        if public:
            names.add((urlsplit(public).hostname or "").lower())
        return cls(names=frozenset(names - {"", "0.0.0.0", "::"}), public=public)  # noqa: S104 - compared, not bound

    def knows_host(self, host: str) -> bool:
        """Whether a ``Host`` header names this machine."""
        name = host_name(host)
        return bool(name) and (name in self.names or _is_address(name))

    def is_ours(self, origin: str | None, *, scheme: str, host: str) -> bool:
        """Whether an ``Origin`` header is the page that this very request was sent to."""
        if not origin:
            return False
        web_scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
        given = origin.lower()
        return given == f"{web_scheme}://{host}".lower() or (bool(self.public) and given == self.public)


def may_change(origins: Origins, method: str, headers: dict[str, str], *, scheme: str, is_api: bool) -> bool:
    """Whether a request may change something, by where it comes from.

    Browsers send ``Origin`` with every such request. Only the API takes requests without it, from programs,
    which say nothing of ``Sec-Fetch-Site`` either.
    """
    if method in SAFE_METHODS:
        return True
    origin = headers.get("origin")
    if origin is None:
        return is_api and "sec-fetch-site" not in headers
    return origins.is_ours(origin, scheme=scheme, host=headers.get("host", ""))


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL as an ``Origin`` header writes them; empty for anything else."""
    parts = urlsplit(url)
    return (
        f"{parts.scheme}://{parts.netloc}".lower()
        if parts.scheme in {"http", "https"} and parts.netloc
        else ""
    )


def host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
