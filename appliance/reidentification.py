"""Who is behind a pseudonym: told to a person who may ask, for a reason, and recorded before it is told.

The ledger keeps who asked and for which purpose, and commitments to the pseudonym and the reason: an auditor
who is told both can check them, nobody can read them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from anonymizer import escrow
from appliance import vault
from appliance.auth.rights import Right
from appliance.db.clinical import ClinicalLedgerEntry, VaultEntry
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError
from appliance.purposes import Purpose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from appliance.auth import Principal
    from appliance.node import ClinicalZone
    from appliance.vault import Identity

REIDENTIFIED: Final = "vault.reidentified"
EXPORTED: Final = "vault.exported"
REFUSED: Final = "vault.refused"
REASON_LENGTHS: Final = range(5, 501)
_EXPORT: Final = "cloister.vault.export/1"


@dataclass(frozen=True)
class Question:
    """What the ledger says of a question to the vault; never about whom."""

    sequence: int
    at: datetime
    kind: str
    user_id: str
    purpose: str  # empty: a refusal, an export, or recorded before purposes were
    found: int  # identities told or exported


class ReidentificationError(ApplianceError):
    """The question cannot be answered; never says who."""


class NotAllowedError(ReidentificationError):
    """The person may not ask; that it was asked is recorded."""


def reidentify(
    zone: ClinicalZone,
    person: Principal,
    pseudonym: str,
    reason: str,
    purpose: Purpose = Purpose.OTHER,
) -> list[Identity]:
    """Return who is behind a pseudonym, one for each project that knows it.

    Parameters
    ----------
    zone : ClinicalZone
    person : Principal
        Who asks.
    pseudonym : str
    reason : str
        Why, in 5 to 500 printable characters.
    purpose : Purpose

    Raises
    ------
    NotAllowedError
        If the person has no right to; recorded.
    ReidentificationError
        If there is no reason, or the vault knows no such pseudonym; the latter recorded.
    VaultError
        If the entry cannot be opened.
    """
    _check(zone, person, reason)
    with reading(zone.engine) as session:
        found = list(_opened(zone, session, VaultEntry.pseudonym == pseudonym))
    body: dict[str, object] = {
        "pseudonym": zone.ledger.commitment(REIDENTIFIED, pseudonym),
        "reason": zone.ledger.commitment(person.user_id, reason),
        "purpose": purpose.value,
        "found": len(found),
    }
    _record(zone, person, REIDENTIFIED, body)
    if not found:
        raise ReidentificationError("the vault knows no such pseudonym")
    return [identity for _, identity in found]


def export(
    zone: ClinicalZone, person: Principal, recipient: escrow.PublicKey, reason: str
) -> tuple[bytes, int]:
    """Return all entries sealed for a recipient, and how many; raises like :func:`reidentify`.

    The content is JSON: ``schema``, and ``entries`` of ``pseudonym``, ``project``, ``patient_id`` and
    ``issuer``.
    """
    _check(zone, person, reason)
    with reading(zone.engine) as session:
        entries = [
            {
                "pseudonym": pseudonym,
                "project": identity.project,
                "patient_id": identity.patient_id,
                "issuer": identity.issuer,
            }
            for pseudonym, identity in _opened(zone, session)
        ]
    sealed = escrow.seal_for(recipient, json.dumps({"schema": _EXPORT, "entries": entries}).encode("ascii"))
    body = {
        "recipient": escrow.fingerprint(recipient),
        "reason": zone.ledger.commitment(person.user_id, reason),
        "entries": len(entries),
    }
    _record(zone, person, EXPORTED, body)
    return sealed, len(entries)


def questions(session: Session, limit: int) -> list[Question]:
    """Return what was asked of the vault, or refused, the newest first."""
    kinds = (REIDENTIFIED, EXPORTED, REFUSED)
    chosen = select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind.in_(kinds))
    entries = session.scalars(chosen.order_by(ClinicalLedgerEntry.sequence.desc()).limit(limit))
    return [_question(entry) for entry in entries]


def _question(entry: ClinicalLedgerEntry) -> Question:
    body = json.loads(entry.body)
    return Question(
        sequence=entry.sequence,
        at=datetime.fromisoformat(entry.at),
        kind=entry.kind,
        user_id=entry.actor,
        purpose=body.get("purpose", ""),
        found=body.get("found", body.get("entries", 0)),
    )


def record_refusal(zone: ClinicalZone, person: Principal) -> None:
    """Write down that a person asked who has no right to."""
    _record(zone, person, REFUSED, {})


def _check(zone: ClinicalZone, person: Principal, reason: str) -> None:
    if not person.may(Right.REIDENTIFY):
        record_refusal(zone, person)
        raise NotAllowedError(f"expected the right {Right.REIDENTIFY.value}; that you asked is recorded")
    if len(reason.strip()) not in REASON_LENGTHS or not reason.isprintable():
        raise ReidentificationError(
            f"reason: expected {REASON_LENGTHS.start} to {REASON_LENGTHS.stop - 1} printable characters"
        )


def _opened(
    zone: ClinicalZone, session: Session, *where: ColumnElement[bool]
) -> Iterator[tuple[str, Identity]]:
    order = (VaultEntry.pseudonym, VaultEntry.project)
    chosen = select(VaultEntry.pseudonym, VaultEntry.project).where(*where).order_by(*order)
    for pseudonym, project in session.execute(chosen).all():
        identity = vault.open_entry(zone, session, pseudonym, project)
        if identity is not None:
            yield pseudonym, identity


def _record(zone: ClinicalZone, person: Principal, kind: str, body: dict[str, object]) -> None:
    with writing(zone.engine) as session:
        zone.ledger.append(session, kind=kind, body=body, actor=person.user_id)
