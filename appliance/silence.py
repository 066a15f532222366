"""An alarm when a source that normally sends falls silent; :mod:`appliance.habits` says what normal is.

A source is a peer that may send, or the name of a token that stores over the web, and each scanner (Station
Name) behind it. An alarm is raised once. It is over when the source sends again, when nobody watches it any
more, or when nothing of it is known any more.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance import alarms, durable, habits
from appliance.db.engine import reading, writing
from appliance.db.peers import Peer, Traffic
from appliance.db.people import AccessToken
from appliance.traffic import IN, hour_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from appliance.db.clinical import Alarm
    from appliance.habits import Habit, Week
    from appliance.node import ClinicalZone

SILENCE: Final = "silence"
LOOKED: Final = "silence.looked"  # a file: when we looked last
BLIND_AFTER: Final = timedelta(minutes=15)
_RECENT: Final = timedelta(hours=2)
_WINDOW: Final = timedelta(weeks=habits.WEEKS)


@dataclass(frozen=True, order=True)
class Source:
    """A peer's AE title, or a station behind it."""

    ae_title: str
    station_name: str = ""

    @property
    def subject(self) -> str:
        """What an alarm calls it. No AE title holds a backslash."""
        return f"{self.ae_title}\\{self.station_name}"[:80] if self.station_name else self.ae_title


@dataclass(frozen=True)
class Known:
    """What is known of a source."""

    habit: Habit
    last_at: datetime


def learn(session: Session, at: datetime, week: Week) -> dict[Source, Known]:
    """Learn the habits of every source from the traffic of the last weeks."""
    hours: dict[Source, list[datetime]] = {}
    last: dict[Source, datetime] = {}
    for source, hour, last_at in _sent(session, at - _WINDOW):
        hours.setdefault(source, []).append(hour)
        last[source] = max(last_at, last.get(source, last_at))
    return {source: Known(habits.learn(found, week), last[source]) for source, found in hours.items()}


def watched_titles(session: Session) -> set[str]:
    """Return the AE titles of peers that are watched, and the names of tokens, which stand in their place."""
    peers = select(Peer.ae_title).where(Peer.enabled, Peer.may_send, Peer.watch_silence)
    unwatched = set(session.scalars(select(Peer.ae_title).where(Peer.may_send, ~Peer.watch_silence)))
    tokens = {name[:16] for name in session.scalars(select(AccessToken.name))}
    return set(session.scalars(peers)) | (tokens - unwatched)


def _sent(session: Session, since: datetime) -> Iterable[tuple[Source, datetime, datetime]]:
    columns = (Traffic.ae_title, Traffic.station_name, Traffic.hour, Traffic.last_at)
    wanted = (Traffic.direction == IN, Traffic.instances > 0, Traffic.hour >= hour_of(since))
    for ae_title, station_name, hour, last_at in session.execute(
        select(*columns).where(*wanted).order_by(Traffic.hour)
    ):
        yield Source(ae_title, station_name), hour, last_at


@dataclass
class Watch:
    """The looks at all sources, one after another, by the indexer alone.

    Hours in which nobody looked (the node was off) are no silence of a source: it may have found no way in.
    """

    zone: ClinicalZone
    week: Week
    _learned_at: datetime | None = None
    _known: dict[Source, Known] = field(default_factory=dict)
    _blind_until: datetime | None = None
    _looked: bool = False

    def look(self, at: datetime) -> None:
        """Raise and end alarms."""
        if not self._looked:
            self._blind_until = at if self._was_blind(at) else None
            self._looked = True
        with reading(self.zone.engine) as session:
            self._refresh(session, at)
            watched = watched_titles(session)
            raised = [alarm.subject for alarm in alarms.still_open(session, SILENCE)]
        known = {source: item for source, item in self._known.items() if source.ae_title in watched}
        due = self.silent(known, at)
        if raised or due:
            with writing(self.zone.engine) as session:
                self._end(session, known, at)
                for source, since in due.items():
                    alarms.raise_once(
                        session, SILENCE, source.subject, _detail(source, known[source], since), at
                    )
        with contextlib.suppress(OSError):  # without it a restart counts no silence before itself
            durable.write_whole(self.zone.root / LOOKED, at.isoformat().encode())

    def end_all(self, at: datetime) -> None:
        """End what is raised: nobody watches any more."""
        with reading(self.zone.engine) as session:
            raised = alarms.still_open(session, SILENCE)
        if raised:
            with writing(self.zone.engine) as session:
                self._end(session, {}, at)

    def silent(self, known: Mapping[Source, Known], at: datetime) -> dict[Source, datetime]:
        """Return the silent sources and since when that is unusual; of a silent peer no station."""
        found = {}
        for source in sorted(known):
            if source.station_name and Source(source.ae_title) in found:
                continue
            item = known[source]
            began = item.last_at if self._blind_until is None else max(item.last_at, self._blind_until)
            since = habits.silent_from(item.habit, began, self.week)
            if since is not None and since <= at:
                found[source] = since
        return found

    def _refresh(self, session: Session, at: datetime) -> None:
        """Learn anew each hour; between, look at the last hours alone."""
        if self._learned_at != hour_of(at):
            self._known = learn(session, at, self.week)
            self._learned_at = hour_of(at)
            return
        for source, _, last_at in _sent(session, at - _RECENT):
            item = self._known.get(source)
            if item is not None and last_at > item.last_at:
                self._known[source] = Known(item.habit, last_at)

    def _end(self, session: Session, known: Mapping[Source, Known], at: datetime) -> None:
        by_subject = {source.subject: item for source, item in known.items()}
        for alarm in alarms.still_open(session, SILENCE):
            item = by_subject.get(alarm.subject)
            if item is None or item.habit.state != habits.WATCHED or item.last_at > _last_at(alarm):
                alarms.end(alarm, at)

    def _was_blind(self, at: datetime) -> bool:
        try:
            looked_at = datetime.fromisoformat((self.zone.root / LOOKED).read_text(encoding="ascii"))
            return at - looked_at > BLIND_AFTER
        except (OSError, ValueError, TypeError):
            return True


def _detail(source: Source, item: Known, since: datetime) -> dict[str, str]:
    return {
        "ae_title": source.ae_title,
        "station_name": source.station_name,
        "last_at": item.last_at.isoformat(),
        "unusual_since": since.isoformat(),
    }


def _last_at(alarm: Alarm) -> datetime:
    return datetime.fromisoformat(str(alarm.detail["last_at"]))
