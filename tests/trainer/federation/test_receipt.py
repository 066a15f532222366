from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trainer.federation import receipt
from trainer.federation.errors import ReceiptError

DEPARTURE = receipt.Departure(
    run_id="run-1",
    number=1,
    kind="train",
    site="north",
    plan_sha256="a" * 64,
    global_model_sha256="b" * 64,
    update_sha256="c" * 64,
    size_bytes=100,
    tensors=(receipt.Tensor("weight", (2, 2), "float32", 16, 1.5),),
    samples=12,
    dataset_sha256="d" * 64,
    metric_names=("auc",),
    update_norm=1.5,
    protocol_id="e" * 32,
    approved_by="cli:officer",
)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_signed_receipt_is_genuine() -> None:
    key = Ed25519PrivateKey.generate()

    receipt.verify(receipt.sign(receipt.build(DEPARTURE, AT), key), key.public_key())


@pytest.mark.parametrize("field", ["samples", "update_sha256", "site", "at", "size_bytes", "update_norm"])
def test_a_changed_body_is_seen(field: str) -> None:
    key = Ed25519PrivateKey.generate()
    signed = receipt.sign(receipt.build(DEPARTURE, AT), key)

    changed = replace(signed, body={**signed.body, field: "other"})

    with pytest.raises(ReceiptError):
        receipt.verify(changed, key.public_key())


def test_another_key_or_a_broken_signature_is_seen() -> None:
    key = Ed25519PrivateKey.generate()
    signed = receipt.sign(receipt.build(DEPARTURE, AT), key)

    with pytest.raises(ReceiptError):
        receipt.verify(signed, Ed25519PrivateKey.generate().public_key())
    with pytest.raises(ReceiptError):
        receipt.verify(replace(signed, signature="zz"), key.public_key())
