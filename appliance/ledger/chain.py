"""Appending: read the head and insert in the caller's writing transaction, so there is one order."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import SQLAlchemyError

from appliance import logs
from appliance.errors import ApplianceError
from appliance.ledger import heads

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from sqlalchemy.orm import Session

    from appliance.db.clinical import ClinicalLedgerEntry
    from appliance.db.coordinator import CoordinatorLedgerEntry
    from appliance.db.research import ResearchLedgerEntry

    LedgerModel = type[ClinicalLedgerEntry | ResearchLedgerEntry | CoordinatorLedgerEntry]

GENESIS: Final = "0" * 64
HEAD_NOT_STORED: Final = "ledger.head_not_stored"
_FORMAT: Final = "cloister-ledger-1"
_LOCK: Final = 0x4C656467  # PostgreSQL advisory lock: one appender at a time
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{32,128}")
_CODE: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,63}")
_LOG = logs.logger(__name__)


class LedgerBodyError(ApplianceError):
    """A body holds something other than row ids, counts, codes and commitments."""


def commitment(salt: bytes, value: str | bytes) -> str:
    """Return a salted commitment to a value: shows later that it was this value, tells nothing now."""
    data = value.encode() if isinstance(value, str) else value
    return hmac.new(salt, data, hashlib.sha256).hexdigest()


def entry_hash(values: Mapping[str, Any]) -> str:
    """Return the hash of an entry over all its fields and the hash of the entry before."""
    names = ("sequence", "at", "kind", "actor", "subject_id", "body", "previous_hash")
    content = json.dumps(
        [_FORMAT, *(values[name] for name in names)], separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(content.encode()).hexdigest()


def check_body(value: Any, where: str = "body") -> None:
    """Refuse what could carry a name, a UID, a pseudonym or free text.

    Allowed are numbers, booleans, null, hexadecimal of 32 to 128 digits (row ids, hashes, commitments),
    lower-case codes (a letter, then letters, digits and ``_ . : -``), and lists and objects of these.

    Raises
    ------
    LedgerBodyError
        Naming the place, never the value.
    """
    if value is None or isinstance(value, bool | int | float):
        return
    if isinstance(value, str):
        if not (_HEXADECIMAL.fullmatch(value) or _CODE.fullmatch(value)):
            raise LedgerBodyError(f"{where}: expected a row id, a hash, a commitment or a lower-case code")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_body(key, f"{where} (key)")
            check_body(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_body(item, f"{where}[{index}]")
    else:
        raise LedgerBodyError(f"{where}: {type(value).__name__} does not belong in a ledger")


@dataclass(frozen=True, repr=False)
class Ledger:
    """The appender of one zone.

    Parameters
    ----------
    model : LedgerModel
        The table of entries.
    signing : Ed25519PrivateKey
        Key of the zone; signs every entry and the stored head.
    salt : bytes
        Secret for commitments.
    head_path : Path
        File that keeps the newest head, so that a cut-off tail is seen.
    """

    model: LedgerModel
    signing: Ed25519PrivateKey
    salt: bytes
    head_path: Path

    def append(
        self,
        session: Session,
        *,
        kind: str,
        subject_id: str | None = None,
        body: Mapping[str, Any] | None = None,
        actor: str = "node",
    ) -> int:
        """Append one entry inside the caller's writing transaction and return its sequence number.

        Parameters
        ----------
        session : Session
            From :func:`appliance.db.engine.writing`; entry and cause are stored together or not at all.
        kind : str
            What happened: a lower-case code such as ``study.assembled``.
        subject_id : str or None
            Row id of what it happened to.
        body : mapping or None
            Row ids, counts, codes and commitments; see :func:`check_body`.
        actor : str
            Row id of a user, or the role of the process.

        Raises
        ------
        LedgerBodyError
            If anything else is in it.
        """
        content = dict(body or {})
        for where, value in (("kind", kind), ("actor", actor), ("subject_id", subject_id), ("body", content)):
            check_body(value, where)
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        session.flush()
        last = session.execute(
            select(self.model.sequence, self.model.entry_hash).order_by(self.model.sequence.desc()).limit(1)
        ).first()
        values: dict[str, Any] = {
            "sequence": 1 if last is None else last.sequence + 1,
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
            "kind": kind,
            "actor": actor,
            "subject_id": subject_id,
            "body": json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True),
            "previous_hash": GENESIS if last is None else last.entry_hash,
        }
        values["entry_hash"] = entry_hash(values)
        values["signature"] = self.signing.sign(bytes.fromhex(values["entry_hash"])).hex()
        session.add(self.model(**values))
        session.flush()
        self._anchor_after_commit(session)
        return int(values["sequence"])

    def commitment(self, subject_id: str, value: str) -> str:
        """Return a commitment to a value of one row: equal values of different rows look different."""
        return commitment(self.salt, f"{subject_id}\x00{value}")

    def anchor(self, engine: Engine) -> None:
        """Store the present head beside the database, signed; an older head never replaces a newer one."""
        heads.store(engine, self.signing, self.head_path)

    def _anchor_after_commit(self, session: Session) -> None:
        pending = session.info.setdefault("ledger_heads", set())
        if self.head_path in pending:
            return
        pending.add(self.head_path)
        engine = session.get_bind()

        def stored(committed: Session) -> None:
            committed.info["ledger_heads"].discard(self.head_path)
            if not isinstance(engine, Engine):
                return
            try:
                self.anchor(engine)
            except (OSError, SQLAlchemyError) as error:
                # What was committed is done all the same; the next entry stores a head beyond this one.
                _LOG.error(HEAD_NOT_STORED, exc_info=error)

        event.listen(session, "after_commit", stored, once=True)
