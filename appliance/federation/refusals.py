"""What was asked of this site and refused, in its ledger: once per fact, however often it is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import logs
from appliance.db.base import now
from appliance.db.engine import writing
from appliance.db.research import ResearchLedgerEntry
from appliance.federation.dialect import OTHER_VERSION, PROTOCOL
from trainer.federation.gate import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from appliance.ledger import Ledger
    from appliance.node import ResearchZone

ORDER_REFUSED: Final = "order.refused"
UNREADABLE_PLAN: Final = "unreadable_plan"
UNKNOWN_KIND: Final = "unknown_kind"
UNKNOWN_PLAN: Final = "unknown_plan"
UNFIT_MODEL: Final = "unfit_model"

# What the site's own people decided is in the ledger already.
_DECIDED_HERE: Final = frozenset(
    {
        Refusal.NOT_APPROVED,
        Refusal.REFUSED,
        Refusal.SUSPENDED,
        Refusal.PAUSED,
        Refusal.LEFT,
    }
)

_LOG = logs.logger(__name__)


def note(session: Session, ledger: Ledger, code: str, protocol_id: str | None = None, **more: int) -> None:
    """Record that a coordinator asked for what it may not have.

    Parameters
    ----------
    code : str
        Of the refusal, lower case.
    protocol_id : str, optional
        What it was about. Without one the fact is recorded once a day: who invents plans or names without end
        fills nothing.
    more : int
        Numbers that go along, of the first time.
    """
    if code in _DECIDED_HERE:
        return
    if any(json.loads(entry.body).get("code") == code for entry in _entries(session, protocol_id)):
        return
    _LOG.warning(ORDER_REFUSED, code=code, protocol_id=protocol_id)
    ledger.append(session, kind=ORDER_REFUSED, subject_id=protocol_id, body={"code": code, **more})


def note_other_version(zone: ResearchZone, protocol: int) -> None:
    """Record that the coordinator speaks a protocol with which this site cannot work."""
    with writing(zone.engine) as session:
        note(session, zone.ledger, OTHER_VERSION, coordinator_protocol=protocol, protocol=PROTOCOL)


def _entries(session: Session, protocol_id: str | None) -> Iterator[ResearchLedgerEntry]:
    entry = ResearchLedgerEntry
    about = entry.subject_id.is_(None) if protocol_id is None else entry.subject_id == protocol_id
    found = select(entry).where(entry.kind == ORDER_REFUSED, about)
    if protocol_id is None:
        found = found.where(entry.at >= now().date().isoformat())
    yield from session.scalars(found)
