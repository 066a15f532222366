"""Sealing for a site's Ed25519 key, the one that the consortium's ledger names: no other key is exchanged.

Encryption is that of the library pyrage, in the format age-encryption.org/v1 with an ``ssh-ed25519`` stanza.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def recipient(key: str) -> pyrage.ssh.Recipient:
    """Return who can open what is sealed: ``key`` is a public key, hexadecimal; raises ValueError."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return pyrage.ssh.Recipient.from_str(public.public_bytes(*form).decode("ascii"))


def identity(key: Ed25519PrivateKey) -> pyrage.ssh.Identity:
    """Return what opens it."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    return pyrage.ssh.Identity.from_buffer(key.private_bytes(*form, serialization.NoEncryption()))
