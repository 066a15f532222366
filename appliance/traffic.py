"""Traffic: what each application entity, and each station behind it, sent and was sent, by the hour.

What was received is counted where it is filed, in the same transaction: each instance once, whatever way it
came in, and none twice after a crash. Associations, rejections and refused instances are counted in memory by
who answers callers (:class:`Meter`) and written each second or so. Several processes may add to one hour.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, case, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from appliance import alarms
from appliance.db.base import new_id, now
from appliance.db.clinical import Instance, QuarantineItem
from appliance.db.engine import writing
from appliance.db.peers import Peer, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from dicom_node.inbox import InboxEntry

IN: Final = "in"
OUT: Final = "out"
STRANGERS: Final = ""  # AE title of callers that are no peers: they can invent titles without end

_AMOUNTS: Final = ("associations", "rejected", "instances", "size_bytes", "failures")
_MAX_PENDING: Final = 1000


@dataclass(frozen=True)
class Flow:
    """Something that went in or out. Without a station it counts for the whole application entity."""

    direction: str
    ae_title: str
    station_name: str = ""
    associations: int = 0
    rejected: int = 0
    instances: int = 0
    size_bytes: int = 0
    failures: int = 0
    at: datetime = field(default_factory=now)

    @property
    def line(self) -> tuple[datetime, str, str, str]:
        """Which row it belongs to."""
        return hour_of(self.at), self.direction, self.ae_title[:16], self.station_name[:64]

    def plus(self, other: Flow) -> Flow:
        """Return both together, as of the later one."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _AMOUNTS}
        return replace(self, at=max(self.at, other.at), **sums)


def hour_of(moment: datetime) -> datetime:
    """Return the beginning of the hour, counted in UTC."""
    return moment.replace(minute=0, second=0, microsecond=0)


def summed(flows: Iterable[Flow]) -> list[Flow]:
    """Return one flow for each row, in the order of rows, so that two writers never wait for each other."""
    found: dict[tuple[datetime, str, str, str], Flow] = {}
    for flow in flows:
        known = found.get(flow.line)
        found[flow.line] = flow if known is None else known.plus(flow)
    return [found[line] for line in sorted(found)]


def add(session: Session, flows: Iterable[Flow]) -> None:
    """Add to the rows of the flows, in the caller's writing transaction."""
    rows = []
    for flow in summed(flows):
        hour, direction, ae_title, station_name = flow.line
        amounts = {name: getattr(flow, name) for name in _AMOUNTS}
        place = {"hour": hour, "direction": direction, "ae_title": ae_title, "station_name": station_name}
        rows.append({"id": new_id(), **place, **amounts, "last_at": flow.at})
    if not rows:
        return
    sqlite_here = session.get_bind().dialect.name == "sqlite"
    insert = sqlite.insert(Traffic) if sqlite_here else postgresql.insert(Traffic)
    given = insert.excluded
    changes = {name: getattr(Traffic, name) + given[name] for name in _AMOUNTS}
    # An association without instances, such as a C-ECHO each minute, is no sign of a source that sends.
    moves = and_(given.last_at > Traffic.last_at, or_(given.instances > 0, Traffic.instances == 0))
    latest = case((moves, given.last_at), else_=Traffic.last_at)
    statement = insert.on_conflict_do_update(
        index_elements=["hour", "direction", "ae_title", "station_name"],
        set_={**changes, "last_at": latest},
    )
    session.execute(statement, rows)


def fresh(session: Session, entries: Sequence[InboxEntry]) -> set[str]:
    """Return the ids of entries that no earlier, interrupted or repeated, filing has counted."""
    ids = {entry.id: f"index:{entry.id[-32:]}" for entry in entries}
    filed = session.scalars(select(Instance.id).where(Instance.id.in_(ids)))
    known = QuarantineItem.dedupe_key
    stopped = set(session.scalars(select(known).where(known.in_(ids.values()))))
    return set(ids) - set(filed) - {entry_id for entry_id, key in ids.items() if key in stopped}


def count_received(session: Session, received: Iterable[tuple[InboxEntry, str]]) -> None:
    """Count entries with their station names, in the transaction that files them."""
    flows = []
    for entry, station_name in received:
        flow = Flow(
            IN, entry.calling_ae_title, instances=1, size_bytes=entry.size_bytes, at=entry.received_at
        )
        flows.append(flow)
        if station_name:
            flows.append(replace(flow, station_name=station_name))
    add(session, flows)


def thin(engine: Engine, before: datetime) -> int:
    """Forget the hours, and the alarms that were over, before a moment; return how many hours went."""
    with writing(engine) as session:
        alarms.forget(session, before)
        gone = session.execute(delete(Traffic).where(Traffic.hour < before).returning(Traffic.id)).all()
    return len(gone)


def oldest_kept(at: datetime, keep_days: int) -> datetime:
    """Return the moment before which hours are forgotten."""
    return hour_of(at) - timedelta(days=keep_days)


class Meter:
    """Counts in memory until :meth:`flush` writes it: who answers callers never waits for a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._flows: dict[tuple[datetime, str, str, str], Flow] = {}

    def note(self, flow: Flow) -> None:
        """Count; of a flood of callers with ever new titles the later count as strangers."""
        with self._lock:
            if flow.line not in self._flows and len(self._flows) >= _MAX_PENDING:
                flow = replace(flow, ae_title=STRANGERS, station_name="")
            known = self._flows.get(flow.line)
            self._flows[flow.line] = flow if known is None else known.plus(flow)

    def flush(self) -> None:
        """Write what was counted; what cannot be written now is kept for the next time."""
        with self._lock:
            flows, self._flows = list(self._flows.values()), {}
        if not flows:
            return
        try:
            with writing(self._engine) as session:
                titles = set(session.scalars(select(Peer.ae_title)))
                add(session, [_by_known(flow, titles) for flow in flows])
        except Exception:
            for flow in flows:
                self.note(flow)
            raise


def _by_known(flow: Flow, titles: set[str]) -> Flow:
    """Count who was turned away without being a peer among the strangers."""
    if flow.rejected and flow.ae_title not in titles:
        return replace(flow, ae_title=STRANGERS)
    return flow
