"""The vault: who is behind each pseudonym, sealed; its key can be replaced while the node works.

During a rotation there are two keys, ``vault.key`` and ``vault.next.key``: what is sealed then is sealed with
the next one, and what is opened says which it needs. A lock in the database puts sealing and the end of a
rotation in an order, so that no entry stays behind under a key that is destroyed.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from anonymizer import vault as sealing
from anonymizer.errors import SealError
from appliance import keys
from appliance.db.clinical import ClinicalLedgerEntry, VaultEntry
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

ROTATION_BEGUN: Final = "vault.rotation_begun"
ROTATED: Final = "vault.rotated"
_LOCK: Final = 0x5661756C  # PostgreSQL advisory lock; SQLite has one writer at a time anyway
_BATCH: Final = 500
_RETRIES: Final = 3  # a rotation that ends between reading row and key


class VaultError(ApplianceError):
    """Something that the vault cannot do; never says who."""


@dataclass(frozen=True)
class Identity:
    """Who is behind a pseudonym."""

    project: str
    patient_id: str
    issuer: str


@dataclass(frozen=True)
class KeyUse:
    """A key by its name, and the entries that are sealed with it."""

    name: str
    role: str  # current, following (during a rotation), missing
    entries: int


@dataclass(frozen=True)
class VaultState:
    """How many entries the vault has, and under which keys."""

    entries: int
    projects: int
    keys: tuple[KeyUse, ...]
    rotated_at: datetime | None  # end of the last rotation


def vault_context(project: str, pseudonym: str) -> bytes:
    """Return what a vault entry is bound to."""
    return f"{project}\0{pseudonym}".encode()


def store_identity(zone: ClinicalZone, session: Session, entry: tuple[str, str], identity: Identity) -> None:
    """Seal an identity under (pseudonym, project), in the caller's writing transaction."""
    pseudonym, project = entry
    _lock(session)
    key = keys.load_vault_keys(zone.root).sealing
    content = json.dumps({"patient_id": identity.patient_id, "issuer": identity.issuer}).encode()
    sealed = sealing.seal(key, content, vault_context(project, pseudonym))
    session.add(
        VaultEntry(
            pseudonym=pseudonym,
            project=project,
            key_id=sealed.key_id,
            nonce=sealed.nonce,
            ciphertext=sealed.ciphertext,
        )
    )
    session.flush()  # within the lock


def open_entry(zone: ClinicalZone, session: Session, pseudonym: str, project: str) -> Identity | None:
    """Return who is behind a pseudonym; None when the vault does not know it.

    Raises
    ------
    VaultError
        If the entry opens with none of the keys.
    """
    for _ in range(_RETRIES):
        entry = session.get(VaultEntry, (pseudonym, project), populate_existing=True)
        if entry is None:
            return None
        key = _keys_by_id(zone).get(entry.key_id)
        if key is not None:
            return _opened(key, entry)
        session.rollback()  # a new transaction sees what a rotation wrote meanwhile
    raise VaultError(
        "vault: an entry is sealed with a key that is not here; expected keys/vault.key of its time"
    )


def state(zone: ClinicalZone) -> VaultState:
    """Return the state of the vault; opens nothing. Raises KeyFileError like :func:`keys.load_vault_keys`."""
    with reading(zone.engine) as session:
        found = keys.load_vault_keys(zone.root)
        counted = select(VaultEntry.key_id, func.count()).group_by(VaultEntry.key_id)
        sealed = {str(name): int(number) for name, number in session.execute(counted)}
        projects = session.scalar(select(func.count(VaultEntry.project.distinct()))) or 0
        rotated = select(func.max(ClinicalLedgerEntry.at)).where(ClinicalLedgerEntry.kind == ROTATED)
        rotated_at = session.scalar(rotated)
    roles = {sealing.key_id(found.current): "current"}
    if found.following is not None:
        roles[sealing.key_id(found.following)] = "following"
    roles |= dict.fromkeys(sorted(sealed.keys() - roles.keys()), "missing")
    return VaultState(
        entries=sum(sealed.values()),
        projects=projects,
        keys=tuple(KeyUse(name, role, sealed.get(name, 0)) for name, role in roles.items()),
        rotated_at=None if rotated_at is None else datetime.fromisoformat(rotated_at),
    )


