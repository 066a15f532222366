"""Checking a ledger from first to last entry."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Engine, text

from appliance.db.engine import reading
from appliance.ledger import heads
from appliance.ledger.chain import GENESIS, entry_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Connection

PublicKey = Ed25519PublicKey
MAX_PROBLEMS: Final = 100
_SELECT: Final = (
    "SELECT sequence, at, kind, actor, subject_id, body, previous_hash, entry_hash, signature "
    "FROM ledger_entry ORDER BY sequence"
)


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place."""

    sequence: int
    code: str  # missing, order, link, content, signature, tail, head
    message: str


@dataclass(frozen=True)
class Report:
    """Outcome of a check; ``problems`` holds the first hundred."""

    ok: bool
    entries: int
    head_sequence: int
    head_hash: str
    anchored_sequence: int
    problems: tuple[Problem, ...]


def verify(engine: Engine, public_key: Ed25519PublicKey, head_path: Path | None = None) -> Report:
    """Check every entry's place, link, content and signature, and the stored head.

    Parameters
    ----------
    engine : Engine
        Database of one zone or of a coordinator.
    public_key : Ed25519PublicKey
        The key of that zone.
    head_path : Path or None
        The stored head; without it a cut-off tail cannot be seen.
    """
    problems: list[Problem] = []
    anchor: heads.Head | None = None
    if head_path is not None:
        try:
            anchor = heads.load(head_path, public_key)
        except heads.HeadError as error:
            problems.append(Problem(0, "head", str(error)))
    expected, previous, count, anchored_hash = 1, GENESIS, 0, None
    for row in _rows(engine):
        count += 1
        problems.extend(_check(row, expected, previous, public_key))
        expected, previous = row["sequence"] + 1, _printable(row["entry_hash"])
        if anchor is not None and row["sequence"] == anchor.sequence:
            anchored_hash = row["entry_hash"]
        del problems[MAX_PROBLEMS:]
    if anchor is not None:
        if expected - 1 < anchor.sequence:
            message = (
                f"entries {expected} to {anchor.sequence} are gone; the stored head names {anchor.sequence}"
            )
            problems.append(Problem(expected, "tail", message))
        elif anchored_hash != anchor.entry_hash:
            problems.append(Problem(anchor.sequence, "tail", "not the entry that the stored head names"))
    return Report(
        ok=not problems,
        entries=count,
        head_sequence=expected - 1,
        head_hash=previous,
        anchored_sequence=0 if anchor is None else anchor.sequence,
        problems=tuple(problems),
    )


def _rows(engine: Engine) -> Iterator[Mapping[str, Any]]:
    with reading(engine) as session, _any_text(session.connection()):
        result = session.execute(text(_SELECT), execution_options={"yield_per": 500})
        for row in result.mappings():
            yield dict(row)


@contextmanager
def _any_text(connection: Connection) -> Iterator[None]:
    """Let SQLite hand over text that is no UTF-8 too: somebody's bytes must not end the check."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "sqlite":
        yield
        return
    driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = str


def _printable(value: object) -> str:
    """Return a hash as it stands in a report; what is none follows from nothing and nothing follows it."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else "unreadable"


def _check(
    row: Mapping[str, Any], expected: int, previous: str, public_key: Ed25519PublicKey
) -> Iterator[Problem]:
    sequence = int(row["sequence"])
    if sequence != expected:
        yield Problem(expected, "missing", f"entries {expected} to {sequence - 1} are missing")
    if row["previous_hash"] != previous:
        yield Problem(sequence, "link", "does not follow the entry before it")
    try:
        unchanged = entry_hash(row) == row["entry_hash"]
    except TypeError:  # SQLite stores any type in any column
        unchanged = False
    if not unchanged:
        yield Problem(sequence, "content", "content was changed after it was hashed")
    try:
        public_key.verify(bytes.fromhex(row["signature"]), bytes.fromhex(row["entry_hash"]))
    except (InvalidSignature, ValueError, TypeError):
        yield Problem(sequence, "signature", "not signed by this zone")
