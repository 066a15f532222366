"""Sealing for one recipient, who alone can open it: X25519 or RSA-OAEP, then AES-256-GCM. Pure functions.

Format, version 1: ``CLOVLT1`` and a line feed; the header's length, four bytes big endian; the header, a JSON
object of texts; the ciphertext to the end. All before the ciphertext is authenticated with it.

================ =========================================================================
``method``       ``x25519-hkdf-sha256-aes256gcm`` or ``rsa-oaep-sha256-aes256gcm``
``recipient``    SHA-256 of the recipient's public key as DER SubjectPublicKeyInfo
``encapsulated`` the sender's ephemeral public key (32 bytes), or the wrapped AES key
``nonce``        12 bytes
================ =========================================================================

With X25519 the AES key is HKDF-SHA-256 (RFC 5869) of the shared secret, with the ephemeral key followed by
the recipient's key as salt and the info ``cloister vault export 1``.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anonymizer.errors import SealError

_MAGIC: Final = b"CLOVLT1\n"
_X25519: Final = "x25519-hkdf-sha256-aes256gcm"
_RSA: Final = "rsa-oaep-sha256-aes256gcm"
_INFO: Final = b"cloister vault export 1"
_KEY_BYTES, _NONCE_BYTES, _LENGTH_BYTES = 32, 12, 4
_LEAST_RSA_BITS: Final = 3072
_MAX_HEADER_BYTES: Final = 64 * 1024

PublicKey = X25519PublicKey | RSAPublicKey
PrivateKey = X25519PrivateKey | RSAPrivateKey


def read_recipient(pem: bytes) -> PublicKey:
    """Read a recipient's public key.

    Raises
    ------
    SealError
        If it is no X25519 key and no RSA key of 3072 bits or more.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SealError("recipient: expected a public key in PEM form") from error
    if isinstance(key, X25519PublicKey) or (
        isinstance(key, RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS
    ):
        return key
    raise SealError(f"recipient: expected an X25519 key, or an RSA key of {_LEAST_RSA_BITS} bits or more")


def read_private_key(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """Read a recipient's private key.

    Raises
    ------
    SealError
        If it is none, or the password does not fit.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SealError("key: expected a private key in PEM form, and its password if it has one") from error
    if not isinstance(key, X25519PrivateKey | RSAPrivateKey):
        raise SealError("key: expected an X25519 or RSA private key")
    return key


def fingerprint(key: PublicKey) -> str:
    """Return 64 hexadecimal digits that name a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def seal_for(recipient: PublicKey, plaintext: bytes) -> bytes:
    """Encrypt for one recipient; each call has a key of its own."""
    if isinstance(recipient, X25519PublicKey):
        ephemeral = X25519PrivateKey.generate()
        method, encapsulated = _X25519, ephemeral.public_key().public_bytes_raw()
        key = _derived(ephemeral.exchange(recipient), encapsulated, recipient)
    else:
        method, key = _RSA, os.urandom(_KEY_BYTES)
        encapsulated = recipient.encrypt(key, _oaep())
    nonce = os.urandom(_NONCE_BYTES)
    header = json.dumps({
        "method": method,
        "recipient": fingerprint(recipient),
        "encapsulated": encapsulated.hex(),
        "nonce": nonce.hex(),
    }).encode("ascii")  # fmt: skip
    head = _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "big") + header
    return head + AESGCM(key).encrypt(nonce, plaintext, head)


def open_with(key: PrivateKey, content: bytes) -> bytes:
    """Decrypt what :func:`seal_for` made for this key.

    Raises
    ------
    SealError
        If it is no such file, was made for another key, or was changed.
    """
    head, header = _header(content)
    if header["recipient"] != fingerprint(key.public_key()):
        raise SealError("file: made for another recipient's key")
    if header["method"] != (_X25519 if isinstance(key, X25519PrivateKey) else _RSA):
        raise SealError("file: expected the method of this kind of key")
    try:
        encapsulated, nonce = bytes.fromhex(header["encapsulated"]), bytes.fromhex(header["nonce"])
        if isinstance(key, X25519PrivateKey):
            shared = key.exchange(X25519PublicKey.from_public_bytes(encapsulated))
            secret = _derived(shared, encapsulated, key.public_key())
        else:
            secret = key.decrypt(encapsulated, _oaep())
        return AESGCM(secret).decrypt(nonce, content[len(head) :], head)
    except (InvalidTag, ValueError) as error:
        raise SealError("file: does not open with this key; it was changed or is not whole") from error


def _header(content: bytes) -> tuple[bytes, dict[str, str]]:
    start = len(_MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(content[len(_MAGIC) : start], "big")
    if content[: len(_MAGIC)] != _MAGIC or length > _MAX_HEADER_BYTES:
        raise SealError("file: expected one that cloister vault export made")
    try:
        header = json.loads(content[start : start + length])
        found = {name: header[name] for name in ("method", "recipient", "encapsulated", "nonce")}
    except (ValueError, KeyError, TypeError) as error:
        raise SealError("file: expected one that cloister vault export made") from error
    if not all(isinstance(value, str) for value in found.values()):
        raise SealError("file: expected one that cloister vault export made")
    return content[: start + length], found


def _derived(shared: bytes, ephemeral: bytes, recipient: X25519PublicKey) -> bytes:
    salt = ephemeral + recipient.public_bytes_raw()
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=salt, info=_INFO).derive(shared)


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
