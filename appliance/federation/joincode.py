"""The enrolment code: what a person at the coordinator reads to a person at a site.

``host:port/`` and eight groups of five letters: 25 bits that find the invitation, 75 bits of secret, 80 bits
of the root certificate's SHA-256, 20 bits of checksum over all of it with host and port. The alphabet is
Crockford's base 32: no I, L, O or U; what is typed for the first three, or in lower case, is read as meant.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from appliance.federation.errors import EnrolmentError

SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}")
HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SELECTOR: Final = 5
SECRET: Final = 15
FINGERPRINT: Final = 16
CHECKSUM: Final = 4
_LETTERS: Final = SELECTOR + SECRET + FINGERPRINT + CHECKSUM
_GROUP: Final = 5
_MEANT: Final = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_EXPECTED: Final = "expected HOST:PORT/ and eight groups of five letters, as 'coordinator invite' printed it"


@dataclass(frozen=True, repr=False)
class JoinCode:
    """A code's parts; the last three are letters of the alphabet."""

    host: str
    port: int
    selector: str
    secret: str
    fingerprint: str

    def __str__(self) -> str:
        """Return the code as it is read aloud."""
        letters = self.selector + self.secret + self.fingerprint
        letters += _checksum(self.host, self.port, letters)
        groups = (letters[start : start + _GROUP] for start in range(0, _LETTERS, _GROUP))
        return f"{self.host}:{self.port}/{'-'.join(groups)}"


def new_secrets() -> tuple[str, str]:
    """Return a new selector and secret."""
    letters = "".join(secrets.choice(ALPHABET) for _ in range(SELECTOR + SECRET))
    return letters[:SELECTOR], letters[SELECTOR:]


def shortened(digest: bytes) -> str:
    """Return the letters that stand for a SHA-256 in a code."""
    return _encode(digest, FINGERPRINT)


def parse(text: str) -> JoinCode:
    """Read a code as a person typed it.

    Raises
    ------
    EnrolmentError
        If it is none, or a letter is wrong.
    """
    address, slash, rest = text.strip().rpartition("/")
    host, colon, port = address.rpartition(":")
    if not slash or not colon or not HOST_NAME.fullmatch(host) or len(text) > 400:
        raise EnrolmentError(f"code: {_EXPECTED}")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise EnrolmentError("code: its port: expected 1 to 65535")
    letters = rest.upper().translate(_MEANT)
    if len(letters) != _LETTERS or not set(letters) <= set(ALPHABET):
        raise EnrolmentError(f"code: {_EXPECTED}")
    host = host.lower()
    if letters[-CHECKSUM:] != _checksum(host, int(port), letters[:-CHECKSUM]):
        raise EnrolmentError(
            "code: a letter, the host or the port is wrong; compare it with what was printed"
        )
    secret_end = SELECTOR + SECRET
    return JoinCode(
        host, int(port), letters[:SELECTOR], letters[SELECTOR:secret_end], letters[secret_end:-CHECKSUM]
    )


def _checksum(host: str, port: int, letters: str) -> str:
    return _encode(hashlib.sha256(f"{host}:{port}/{letters}".encode()).digest(), CHECKSUM)


def _encode(digest: bytes, letters: int) -> str:
    """Return the first ``5 * letters`` bits of a digest."""
    number = int.from_bytes(digest) >> (len(digest) * 8 - 5 * letters)
    return "".join(ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(letters)))