def rotate(
    zone: ClinicalZone,
    *,
    batch: int = _BATCH,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> int:
    """Seal all entries with a new key and destroy the old one; return the number of entries.

    Killed at any point and repeated, it goes on. The node works meanwhile.

    Parameters
    ----------
    zone : ClinicalZone
    batch : int
        Entries in one transaction.
    on_progress : callable
        Called with the number of entries done, and of all.

    Raises
    ------
    VaultError
        If another rotation is at work, or an entry opens with none of the keys.
    """
    with _alone(zone):
        following = keys.begin_vault_rotation(zone.root)
        name = sealing.key_id(following)
        _record_once(zone, ROTATION_BEGUN, name)
        total = _count(zone)
        on_progress(0, total)
        done = 0
        while moved := _reseal(zone, name, batch):
            done += moved
            on_progress(done, max(total, done))
        total = _record_once(zone, ROTATED, name)
        on_progress(total, total)
        with writing(zone.engine) as session:
            _lock(session)
            keys.end_vault_rotation(zone.root)
    return total


def _keys_by_id(zone: ClinicalZone) -> dict[str, bytes]:
    found = keys.load_vault_keys(zone.root)
    return {sealing.key_id(key): key for key in (found.current, found.following) if key is not None}


def _opened(key: bytes, entry: VaultEntry) -> Identity:
    sealed = sealing.Sealed(entry.key_id, entry.nonce, entry.ciphertext)
    try:
        content = json.loads(sealing.open(key, sealed, vault_context(entry.project, entry.pseudonym)))
    except SealError as error:
        raise VaultError(f"vault: {error}") from error
    return Identity(entry.project, content["patient_id"], content["issuer"])


def _reseal(zone: ClinicalZone, name: str, batch: int) -> int:
    """Seal some entries with the following key; return how many."""
    with writing(zone.engine) as session:
        _lock(session)
        by_id = _keys_by_id(zone)
        chosen = select(VaultEntry).where(VaultEntry.key_id != name)
        order = chosen.order_by(VaultEntry.pseudonym, VaultEntry.project).limit(batch)
        entries = session.scalars(order).all()
        for entry in entries:
            if entry.key_id not in by_id:
                raise VaultError(
                    "vault: an entry is sealed with a key that is not here; nothing was destroyed"
                )
            context = vault_context(entry.project, entry.pseudonym)
            sealed = sealing.Sealed(entry.key_id, entry.nonce, entry.ciphertext)
            again = sealing.seal(by_id[name], sealing.open(by_id[entry.key_id], sealed, context), context)
            entry.key_id, entry.nonce, entry.ciphertext = again.key_id, again.nonce, again.ciphertext
        return len(entries)


def _record_once(zone: ClinicalZone, kind: str, name: str) -> int:
    """Write a step of the rotation to this key in the ledger, unless it stands there; return all entries."""
    key = f"key:{name}"
    with writing(zone.engine) as session:
        _lock(session)
        bodies = session.scalars(select(ClinicalLedgerEntry.body).where(ClinicalLedgerEntry.kind == kind))
        total = _count_in(session)
        if not any(json.loads(body).get("key") == key for body in bodies):
            zone.ledger.append(session, kind=kind, body={"key": key, "entries": total})
    return total


def _count(zone: ClinicalZone) -> int:
    with reading(zone.engine) as session:
        return _count_in(session)


def _count_in(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(VaultEntry)) or 0


def _lock(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


@contextmanager
def _alone(zone: ClinicalZone) -> Iterator[None]:
    folder = os.open(zone.root / "keys", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise VaultError("vault: another rotation is at work; expected it ended") from error
    finally:
        os.close(folder)
