"""Sealing of identities for the pseudonym vault: AES-256-GCM, pure functions over a key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from anonymizer.errors import SealError

_KEY_BYTES = 32
_NONCE_BYTES = 12


@dataclass(frozen=True)
class Sealed:
    """A sealed identity; all three fields are hexadecimal."""

    key_id: str
    nonce: str
    ciphertext: str


def key_id(key: bytes) -> str:
    """Return 16 hexadecimal digits that name a key without telling it."""
    return sha256(b"cloister vault key id\0" + key).hexdigest()[:16]


def seal(key: bytes, plaintext: bytes, context: bytes) -> Sealed:
    """Encrypt and authenticate.

    Parameters
    ----------
    key : bytes
        32 bytes.
    plaintext : bytes
        What is hidden.
    context : bytes
        What the entry belongs to (pseudonym and project); it must be given again to open it, so that an entry
        cannot be moved to another row.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return Sealed(key_id(key), nonce.hex(), _cipher(key).encrypt(nonce, plaintext, context).hex())


def open(key: bytes, sealed: Sealed, context: bytes) -> bytes:  # noqa: A001 - the counterpart of seal
    """Decrypt what :func:`seal` made.

    Raises
    ------
    SealError
        If the key, the context or the entry is not the one that was sealed.
    """
    try:
        nonce, ciphertext = bytes.fromhex(sealed.nonce), bytes.fromhex(sealed.ciphertext)
        return _cipher(key).decrypt(nonce, ciphertext, context)
    except (InvalidTag, ValueError) as error:
        raise SealError("vault entry: does not open with this key and context") from error


def _cipher(key: bytes) -> AESGCM:
    if len(key) != _KEY_BYTES:
        raise SealError(f"vault key: expected {_KEY_BYTES} bytes")
    return AESGCM(key)
