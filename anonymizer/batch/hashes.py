"""Hashes that name something to who has the key, and say nothing to others."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anonymizer.elements import Bytes


def keyed_hash(secret: bytes, content: Bytes) -> str:
    """Return 64 hexadecimal digits that name bytes to who has the key, and say nothing to others."""
    return hmac.digest(secret, content, "sha256").hex()
