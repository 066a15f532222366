"""Receipts looked at: found by round, checked against key and ledger, told to a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Select, or_, select

from appliance.db.research import Receipt, ResearchLedgerEntry, Round
from appliance.federation.errors import FederationError
from appliance.federation.site import ROUND_RELEASED
from trainer.federation import receipt
from trainer.federation.errors import ReceiptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from sqlalchemy.orm import Session

MIN_SHOWN: Final = 8


class UnknownReceiptError(FederationError):
    """There is no such receipt here."""


@dataclass(frozen=True)
class Checked:
    """A receipt's outcome: ``problem`` is empty where it is genuine and the ledger names it."""

    receipt_id: str
    round_id: str
    problem: str


def find(session: Session, name: str) -> Receipt:
    """Return a receipt by its own or its round's row id, or by 8 or more digits of its hash.

    Raises
    ------
    UnknownReceiptError
        If none, or more than one, is meant.
    """
    named = [Receipt.id == name, Receipt.round_id == name]
    if len(name) >= MIN_SHOWN and name.isalnum():
        named.append(Receipt.body_sha256.startswith(name))
    found = session.scalars(_newest().where(or_(*named)).limit(2)).all()
    if len(found) != 1:
        raise UnknownReceiptError("no such receipt; expected a row id or the beginning of one receipt's hash")
    return found[0]


def verify(session: Session, key: Ed25519PublicKey) -> list[Checked]:
    """Check every receipt, and that each round which left has one."""
    entry = ResearchLedgerEntry
    ledger = {
        one.subject_id: json.loads(one.body)
        for one in session.scalars(select(entry).where(entry.kind == ROUND_RELEASED))
    }
    rows = session.scalars(_newest()).all()
    checked = [
        Checked(row.id, row.round_id, _problem(session, row, key, ledger.pop(row.round_id, None)))
        for row in rows
    ]
    lost = [Checked("", str(round_id), "the ledger names a receipt that is gone") for round_id in ledger]
    return checked + lost


def _problem(session: Session, row: Receipt, key: Ed25519PublicKey, noted: Mapping[str, Any] | None) -> str:
    try:
        receipt.verify(receipt.SignedReceipt(row.body, row.body_sha256, row.signature), key)
    except ReceiptError as error:
        return str(error)
    of = session.get(Round, row.round_id)
    if of is None or (of.run_id, of.number, of.kind) != tuple(
        row.body[n] for n in ("run_id", "number", "kind")
    ):
        return "the receipt is of another round"
    if noted is None or noted.get("receipt_sha256") != row.body_sha256:
        return "the ledger does not name this receipt"
    return ""


def lines(body: Mapping[str, Any]) -> list[str]:
    """Return a receipt in words."""
    told = [
        f"{body['site']}, run {body['run_id']}, round {body['number']} ({body['kind']}), {body['at']}",
        f"protocol {body.get('protocol_id', '')}, plan {body['plan_sha256']}",
        f"approved by {body.get('approved_by') or 'unknown'}",
        f"ethics number {body.get('ethics_number') or 'none'}",
        f"global model {body['global_model_sha256']}",
        f"update {body['update_sha256'] or 'none'}",
        f"{body['size_bytes']} bytes, norm {body['update_norm']:.6g}",
        f"learned from {body['samples']} cases of data set {body['dataset_sha256'] or 'none'}",
    ]
    if body.get("recipients"):
        told.append(f"a message for {', '.join(body['recipients'])}")
    for one in body.get("tensors", ()):
        shape = " x ".join(map(str, one["shape"])) or "one number"
        size = f"{one['size_bytes']} bytes, norm {one['norm']:.6g}"
        told.append(f"  {one['name']}: {one['dtype']}, {shape}, {size}")
    figures = ", ".join(body.get("metric_names", ())) or "none"
    told.append(f"figures that left beside it, without noise: {figures}; and the count of cases")
    return [*told, _privacy(body.get("privacy"))]


def _privacy(spent: Mapping[str, Any] | None) -> str:
    if not spent:
        return "differential privacy: none"
    return (
        f"differential privacy: {spent['mechanism']}, noise {spent['noise_source']}, "
        f"epsilon {spent['epsilon']:.4g} for this round, {spent['epsilon_total']:.4g} in all, "
        f"{spent['epsilon_left']:.4g} left at delta {spent['delta']:g}; "
        f"this run {spent['run_epsilon']:.4g} at delta {spent['run_delta']:g}"
    )


def _newest() -> Select[Receipt]:
    return select(Receipt).order_by(Receipt.created_at.desc())
