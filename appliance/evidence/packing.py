"""The pack on disk: ``evidence.json``, its signature, the node's public key, and a PDF for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from appliance.errors import ApplianceError
from appliance.evidence.document import pdf

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FACTS, SIGNATURE, KEY, DOCUMENT = "evidence.json", "evidence.sig", "public_key.pem", "evidence.pdf"
_PURPOSE: Final = b"cloister evidence pack\0"


class EvidenceError(ApplianceError):
    """A pack cannot be written, or is not what its node signed."""


def write(folder: Path, facts: dict[str, Any], signing: Ed25519PrivateKey) -> None:
    """Write a pack into a new or empty folder.

    Raises
    ------
    EvidenceError
        If the folder holds something.
    OSError
        If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise EvidenceError(f"{folder}: not empty; expected a new folder")
    content = (json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    signature = signing.sign(_PURPOSE + content).hex()
    public = signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / DOCUMENT).write_bytes(pdf(facts, signature))
    (folder / KEY).write_bytes(public)
    (folder / SIGNATURE).write_text(signature + "\n", encoding="ascii")
    (folder / FACTS).write_bytes(content)


def verify(folder: Path, key: Ed25519PublicKey | None = None) -> dict[str, Any]:
    """Check a pack's signature; return its facts.

    Parameters
    ----------
    key : Ed25519PublicKey or None
        The node's key as known from elsewhere; without it the key in the pack, which shows only that the pack
        is whole.

    Raises
    ------
    EvidenceError
        If a part is missing or the signature is not the key's.
    """
    try:
        content = (folder / FACTS).read_bytes()
        signature = bytes.fromhex((folder / SIGNATURE).read_text(encoding="ascii"))
        known = key or load_pem_public_key((folder / KEY).read_bytes())
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{folder}: not an evidence pack ({type(error).__name__})") from error
    if not isinstance(known, Ed25519PublicKey):
        raise EvidenceError(f"{folder / KEY}: expected an Ed25519 key")
    try:
        known.verify(signature, _PURPOSE + content)
    except InvalidSignature:
        raise EvidenceError(f"{folder / FACTS}: not what the key signed") from None
    facts: dict[str, Any] = json.loads(content)
    return facts
