"""What a person decides of a quarantined item: seen, discarded with a reason, or filed once more.

A decision is a row first; files follow, and :func:`settle` finishes what a killed process left.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import or_, select, update

from appliance import logs, merges
from appliance.db.base import now
from appliance.db.clinical import Instance, QuarantineItem
from appliance.db.engine import reading, writing
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from appliance.node import ClinicalZone
    from dicom_node.inbox import Inbox

REVIEWED: Final = "quarantine.reviewed"
DISCARDED: Final = "quarantine.discarded"
FILED_AGAIN: Final = "quarantine.filed_again"
SETTLED: Final = "quarantine.settled"

INDEX_STAGE: Final = "index"
FILING: Final = "filing"  # the item stays open until the indexer has read it again
FILED: Final = "filed"
SEEN: Final = "reviewed"
DISCARDING: Final = "discarding"  # decided; its file goes next
GONE: Final = "discarded"
PROPOSED: Final = "proposed"  # a release that waits for a second person
RELEASING: Final = "releasing"  # decided; its study is de-identified again
RELEASED: Final = "released"
LIMIT: Final = 200

# Why an item is discarded: a fixed list, since words of a person could name a patient.
WHY: Final[Mapping[str, str]] = MappingProxyType(
    {
        "wrong_patient": "it belongs to another patient or study",
        "duplicate": "what it holds is stored already",
        "corrected": "its source sends a corrected one",
        "test_data": "it is test data",
        "damaged": "it is damaged",
        "not_needed": "nobody needs it",
    }
)
_ENTRY: Final = re.compile(r"index:([0-9a-f]{32})")
_logger = logs.logger(__name__)


class QuarantineError(ApplianceError):
    """A decision that this item does not take; the message is for the person."""


def review(session: Session, ledger: Ledger, item_id: str, *, actor: str) -> None:
    """Note that a person has seen an item; it stays inside."""
    item = _open(session, item_id)
    if item.reason_code in merges.DISPUTES:
        raise QuarantineError("it says otherwise whose study this is: discard it, or file it again")
    item.resolved_at, item.resolution = now(), SEEN
    ledger.append(session, kind=REVIEWED, subject_id=item.id, actor=actor)


def discard(session: Session, ledger: Ledger, item_id: str, why: str, *, actor: str) -> None:
    """Give an item up; what was quarantined before it was filed is deleted.

    Parameters
    ----------
    why : str
        One of :data:`WHY`.
    """
    if why not in WHY:
        raise QuarantineError(f"reason: expected one of {', '.join(WHY)}")
    item = _open(session, item_id)
    own_file = item.stage == INDEX_STAGE and item.path is not None
    item.resolved_at, item.resolution = now(), f"{DISCARDING if own_file else GONE}:{why}"
    ledger.append(
        session, kind=DISCARDED, subject_id=item.id, body={"code": item.reason_code, "why": why}, actor=actor
    )


def file_again(session: Session, ledger: Ledger, item_id: str, *, actor: str) -> None:
    """Let the indexer file an item once more; it stays open until that is done."""
    item = _open(session, item_id)
    if item.stage != INDEX_STAGE or item.path is None or not _ENTRY.fullmatch(item.dedupe_key):
        raise QuarantineError("only what was received, and not filed, can be filed again")
    item.resolution = FILING
    ledger.append(session, kind=FILED_AGAIN, subject_id=item.id, body={"code": item.reason_code}, actor=actor)


def settle(zone: ClinicalZone, inbox: Inbox) -> int:
    """Do with files what was decided, and close what was filed again; return of how many items."""
    with reading(zone.engine) as session:
        items = session.scalars(
            select(QuarantineItem)
            .where(
                or_(
                    QuarantineItem.resolution.startswith(f"{DISCARDING}:"),
                    QuarantineItem.resolution == FILING,
                )
            )
            .limit(LIMIT)
        ).all()
    done = 0
    for item in items:
        done += _settle_filing(zone, inbox, item) if item.resolution == FILING else _delete(zone, inbox, item)
    if done:
        _logger.info(SETTLED, items=done)
    return done


def _open(session: Session, item_id: str) -> QuarantineItem:
    item = session.get(QuarantineItem, item_id)
    if item is None or item.resolved_at is not None or item.resolution:
        raise QuarantineError("it is gone or was decided already")
    return item


def _delete(zone: ClinicalZone, inbox: Inbox, item: QuarantineItem) -> int:
    path = zone.root / (item.path or "")
    if path.parent == inbox.quarantined:
        path.unlink(missing_ok=True)
    _, _, why = item.resolution.partition(":")
    return _close(zone, item, f"{GONE}:{why}")


def _settle_filing(zone: ClinicalZone, inbox: Inbox, item: QuarantineItem) -> int:
    """Put the file back among the entries; when the indexer has taken it, and not again stopped it, close."""
    entry_id = item.dedupe_key.partition(":")[2]
    path = zone.root / (item.path or "")
    if path.parent == inbox.quarantined and path.exists():
        inbox.requeue(path, entry_id)
        return 0
    if inbox.waits(entry_id):
        return 0
    with reading(zone.engine) as session:
        held = session.get(Instance, entry_id) is not None
    return _close(zone, item, FILED if held else f"{FILED}:dropped")


def _close(zone: ClinicalZone, item: QuarantineItem, resolution: str) -> int:
    """Close an item that nobody changed meanwhile."""
    statement = (
        update(QuarantineItem)
        .where(QuarantineItem.id == item.id, QuarantineItem.resolution == item.resolution)
        .values(resolution=resolution, path=None, resolved_at=item.resolved_at or now())
        .returning(QuarantineItem.id)
    )
    with writing(zone.engine) as session:
        return len(session.execute(statement).all())
