"""What a site signs with its research zone's key when it asks the coordinator for something."""

from __future__ import annotations

import hashlib
from typing import Final

ALPN: Final = "cloister-enrolment-1"  # RFC 7301: tells enrolment from the federation, on one port


def enrol(root_sha256: bytes, request: str, selector: str) -> bytes:
    """Return the statement of a site that enrols: bound to this federation, this key and this code."""
    return _joined("enrol", root_sha256, selector, "", request)


def ask(what: str, root_sha256: bytes, site: str, at: str, request: str) -> bytes:
    """Return the statement of a member that renews its certificate, or leaves."""
    return _joined(what, root_sha256, site, at, request)


def _joined(what: str, root_sha256: bytes, who: str, at: str, request: str) -> bytes:
    parts = (what, root_sha256.hex(), who, at, hashlib.sha256(request.encode()).hexdigest())
    return "\n".join(("cloister-enrolment-1", *parts)).encode()
