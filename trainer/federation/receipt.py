"""The receipt: what left the building in one round, signed by the site."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from trainer.federation.errors import ReceiptError
from trainer.federation.plan import content_sha256
from trainer.strategies import streams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from numpy.typing import NDArray

VERSION: Final = 4


@dataclass(frozen=True)
class Tensor:
    """One tensor that leaves: its name, shape, type of numbers, bytes, and L2 norm."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    norm: float


@dataclass(frozen=True)
class Spent:
    """What a round cost in privacy; epsilon is of this round, of all so far, and left, at ``delta``.

    ``run_epsilon`` is of this run so far at the plan's delta; ``noise_source`` is ``secure`` or ``seeded``.
    """

    mechanism: str
    epsilon: float
    epsilon_total: float
    epsilon_left: float
    delta: float
    run_epsilon: float
    run_delta: float
    noise_source: str


@dataclass(frozen=True)
class Departure:
    """What one round sends out of the building.

    ``update_sha256`` and ``size_bytes`` are of the safetensors file; ``dataset_sha256`` is that of the
    dataset version and names no instance; ``update_norm`` is the L2 norm of the update as it counts,
    unpacked and before encryption. Evaluating a final model sends no tensors: empty hash, zero bytes,
    norm zero. The metrics named leave too, and no noise protects them. ``privacy`` is None where the plan
    promises nothing. ``approved_by`` is the row of the user who decided on the protocol, or the account
    at the command line. ``eligible``, ``used`` and ``skipped`` (by reason) count instances of the task's
    modalities; they stay with the receipt at the site. ``recipients`` are the peers that a site's message is
    for, which the coordinator hands on; where one of them does not answer, the next in the graph gets it.
    """

    run_id: str
    number: int
    kind: str
    site: str
    plan_sha256: str
    global_model_sha256: str
    update_sha256: str
    size_bytes: int
    tensors: tuple[Tensor, ...]
    samples: int
    dataset_sha256: str
    metric_names: tuple[str, ...]
    update_norm: float
    protocol_id: str
    approved_by: str
    ethics_number: str = ""
    privacy: Spent | None = None
    eligible: int = 0
    used: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt as stored: body, hash of its canonical form, signature over that hash (hexadecimal)."""

    body: Mapping[str, Any]
    body_sha256: str
    signature: str


def tensors_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[Tensor, ...], float]:
    """Describe tensors, sorted by name; return the L2 norm over all that hold floating-point numbers, too."""
    tensors, counted = [], []
    for name in sorted(arrays):
        shape, dtype = streams.layout_of(arrays, name)
        count = math.prod(shape)
        squares = streams.squares(arrays, name, count)
        tensors.append(Tensor(name, shape, str(dtype), count * dtype.itemsize, math.sqrt(squares)))
        if dtype.kind == "f":
            counted.append(squares)
    return tuple(tensors), math.sqrt(streams.total(counted))


def build(departure: Departure, at: datetime) -> dict[str, Any]:
    """Return the receipt's body."""
    fields = asdict(departure)
    fields["tensors"] = [{**asdict(one), "shape": list(one.shape)} for one in departure.tensors]
    fields["recipients"] = sorted(departure.recipients)
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
