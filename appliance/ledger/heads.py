"""The stored head: what a chain alone cannot show is that its tail was cut off."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from sqlalchemy import Engine, text

from appliance import durable
from appliance.db.engine import reading
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class HeadError(ApplianceError):
    """The stored head is damaged or was not signed by this zone."""


@dataclass(frozen=True)
class Head:
    """Sequence number and hash of the newest entry."""

    sequence: int
    entry_hash: str


def newest(engine: Engine) -> Head | None:
    """Return the newest entry's place in the chain, None for an empty ledger."""
    with reading(engine) as session:
        row = session.execute(
            text("SELECT sequence, entry_hash FROM ledger_entry ORDER BY sequence DESC LIMIT 1")
        ).first()
    return None if row is None else Head(row.sequence, row.entry_hash)


def store(engine: Engine, signing: Ed25519PrivateKey, path: Path) -> None:
    """Write the newest head to ``path``; several processes may do so at once, the newest wins."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        head = newest(engine)
        if head is None or head.sequence <= _stored_sequence(path):
            return
        content: dict[str, Any] = {**asdict(head), "signature": signing.sign(_message(head)).hex()}
        durable.write_whole(path, json.dumps(content).encode("ascii"))
    finally:
        os.close(lock)


def load(path: Path, public_key: Ed25519PublicKey) -> Head | None:
    """Read the stored head; None when there is none.

    Raises
    ------
    HeadError
        If it cannot be read or its signature is wrong.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        head = Head(int(content["sequence"]), str(content["entry_hash"]))
        public_key.verify(bytes.fromhex(content["signature"]), _message(head))
    except (OSError, ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise HeadError(
            f"{path}: expected a head signed by this zone. Compare the newest entry with a head that was kept"
            " outside the node, then move the file away; the next entry writes a new one"
        ) from error
    return head


def _message(head: Head) -> bytes:
    return f"cloister-ledger-head-1:{head.sequence}:{head.entry_hash}".encode()


def _stored_sequence(path: Path) -> int:
    """Return the sequence of the stored head; a damaged file counts as newest: nobody heals it silently."""
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="ascii"))["sequence"])
    except (ValueError, KeyError, TypeError):
        return 2**63
