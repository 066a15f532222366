"""The sites' key of encrypted updates on its way: one site makes it, the coordinator hands it on unread.

An envelope is sealed for the recipients that the plan names, whom people approved, and signed by the one
that made it. Coordinator and sites check the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyrage

from appliance.consortium import block as blocks
from appliance.consortium import sealing
from appliance.federation.errors import FederationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from trainer.federation.plan import Plan

MAX_TEXT: Final = 600 * 1024
_FIELDS: Final = frozenset({"plan", "maker", "sealed", "signature"})
_DOMAIN: Final = b"cloister encryption key\n"


class EnvelopeError(FederationError):
    """An envelope that is none, is of another plan, or was made by nobody whom the plan names."""


@dataclass(frozen=True)
class Envelope:
    """What was checked: ``text`` as it travels, ``sealed`` for the recipients."""

    text: str
    maker: str
    sealed: bytes

    @property
    def sha256(self) -> str:
        """The hash by which sites tell envelopes apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def open(self, key: Ed25519PrivateKey) -> bytes:
        """Return the secret; raises EnvelopeError when it is not sealed for this key."""
        try:
            return bytes(pyrage.decrypt(self.sealed, [sealing.identity(key)]))
        except pyrage.DecryptError as error:
            raise EnvelopeError("the encryption key is damaged, or not sealed for this site") from error


def seal(secret: bytes, plan: Plan, maker: str, key: Ed25519PrivateKey) -> Envelope:
    """Seal a secret for all recipients of a plan, and sign it as one of them."""
    recipients = _recipients(plan)
    sealed = pyrage.encrypt(secret, [sealing.recipient(one) for _, one in sorted(recipients.items())])
    content = {
        "plan": plan.sha256,
        "maker": maker,
        "sealed": base64.b64encode(sealed).decode("ascii"),
        "signature": key.sign(_message(plan.sha256, maker, sealed)).hex(),
    }
    return read(json.dumps(content, sort_keys=True), plan)


def read(text: object, plan: Plan) -> Envelope:
    """Check an envelope that came from elsewhere.

    Raises
    ------
    EnvelopeError
        If it is no envelope of this plan, or not signed by a recipient's key.
    """
    content = _object(text)
    maker = content["maker"]
    key = _recipients(plan).get(maker)
    if content["plan"] != plan.sha256 or key is None:
        raise EnvelopeError("encryption key: of another plan, or of a site that the plan does not name")
    try:
        sealed = base64.b64decode(content["sealed"], validate=True)
    except ValueError as error:
        raise EnvelopeError("encryption key: expected base64") from error
    if not blocks.verified(key, content["signature"], _message(plan.sha256, maker, sealed)):
        raise EnvelopeError("encryption key: not signed by the site that is said to have made it")
    return Envelope(str(text), maker, sealed)


def _object(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise EnvelopeError(f"encryption key: expected a text of at most {MAX_TEXT} characters")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EnvelopeError("encryption key: expected JSON") from error
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise EnvelopeError("encryption key: expected plan, maker, sealed and signature")
    if not all(isinstance(value, str) for value in content.values()):
        raise EnvelopeError("encryption key: expected texts")
    return content


def _recipients(plan: Plan) -> dict[str, str]:
    if plan.encryption is None:
        raise EnvelopeError("the plan has no encryption")
    return dict(plan.encryption.recipients)


def _message(plan: str, maker: str, sealed: bytes) -> bytes:
    digest = hashlib.sha256(sealed).hexdigest()
    return _DOMAIN + f"{plan}\n{maker}\n{digest}".encode()
