"""What the node knows of its sources and destinations: last seen, counts, rates, errors, alarms."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from appliance import alarms, habits, silence
from appliance.db.peers import Peer, Traffic
from appliance.db.people import User
from appliance.silence import Source
from appliance.traffic import IN, OUT, STRANGERS, hour_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from appliance.db.clinical import Alarm
    from appliance.habits import Week

UNWATCHED: Final = "not watched"
SILENT: Final = "silent"
QUIET: Final = "no traffic"  # nothing in the last eight weeks
SHOWN_HOURS: Final = 168

_HOUR: Final = timedelta(hours=1)
_WINDOW: Final = timedelta(weeks=habits.WEEKS)


@dataclass(frozen=True)
class Counts:
    """What went one way in some time."""

    associations: int = 0
    rejected: int = 0
    instances: int = 0
    size_bytes: int = 0
    failures: int = 0

    def plus(self, numbers: Sequence[int]) -> Counts:
        """Return these and further ones, in the order of the fields."""
        mine = (self.associations, self.rejected, self.instances, self.size_bytes, self.failures)
        return Counts(*(one + other for one, other in zip(mine, numbers, strict=True)))


@dataclass(frozen=True)
class AlarmRow:
    """An alarm that is not over."""

    id: str
    ae_title: str
    station_name: str
    raised_at: datetime
    last_at: datetime
    acknowledged_by: str = ""  # name of the person, or who else it was


@dataclass(frozen=True)
class SourceRow:
    """A peer, or a station behind it. ``hours``: instances of the last 168 hours, the present one last."""

    ae_title: str
    station_name: str = ""
    peer_id: str = ""
    peer: str = ""
    state: str = ""
    last_at: datetime | None = None
    today: Counts = Counts()
    week: Counts = Counts()
    hours: tuple[int, ...] = ()
    alarm: AlarmRow | None = None

    @property
    def last_full_hour(self) -> int:
        """Instances of the last hour that is over."""
        return self.hours[-2] if len(self.hours) > 1 else 0


@dataclass(frozen=True)
class Overview:
    """Sources, peers before their stations; destinations; callers that are no peers."""

    sources: tuple[SourceRow, ...]
    destinations: tuple[SourceRow, ...]
    strangers: Counts
    alarms: tuple[AlarmRow, ...]


@dataclass(frozen=True)
class Detail:
    """One source: its habits, and when its silence would raise an alarm.

    ``profile``: instances in an hour of the week on average over eight weeks, Monday midnight first.
    """

    row: SourceRow
    weeks: float
    hours_a_week: float
    profile: tuple[float, ...]
    silent_from: datetime | None


def overview(session: Session, at: datetime) -> Overview:
    """Read everything for the list."""
    peers = _peers(session)
    open_alarms = listed_alarms(session)
    by_source = {Source(alarm.ae_title, alarm.station_name): alarm for alarm in open_alarms}
    watched = silence.watched_titles(session)
    found = _recent(session, at)
    sent = _sent(session, at)

    def row(source: Source, direction: str, state: str = "") -> SourceRow:
        known = found.get((direction, source), _Recent())
        peer_id, name = peers.get(source.ae_title, ("", ""))
        return SourceRow(
            ae_title=source.ae_title,
            station_name=source.station_name,
            peer_id=peer_id,
            peer=name,
            state=state,
            last_at=sent[direction, source].last_at if (direction, source) in sent else None,
            today=known.today,
            week=known.week,
            hours=tuple(known.hours),
            alarm=by_source.get(source) if direction == IN else None,
        )

    def state(source: Source) -> str:
        if source in by_source:
            return SILENT
        if (IN, source) not in sent:
            return QUIET
        return sent[IN, source].state if source.ae_title in watched else UNWATCHED

    senders = {source for way, source in sent if way == IN} | {Source(title) for title in _senders(session)}
    senders |= {Source(source.ae_title) for source in senders}
    receivers = {source for way, source in sent if way == OUT}
    return Overview(
        sources=tuple(row(item, IN, state(item)) for item in sorted(senders) if item.ae_title != STRANGERS),
        destinations=tuple(row(item, OUT) for item in sorted(receivers)),
        strangers=found.get((IN, Source(STRANGERS)), _Recent()).week,
        alarms=open_alarms,
    )


def detail(session: Session, source: Source, at: datetime, week: Week) -> Detail | None:
    """Read what is known of one source; None where it never was here."""
    row = next(
        (
            row
            for row in overview(session, at).sources
            if (row.ae_title, row.station_name) == (source.ae_title, source.station_name)
        ),
        None,
    )
    if row is None:
        return None
    statement = (
        select(Traffic.hour, Traffic.instances)
        .where(Traffic.ae_title == source.ae_title, Traffic.station_name == source.station_name)
        .where(Traffic.direction == IN, Traffic.instances > 0)
        .where(Traffic.hour >= hour_of(at - _WINDOW))
        .order_by(Traffic.hour)
    )
    hours = [(hour, instances) for hour, instances in session.execute(statement)]
    habit = habits.learn([hour for hour, _ in hours], week)
    since = None
    if row.last_at is not None and row.state in {habits.WATCHED, SILENT}:
        since = habits.silent_from(habit, row.last_at, week)
    return Detail(row, habit.weeks, habit.hours_a_week, _profile(hours, at, week), since)


def listed_alarms(session: Session) -> tuple[AlarmRow, ...]:
    """Return the silences that are not over."""
    found = alarms.still_open(session, silence.SILENCE)
    people = {alarm.acknowledged_by for alarm in found if alarm.acknowledged_by}
    named = session.execute(select(User.id, User.name).where(User.id.in_(people)))
    names = {row.id: row.name for row in named}
    return tuple(_alarm(alarm, names) for alarm in found)


def _alarm(alarm: Alarm, names: dict[str, str]) -> AlarmRow:
    by = alarm.acknowledged_by or ""
    return AlarmRow(
        id=alarm.id,
        ae_title=str(alarm.detail["ae_title"]),
        station_name=str(alarm.detail["station_name"]),
        raised_at=alarm.raised_at,
        last_at=datetime.fromisoformat(str(alarm.detail["last_at"])),
        acknowledged_by=names.get(by, by),
    )


@dataclass
class _Recent:
    """The last seven days of one source."""

    today: Counts = Counts()
    week: Counts = Counts()
    hours: list[int] = field(default_factory=lambda: [0] * SHOWN_HOURS)


def _recent(session: Session, at: datetime) -> dict[tuple[str, Source], _Recent]:
    first = hour_of(at) - (SHOWN_HOURS - 1) * _HOUR
    midnight = at.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    found: dict[tuple[str, Source], _Recent] = {}
    place = (Traffic.direction, Traffic.ae_title, Traffic.station_name, Traffic.hour)
    amounts = (
        Traffic.associations,
        Traffic.rejected,
        Traffic.instances,
        Traffic.size_bytes,
        Traffic.failures,
    )
    statement = select(*place, *amounts).where(Traffic.hour >= first, Traffic.hour <= at)
    for way, title, station, hour, *numbers in session.execute(statement):
        item = found.setdefault((way, Source(title, station)), _Recent())
        item.week = item.week.plus(numbers)
        if hour >= midnight:
            item.today = item.today.plus(numbers)
        item.hours[(hour - first) // _HOUR] += numbers[2]
    return found


@dataclass(frozen=True)
class _Sent:
    """What is known of the last eight weeks: the last instance, and how well habits are known."""

    last_at: datetime
    state: str


def _sent(session: Session, at: datetime) -> dict[tuple[str, Source], _Sent]:
    """Return who sent, and who was sent, anything in the last weeks."""
    place = (Traffic.direction, Traffic.ae_title, Traffic.station_name)
    known = (func.min(Traffic.hour), func.max(Traffic.hour), func.max(Traffic.last_at), func.count())
    statement = (
        select(*place, *known)
        .where(Traffic.hour >= hour_of(at - _WINDOW), Traffic.instances > 0)
        .group_by(*place)
    )
    rows: Iterable[Any] = session.execute(statement)
    found = {}
    for way, title, station, first, last, last_at, hours in rows:
        state = habits.state_of((last - first) / _HOUR + 1, hours)
        found[way, Source(title, station)] = _Sent(last_at, state)
    return found


def _profile(hours: Sequence[tuple[datetime, int]], at: datetime, week: Week) -> tuple[float, ...]:
    sums, times = [0.0] * habits.HOURS_OF_WEEK, [0] * habits.HOURS_OF_WEEK
    for hour, instances in hours:
        sums[week.slot(hour)] += instances
    if hours:
        for number in range((hour_of(at) - hours[0][0]) // _HOUR + 1):
            times[week.slot(hours[0][0] + number * _HOUR)] += 1
    return tuple(total / max(count, 1) for total, count in zip(sums, times, strict=True))


def _peers(session: Session) -> dict[str, tuple[str, str]]:
    rows: Iterable[Peer] = session.scalars(select(Peer).order_by(Peer.enabled, Peer.name.desc()))
    return {peer.ae_title or peer.name[:16]: (peer.id, peer.name) for peer in rows}


def _senders(session: Session) -> list[str]:
    wanted = (Peer.enabled, Peer.may_send, Peer.ae_title != "")
    return list(session.scalars(select(Peer.ae_title).where(*wanted)))
