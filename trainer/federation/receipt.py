"""The receipt: what left the building in one round, signed by the site."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from trainer.federation.errors import ReceiptError
from trainer.federation.plan import content_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VERSION: Final = 3


@dataclass(frozen=True)
class Departure:
    """What one round sends out of the building.

    ``update_sha256`` and ``size_bytes`` are of the safetensors file; ``dataset_sha256`` is that of the
    dataset version and names no instance; ``update_norm`` is the L2 norm of the tensors that leave.
    Evaluating a final model sends no tensors: empty hash, zero bytes, norm zero. ``eligible``, ``used`` and
    ``skipped`` (by reason) count instances of the task's modalities; they stay with the receipt at the site.
    """

    run_id: str
    number: int
    kind: str
    site: str
    plan_sha256: str
    global_model_sha256: str
    update_sha256: str
    size_bytes: int
    tensor_names: tuple[str, ...]
    samples: int
    dataset_sha256: str
    metric_names: tuple[str, ...]
    update_norm: float
    eligible: int = 0
    used: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt as stored: body, hash of its canonical form, signature over that hash (hexadecimal)."""

    body: Mapping[str, Any]
    body_sha256: str
    signature: str


def build(departure: Departure, at: datetime) -> dict[str, Any]:
    """Return the receipt's body."""
    fields = asdict(departure)
    fields["tensor_names"] = list(departure.tensor_names)
    fields["skipped"] = dict(sorted(departure.skipped.items()))
    fields["metric_names"] = sorted(departure.metric_names)
    return {"version": VERSION, "at": at.astimezone(UTC).isoformat(), **fields}


def sign(body: Mapping[str, Any], key: Ed25519PrivateKey) -> SignedReceipt:
    """Sign a body with the site's research key."""
    digest = content_sha256(body)
    return SignedReceipt(body, digest, key.sign(digest.encode("ascii")).hex())


def verify(receipt: SignedReceipt, key: Ed25519PublicKey) -> None:
    """Check a receipt against the site's public key.

    Raises
    ------
    ReceiptError
        If the body was changed, or another key signed.
    """
    digest = content_sha256(receipt.body)
    if digest != receipt.body_sha256:
        raise ReceiptError("receipt: the body's hash differs from the one that was signed")
    try:
        key.verify(bytes.fromhex(receipt.signature), digest.encode("ascii"))
    except (InvalidSignature, ValueError) as error:
        raise ReceiptError("receipt: the signature is not of this key and body") from error
