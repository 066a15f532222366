"""What is sealed for one recipient opens for that one alone, and for nobody when it was changed."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anonymizer import escrow
from anonymizer.errors import SealError

X25519 = X25519PrivateKey.from_private_bytes(b"\x11" * 32)
RSA = rsa.generate_private_key(65537, 3072)
WEAK = rsa.generate_private_key(65537, 2048)
KEYS = pytest.mark.parametrize("key", [X25519, RSA], ids=["x25519", "rsa"])


def _public_pem(key: X25519PrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def _private_pem(key: escrow.PrivateKey, password: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@KEYS
@pytest.mark.parametrize("password", [None, b"a password"], ids=["plain", "password"])
def test_the_recipient_opens_what_was_sealed(key: escrow.PrivateKey, password: bytes | None) -> None:
    plaintext = b"Muster" * 100_000
    sealed = escrow.seal_for(escrow.read_recipient(_public_pem(key)), plaintext)
    assert b"Muster" not in sealed
    assert (
        escrow.open_with(escrow.read_private_key(_private_pem(key, password), password), sealed) == plaintext
    )
    assert escrow.seal_for(key.public_key(), plaintext) != sealed


@KEYS
def test_what_was_changed_anywhere_does_not_open(key: escrow.PrivateKey) -> None:
    sealed = escrow.seal_for(key.public_key(), b"Muster")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(SealError):
            escrow.open_with(key, changed)
    for cut in (0, 7, 11, 40, len(sealed) - 1):
        with pytest.raises(SealError):
            escrow.open_with(key, sealed[:cut])


def test_another_key_does_not_open_it() -> None:
    for key in (X25519, RSA):
        sealed = escrow.seal_for(key.public_key(), b"Muster")
        for other in (X25519PrivateKey.generate(), WEAK, RSA if key is X25519 else X25519):
            with pytest.raises(SealError, match="another recipient"):
                escrow.open_with(other, sealed)


@pytest.mark.parametrize(
    "pem", [b"", b"rubbish", _public_pem(WEAK), _public_pem(Ed25519PrivateKey.generate())], ids=range(4)
)
def test_a_key_that_is_none_or_too_weak_is_refused(pem: bytes) -> None:
    with pytest.raises(SealError):
        escrow.read_recipient(pem)
    with pytest.raises(SealError):
        escrow.read_private_key(pem)


def test_a_wrong_or_missing_password_is_refused() -> None:
    for password in (None, b"another"):
        with pytest.raises(SealError):
            escrow.read_private_key(_private_pem(X25519, b"a password"), password)


def test_the_documented_format_can_be_read_by_another_program() -> None:
    sealed = escrow.seal_for(X25519.public_key(), b"Muster")
    assert sealed[:8] == b"CLOVLT1\n"
    end = 12 + int.from_bytes(sealed[8:12], "big")
    header = json.loads(sealed[12:end])
    public = X25519.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert header["method"] == "x25519-hkdf-sha256-aes256gcm"
    assert header["recipient"] == hashlib.sha256(der).hexdigest()
    ephemeral = bytes.fromhex(header["encapsulated"])
    salt = ephemeral + public.public_bytes_raw()
    shared = X25519.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    secret = HKDF(SHA256(), 32, salt, b"cloister vault export 1").derive(shared)
    opened = AESGCM(secret).decrypt(bytes.fromhex(header["nonce"]), sealed[end:], sealed[:end])
    assert opened == b"Muster"
